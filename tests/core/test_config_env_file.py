"""Env files: what a line may be, and what no line may set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core.config_files import read_env_file
from windlass.core.errors import ConfigError

names = st.from_regex(r"(?:X|OPENAI|my)_[A-Za-z0-9_]{0,10}", fullmatch=True)
#: What one line can carry: no line ends, no NUL, and no blanks or quotes that the reader would strip.
values = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=("Cs",)), max_size=30)
quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def parse(tmp_path: Path, text: str | bytes) -> tuple[dict[str, str], list[str]]:
    file = tmp_path / "e"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_env_file(file)


@given(
    pairs=st.dictionaries(names, values),
    export=st.booleans(),
    quote=st.sampled_from("'\""),
    end=st.sampled_from(["\n", "\r\n"]),
)
@quiet
def test_quoted_values_come_back_as_they_were(
    tmp_path: Path, pairs: dict[str, str], export: bool, quote: str, end: str
) -> None:
    text = end.join([f"{'export ' if export else ''}{name} = {quote}{value}{quote}" for name, value in pairs.items()])
    assert parse(tmp_path, text) == (pairs, [])


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@quiet
def test_any_bytes_are_read_or_refused_with_a_line(tmp_path: Path, raw: bytes) -> None:
    try:
        found, refused = parse(tmp_path, raw)
    except ConfigError as error:
        assert f"{tmp_path / 'e'}, line " in str(error)
    else:
        for name in (*found, *refused):
            assert name.isascii() and name.isidentifier()
        assert not any("\0" in value or "\n" in value for value in found.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1", {"A": "1"}),
        ("  A = 1  \n\n#B=2\n", {"A": "1"}),
        ("A=", {"A": ""}),
        ("A=b=c", {"A": "b=c"}),
        ("A='b", {"A": "'b"}),
        ("A=\"b'", {"A": "\"b'"}),
        ("A=''b''", {"A": "'b'"}),
        ("A='b # c'", {"A": "b # c"}),
        ("A=b # c", {"A": "b # c"}),
        ("A=1\nA=2", {"A": "2"}),
        ("exporter=1", {"exporter": "1"}),
        ("export\tA=1", {"A": "1"}),
        ("\ufeffA=1", {"A": "1"}),
        ("A=x\u2028y", {"A": "x\u2028y"}),
        ("A=$HOME/`id`", {"A": "$HOME/`id`"}),
    ],
)
def test_forms_of_lines(tmp_path: Path, text: str, found: dict[str, str]) -> None:
    assert parse(tmp_path, text) == (found, [])


@pytest.mark.parametrize("text", ["secret-word", "=x", "1A=x", "A B=x", "A-B=x", "é=x", "export=x=", "A=\0"])
def test_other_forms_name_the_line_and_keep_the_text(tmp_path: Path, text: str) -> None:
    if text == "export=x=":
        assert parse(tmp_path, text) == ({"export": "x="}, [])
        return
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, f"OK=1\n{text}\n")
    assert ", line 2: expected NAME=value." in str(caught.value) and "secret" not in str(caught.value)


REFUSED = [
    "PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "WINDLASS_HOME", "WINDLASS_STORE", "HOME", "SHELL", "Path",
    "BASH_ENV", "ENV", "IFS", "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "GIT_SSH_COMMAND", "TMPDIR",
    "XDG_CONFIG_HOME", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "no_proxy", "SSL_CERT_FILE", "SSLKEYLOGFILE",
    "REQUESTS_CA_BUNDLE", "NODE_OPTIONS", "APPDATA",
]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_s86_names_that_are_refused(tmp_path: Path, name: str) -> None:
    assert parse(tmp_path, f"{name}=/evil\nexport {name}=/evil\nA=1\n") == ({"A": "1"}, [name, name])


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "WINDLASS_MODEL", "HOMEPAGE", "PATHS", "MY_ENV", "OLLAMA_HOST"])
def test_names_that_are_not(tmp_path: Path, name: str) -> None:
    assert parse(tmp_path, f"{name}=x") == ({name: "x"}, [])


def test_a_pipe_is_read_and_what_never_ends_is_refused(tmp_path: Path) -> None:
    """`--env-file <(pass show work)` leaves no key on disk."""
    reader, writer = os.pipe()
    os.write(writer, b"A=1\n")
    os.close(writer)
    assert read_env_file(f"/dev/fd/{reader}") == ({"A": "1"}, [])
    os.close(reader)
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_env_file("/dev/zero")
    with pytest.raises(ConfigError, match=r"Cannot read the env file .*: Is a directory"):
        read_env_file(tmp_path)
