"""What a path may look like."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import PathEscape, WorkspaceError
from windlass.workspaces.paths import MAX_NAME, MAX_PATH, clean, is_protected, shown

ESCAPES = [
    "..",
    "../x",
    "a/../../x",
    "a/../..",
    "./../x",
    "/etc/passwd",
    "//etc/passwd",
    "///",
    "/",
    "~",
    "~/.ssh/id_rsa",
    "~root/.bashrc",
    "file:///etc/passwd",
    "file:x",
    "FiLe:/etc/passwd",
    "https://example.com/x",
    "git+ssh://host/x",
    "C:\\Windows\\win.ini",
    "c:/Windows/win.ini",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_s01_a_path_that_leaves_is_refused(path: str) -> None:
    with pytest.raises(PathEscape) as caught:
        clean(path, roots=("/ws",))
    assert caught.value.path == path
    assert "forward slashes" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a", "a"),
        (".", "."),
        ("./", "."),
        ("a/..", "."),
        ("a/./b//c/", "a/b/c"),
        ("a/b/../c", "a/c"),
        ("a/../b/../c", "c"),
        ("...", "..."),
        ("..a", "..a"),
        ("a..", "a.."),
        (". .", ". ."),
        ("./~", "~"),
        ("./~root", "~root"),
        ("~$report.docx", "~$report.docx"),
        ("a/~", "a/~"),
        ("a:b", "a:b"),
        ("%2e%2e/x", "%2e%2e/x"),
        ("a\\..\\..\\x", "a\\..\\..\\x"),
        ("a. ", "a. "),
    ],
)
def test_s09_a_path_inside_is_exact(path: str, wanted: str) -> None:
    assert clean(path) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("/ws/a", "a"), ("/ws", "."), ("/ws/", "."), ("//ws/./a/../b", "b"), ("/x/../ws/a", "a"), ("/private/ws/a", "a")],
)
def test_an_absolute_path_under_a_root_is_made_relative(path: str, wanted: str) -> None:
    assert clean(path, roots=("/ws", "/private/ws")) == wanted


@pytest.mark.parametrize(
    "path", ["/ws-evil/x", "/wsx", "/w", "/ws/../ws-evil/x", "/ws/..", "/WS/x", "/ws /x", "/ws\u200b/x"]
)
def test_s08_a_prefix_is_not_a_folder(path: str) -> None:
    with pytest.raises(PathEscape):
        clean(path, roots=("/ws",))


def test_an_absolute_path_is_refused_where_there_is_no_root() -> None:
    with pytest.raises(PathEscape):
        clean("/a.txt")
    assert clean("/a/b", roots=("/",)) == "a/b"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("a\0b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\rb", "U+000D"),
        ("a\x1b]0;x", "U+001B"),
        ("a\x85b", "U+0085"),
        ("a\u2028b", "U+2028"),
        ("\ud800", "not valid text"),
        ("n" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        ("a/" * 2048 + "b", "4095 bytes"),
    ],
)
def test_s09_a_name_that_no_file_can_have_is_refused(path: str, why: str) -> None:
    with pytest.raises(WorkspaceError, match=why.replace("+", r"\+")) as caught:
        clean(path)
    assert not isinstance(caught.value, PathEscape)
    assert caught.value.path == path
    assert len(str(caught.value)) < 500


def test_s09_names_up_to_the_bound_are_taken() -> None:
    assert clean("n" * MAX_NAME) == "n" * MAX_NAME
    deep = "a/" * 2047 + "b"
    assert len(deep) == MAX_PATH
    assert clean(deep) == deep
    assert clean("caf\udce9.txt") == "caf\udce9.txt"  # bytes that are not UTF-8, as the system gives them


@pytest.mark.parametrize(
    "path", ["a\\b", "nul", "NUL.txt", "com1", "LPT¹", "a:b", "a/b:stream", "a.", "a ", "x/con /y", "a?", "CONIN$"]
)
def test_s09_windows_refuses_what_it_would_read_as_another_file(path: str) -> None:
    with pytest.raises(WorkspaceError):
        clean(path, windows=True)
    assert clean(path) == path


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "b", "~", "/", "ws", "\\"])).map("/".join))
def test_s09_every_path_is_refused_or_stays_inside(path: str) -> None:
    try:
        got = clean(path, roots=("/ws",))
    except WorkspaceError as error:
        assert error.path == path
        return
    names = got.split("/")
    assert got == "." or not {"", ".", ".."} & set(names)
    assert not got.startswith("/")
    assert got == "." or all(name in path for name in names)  # no name is changed
    assert clean(f"./{got}") == got


@given(st.text(max_size=300))
def test_shown_is_one_short_printable_line(path: str) -> None:
    text = shown(path)
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


PROTECTED = [
    ".git",
    ".git/hooks/pre-commit",
    ".git/config",
    "sub/module/.git/config",
    ".GIT/Hooks/x",
    ".git./config",
    ".git /config",
    "git~1/config",
    ".git::$INDEX_ALLOCATION/config",
    ".g\u200cit/config",
    "\uff0egit/config",
    ".gitmodules",
    "src\\.git\\config",
    "a/../.git/config",
    ".windlass/state.json",
    "windlass.toml",
    "AGENTS.md",
    "sub/agents.md",
    "CLAUDE.md",
    ".mcp.json",
    ".envrc",
    ".bashrc",
    "home/.zshenv",
    ".config/fish/config.fish",
    ".vscode/tasks.json",
    ".idea/workspace.xml",
    "x.code-workspace",
    ".ssh/authorized_keys",
    "venv/lib/site-packages/evil.pth",
    "sitecustomize.py",
    ".npmrc",
]


@pytest.mark.parametrize("path", PROTECTED)
def test_s12_what_changes_later_runs_is_protected(path: str) -> None:
    reason = is_protected(path)
    assert reason
    assert not reason.endswith(".")


@pytest.mark.parametrize(
    "path",
    [
        ".",
        "",
        "..",
        "src/main.py",
        ".gitignore",
        ".github/x",
        "git/config",
        ".gitx/config",
        "config",
        "fish/config.fish",
        "agents.md.txt",
        ".git/../src/x",
        "pth",
        "docs/envrc",
    ],
)
def test_s12_ordinary_files_are_not_protected(path: str) -> None:
    assert is_protected(path) is None


@given(st.sampled_from(PROTECTED), st.data())
def test_s12_no_spelling_that_a_file_system_may_fold_gets_around_it(path: str, data: st.DataObject) -> None:
    for change in data.draw(st.lists(st.sampled_from(["upper", "nfd", "dot", "invisible", "deep"]), max_size=4)):
        if change == "upper":
            path = path.upper()
        elif change == "nfd":
            path = unicodedata.normalize("NFD", path)
        elif change == "dot":
            path += data.draw(st.sampled_from([".", " ", ". ."]))
        elif change == "invisible":
            at = data.draw(st.integers(0, len(path)))
            path = path[:at] + "\u200d" + path[at:]
        else:
            path = "deep/er/" + path
    assert is_protected(path)
