"""What a prompt names: `@file` becomes its content, `@image.png` and a pasted path of an image become an attachment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from msgspec import Struct

from windlass.core.attachments import blob
from windlass.core.errors import UnsupportedInputError, WorkspaceError
from windlass.core.messages import Part, Text
from windlass.core.ports import Workspace

__all__ = ["Attached", "attach", "pasted_image"]

_MENTION = re.compile(r'(?:^|(?<=[\s(]))@(?:"([^"\n]+)"|([^\s"@]+))')
_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf")
_MOST_TEXT, _MOST_IMAGE = 256 << 10, 20 << 20


class Attached(Struct, frozen=True):
    """A prompt's parts, what was attached, and what could not be."""

    parts: tuple[Part, ...]
    taken: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


async def attach(text: str, workspace: Workspace | None, context: str = "") -> Attached:
    """Return a prompt with what it names; `context` goes before it. A name that is no file stays a word.

    Text files up to 256 KiB and images up to 20 MiB are taken, from inside the workspace; an image that is named by an
    absolute path is taken from there, because the person wrote it.
    """
    parts: list[Part] = [Text(context)] if context else []
    parts.append(Text(text))
    taken: list[str] = []
    failed: list[str] = []
    for match in _MENTION.finditer(text):
        name = match[1] or match[2].rstrip(".,;:!?)") or match[2]
        try:
            data = await _read(name, workspace)
            if data is None:
                continue
            parts.append(_part(name, data))
            taken.append(name)
        except (WorkspaceError, UnsupportedInputError, OSError) as error:
            failed.append(f"{name}: {error}")
    return Attached(tuple(parts), tuple(taken), tuple(failed))


async def _read(name: str, workspace: Workspace | None) -> bytes | None:
    path = Path(name).expanduser()
    image = path.suffix.lower() in _IMAGES
    most = _MOST_IMAGE if image else _MOST_TEXT
    if path.is_absolute():
        if not image or not path.is_file():
            return None
        with path.open("rb") as file:
            return _bounded(name, file.read(most + 1), most)
    if workspace is None:
        return None
    info = await workspace.stat(name)
    if info is None or info.kind not in ("file", "symlink"):
        return None
    return _bounded(name, await workspace.read(name, limit=most + 1), most)


def _bounded(name: str, data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise UnsupportedInputError(f"{name} is larger than {most >> 10} KiB.", hint="The model can read a part of it.")
    return data


def _part(name: str, data: bytes) -> Part:
    if Path(name).suffix.lower() in _IMAGES:
        return blob(data, filename=Path(name).name)
    if b"\0" in data[:8192]:
        raise UnsupportedInputError(f"{name} is no text.")
    body = data.decode("utf-8", "replace")
    return Text(f'<file path="{name}">\n{body}\n</file>')


def pasted_image(text: str) -> str | None:
    """Return `@path` for a pasted text that is nothing but the path of an image (as terminals paste a dropped file)."""
    try:
        words = shlex.split(text.strip())
    except ValueError:
        return None
    if len(words) != 1 or not words[0].lower().endswith(_IMAGES):
        return None
    path = Path(words[0].removeprefix("file://")).expanduser()
    if not path.is_absolute() or not path.is_file():
        return None
    return f'@"{path}"' if " " in str(path) else f"@{path}"
