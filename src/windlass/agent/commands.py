"""Read a shell command line as far as it can be proven; pure text, nothing is run.

A command line is not a boundary: what it may reach is the workspace's matter. This reader answers one question for an
*allow* rule, conservatively: is the whole line one simple command whose words are exactly those written? Everything
that a shell would expand, redirect, chain or run from a file makes it *not proven*, which allows nothing. For a *deny*
rule the question is turned round: could the command be in there? Both take time linear in the line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from msgspec import Struct

__all__ = ["MAX_LINE", "Reading", "could_hold", "prefix_refused", "read_command", "runs_others"]

#: Characters of a line that is worth proving. Longer ones are not proven.
MAX_LINE = 4096


def _named(words: str) -> frozenset[str]:
    return frozenset(words.split())


_BLANK = re.compile(r"[ \t]+")
#: One piece of a word: bare characters that no POSIX shell gives a meaning, or quoted text without expansions.
_PIECE = re.compile(r"""(?P<bare>[A-Za-z0-9_@%+=:,./-]+)|'(?P<single>[^']*)'|"(?P<double>[^"$`\\!]*)\"""")
_NAME = re.compile(r"[A-Za-z0-9_./+-]+")
#: Words that are syntax where a command is expected (POSIX 2.4, and bash's own).
_RESERVED = _named("if then else elif fi do done case esac while until for in function select time coproc")
#: What makes a line unprovable, in the order in which it is told.
_WHY: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[\r\n]"), "it has more than one line"),
    (re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"), "it holds control characters"),
    (re.compile(r"[;&|]"), "it may hold several commands"),
    (re.compile(r"[<>]"), "it may redirect input or output"),
    (re.compile(r"[$`]"), "it may expand variables or commands"),
    (re.compile(r"[*?\[\]{}~]"), "it may expand file names"),
    (re.compile(r"[\\!^#()]"), "it holds shell syntax"),
    (re.compile(r"['\"]"), "its quotes are not plain"),
)


class Reading(Struct, frozen=True):
    """What a line was proven to be: its words, or None and why not."""

    argv: tuple[str, ...] | None
    why: str = ""


def read_command(line: str, *, windows: bool | None = None) -> Reading:
    """Read a line as one simple literal command.

    Proven is: blank-separated words of bare characters and plain quotes on one line, the first of them the bare name of
    a program, no assignment before it. `windows` (default: this platform) proves nothing: `cmd` reads other rules.
    """
    if sys.platform == "win32" if windows is None else windows:
        return Reading(None, "command lines of Windows are not read")
    if len(line) > MAX_LINE:
        return Reading(None, f"it is longer than {MAX_LINE} characters")
    words: list[str] = []
    at, end = 0, len(line.rstrip(" \t"))
    while at < end:
        if blank := _BLANK.match(line, at):
            at = blank.end()
            continue
        word, at = _word(line, at, end)
        if word is None:
            return Reading(None, _why(line))
        words.append(word)
    if not words:
        return Reading(None, "it is empty")
    return _as_command(tuple(words), line)


def _word(line: str, at: int, end: int) -> tuple[str | None, int]:
    text = ""
    while at < end and line[at] not in " \t":
        piece = _PIECE.match(line, at)
        if piece is None:
            return None, at
        # Quoted text must be what it looks like: a control or invisible character is not.
        quoted = piece["single"] or piece["double"] or ""
        if not quoted.isprintable():
            return None, at
        text += piece["bare"] or quoted
        at = piece.end()
    return text, at


def _as_command(words: tuple[str, ...], line: str) -> Reading:
    name = words[0]
    # The name as it is written: quotes around it would be another word to a shell that looks for syntax.
    if not line.lstrip(" \t").startswith(name) or not _NAME.fullmatch(name):
        why = "it sets variables first" if "=" in name else "its program is not named plainly"
        return Reading(None, why)
    if name in _RESERVED:
        return Reading(None, f"{name!r} is shell syntax")
    return Reading(words)


def _why(line: str) -> str:
    return next((why for pattern, why in _WHY if pattern.search(line)), "it holds characters that are not plain")


# -- what an allow rule may not cover by a prefix --------------------------------------------------------------------

#: Programs that run what they are given (words, files, configuration, a remote): a prefix of their words proves
#: nothing. After GTFOBins (https://gtfobins.github.io), with the build tools and test runners of a repository.
_RUNNERS = _named(
    """
    sh ash bash csh dash elvish fish hush ksh ksh93 mksh nu oil osh posh pwsh powershell rbash rksh tcsh xonsh yash zsh
    awk gawk mawk nawk bc cscript dart dc deno bun elixir erl expect gdb ghc ghci groovy guile irb java jjs jshell julia
    kotlin lldb lua luajit m4 maxima nim node nodejs ocaml octave osascript perl php pry py pypy python racket r rscript
    ruby runghc sbcl scala scheme sed swift tclsh ts-node tsx wish wscript
    at batch builtin chroot chrt command cpulimit cron crontab doas dbus-run-session env eval exec fakeroot find
    firejail flock gosu hyperfine ionice ip linux32 linux64 ltrace nice nohup nsenter numactl parallel pkexec proot
    rlwrap run0 run-parts runcon runuser screen script setarch setpriv setsid source start-stop-daemon stdbuf strace su
    su-exec sudo systemd-run taskset timeout tmux trap unbuffer unshare watch xargs xvfb-run
    . alias bind complete declare enable export fc hash jobs local mapfile read readarray readonly set shopt typeset
    unalias unset ulimit umask wait
    bwrap docker helm kubectl lxc nerdctl podman qemu runc vagrant wsl terraform tofu pulumi ansible ansible-playbook
    busybox toybox ftp lftp mosh nc ncat netcat pssh rcp rlogin rsh rsync scp sftp socat ssh sshpass telnet tftp
    aria2c curl elinks links lynx w3m wget
    apk apt apt-get bazel brew bundle cargo cmake composer conda configure dnf dotnet dpkg gem go gradle gradlew invoke
    just mage make gmake mamba maven meson mix mvn mvnw ninja npm npx nox pacman pdm pip pipx pnpm poetry pre-commit
    pytest rake rpm rustc sbt snap stack tox uv uvx yarn yum zypper
    ctest jest mocha phpunit rspec vitest babel eslint esbuild mypy prettier pylint rollup vite webpack
    cc c++ clang gcc g++ ld ldd tcc gs convert ffmpeg gpg latex magick openssl pdflatex tex
    7z 7za ar bsdtar cpio rar star tar unrar unzip zip
    ed emacs ex info less man more most nano nvim pico pine vi view vim vimdiff visudo
    dialog git-shell hg mail mailx mutt mysql mysqldump psql sqlite svn
    dd insmod launchctl modprobe mount open service systemctl umount xdg-open
    """
)
_VERSIONED = re.compile(r"(?P<name>[a-z+_.-]*[a-z+])-?[0-9][0-9.]*")
#: Options with which programs that only look around run others or write files; long ones may be shortened.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "git": ("--output", "--open-files-in-pager", "-O", "--ext-diff", "--textconv", "--edit-description"),
    "rg": ("--pre", "--pre-glob", "--hostname-bin", "--search-zip", "-z"),
    "fd": ("--exec", "--exec-batch", "-x", "-X"),
    "fdfind": ("--exec", "--exec-batch", "-x", "-X"),
    "sort": ("--compress-program", "--output", "-o", "--temporary-directory", "-T", "--files0-from"),
    "split": ("--filter",),
    "shuf": ("--output", "-o"),
    "tree": ("-o", "--output", "-R"),
    "diff": ("--to-file", "--from-file", "--output"),
    "date": ("--set", "-s"),
    "file": ("--compile", "-C", "--magic-file", "-m"),
    "gh": ("--editor", "-e", "--web", "-w"),
}  # fmt: skip
#: Of git, only these begin a prefix: its other commands run hooks, filters, editors, helpers or remotes' programs.
_GIT = _named("blame cat-file describe diff grep log ls-files ls-tree rev-list rev-parse shortlog show status")
_SUBCOMMANDS = frozenset({"gh"})


def prefix_refused(prefix: Sequence[str], argv: Sequence[str]) -> str:
    """Return why a rule's prefix may not allow these words, '' when it may.

    Refused are interpreters and whatever else runs commands of its own, `git` without one of its reading commands, and
    options that run a program or write a file.
    """
    if tuple(argv[: len(prefix)]) != tuple(prefix) or not prefix:
        return "it does not begin with these words"
    name = argv[0]
    if "/" in name and not name.startswith("/"):
        return f"{name} lies in the workspace, where it may be changed"
    if runs_others(name):
        return f"{name} runs other commands: no prefix of its words says which"
    base = _base(name)
    if base == "git" and (len(prefix) < 2 or argv[1] not in _GIT):
        return "a prefix may only name a command of git that reads: git status, git log, ..."
    if base in _SUBCOMMANDS and len(prefix) < 2:
        return f"{name} does too many things: name the command of it"
    for word in argv[1:]:
        if any(_is_option(word, option) for option in _OPTIONS.get(base, ()) if option not in prefix):
            return f"its option {word} can run a program or write a file"
    return ""


def runs_others(name: str) -> bool:
    """Tell whether a program runs what it is given: shells, interpreters, wrappers, build tools, archivers."""
    base = _base(name)
    versioned = _VERSIONED.fullmatch(base)
    return base in _RUNNERS or (versioned is not None and versioned["name"].rstrip(".-") in _RUNNERS)


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1].casefold().removesuffix(".exe")


def _is_option(word: str, option: str) -> bool:
    if option.startswith("--"):
        given = word.split("=", 1)[0]
        return len(given) > 2 and given.startswith("--") and option.startswith(given)
    # A short option may stand in a bundle (-zO) and hold its value (-Oless).
    return word.startswith("-") and not word.startswith("--") and option[1] in word[1:]


# -- what a deny or ask rule must look for ---------------------------------------------------------------------------

_SPLIT = re.compile(r"[\s;&|<>(){}$`=,]+")
_QUOTES = re.compile(r"['\"\\]")


def could_hold(line: str, prefix: Sequence[str]) -> bool:
    """Tell whether a line visibly holds a command that begins with these words, anywhere and however quoted.

    This finds what is written, also inside quotes and behind other commands; what a shell would compute is not found,
    which is why a line that is not proven is asked about wherever a rule on commands forbids something.
    """
    if not prefix:
        return True
    wanted = [word.casefold() for word in prefix]
    folded = line.casefold()
    for text in (_QUOTES.sub(" ", folded), _QUOTES.sub("", folded)):
        words = _SPLIT.split(text)
        for at, word in enumerate(words):
            if _base(word) == _base(wanted[0]) and words[at + 1 : at + len(wanted)] == wanted[1:]:
                return True
    return False
