"""How faults of files travel between a remote workspace and the server that holds it: a status and a word for each."""

from __future__ import annotations

import errno

__all__ = ["CODES", "PATH", "errno_of"]

#: Where the routes are, on a server that runs `windlass serve`.
PATH = "/windlass/v1/workspaces"
#: errno -> HTTP status, the word in the error's `code`. 409: what is there is in the way; 412: it is another file.
CODES: dict[int, tuple[int, str]] = {
    errno.ENOENT: (404, "file_not_found"),
    errno.EISDIR: (409, "is_a_folder"),
    errno.ENOTDIR: (409, "not_a_folder"),
    errno.ENOTEMPTY: (409, "folder_not_empty"),
    errno.EEXIST: (409, "file_exists"),
    errno.ESTALE: (412, "file_changed"),
    errno.ELOOP: (409, "link_loop"),
    errno.ENXIO: (409, "not_a_regular_file"),
    errno.EACCES: (403, "file_refused"),
    errno.EPERM: (403, "file_refused"),
    errno.EROFS: (403, "read_only"),
    errno.ENOSPC: (409, "no_space"),
    errno.EDQUOT: (409, "no_space"),
    errno.EFBIG: (413, "file_too_large"),
    errno.ENAMETOOLONG: (400, "name_too_long"),
    errno.EAGAIN: (409, "folders_moving"),
    errno.EBUSY: (409, "in_use"),
}
_NUMBERS = {code: number for number, (_, code) in reversed(CODES.items())}


def errno_of(code: str) -> int | None:
    """Return the errno that an error's `code` stands for, None for one that is no fault of a file."""
    return _NUMBERS.get(code)
