"""Do with a sandbox's own shell what its provider has no function for: replace a file in one step, delete one."""

from __future__ import annotations

import errno

from windlass.core.ports import ExecResult

__all__ = ["DELETE", "REPLACE", "fault_of", "words"]

#: Exit codes of the scripts. 127 and the like mean that there is no such shell.
_CODES = {
    44: errno.ENOENT,
    45: errno.EISDIR,
    46: errno.ENXIO,
    48: errno.EEXIST,
    49: errno.ESTALE,
    50: errno.ENOTEMPTY,
    51: errno.EACCES,
    52: errno.ENOSPC,
}
#: `REPLACE new target expected other`: put `new` in the place of `target`, whose mode and links stay. `expected` is a
#: SHA-256, `-any`, or `-none`; `other` is a further free name beside it. Whatever happens, both free names are gone.
REPLACE = """trap 'rm -f "$1" "$4"' EXIT
f=$2 t=$1
if [ -e "$f" ] || [ -L "$f" ]; then
[ -d "$f" ] && exit 45; [ -f "$f" ] || exit 46; [ -w "$f" ] || exit 51; [ "$3" = -none ] && exit 48
f=$(readlink -f "$f")
case $3 in -*) :;; *) [ "$(sha256sum <"$f" | cut -c 1-64)" = "$3" ] || exit 49;; esac
t=$4; cp -p "$f" "$t" && cat "$1" >"$t" || exit 52
else case $3 in -*) :;; *) exit 49;; esac; fi
mv -f "$t" "$f" || exit 52"""
#: `DELETE path`: remove a file, a link, or an empty folder.
DELETE = """if [ -L "$1" ] || { [ -e "$1" ] && [ ! -d "$1" ]; }; then rm -f "$1" || exit 51
elif [ -d "$1" ]; then rmdir "$1" 2>/dev/null || exit 50; else exit 44; fi"""


def words(script: str, *arguments: str) -> list[str]:
    """Return the command that runs a script with `arguments` as `$1` and on."""
    return ["sh", "-c", script, "sh", *arguments]


def fault_of(result: ExecResult) -> int:
    """Return the errno of what a script ended with, 0 when it did its work, EIO when it did not run."""
    return 0 if result.exit_code == 0 else _CODES.get(result.exit_code or 0, errno.EIO)
