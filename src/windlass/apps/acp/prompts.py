"""What a client sends as a prompt, as parts of a message.

Source: https://agentclientprotocol.com/protocol/content. A link to a file stays a link: the model reads it with its
tools, under the same rules as everything else.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from acp.schema import (
    AudioContentBlock,
    EmbeddedResourceContentBlock,
    ImageContentBlock,
    ResourceContentBlock,
    TextContentBlock,
    TextResourceContents,
)

from windlass.apps.acp.failures import bad
from windlass.core.attachments import blob
from windlass.core.errors import UnsupportedInputError
from windlass.core.messages import Part, Text

__all__ = ["Block", "parts_of", "words_of"]

Block: TypeAlias = (
    TextContentBlock | ImageContentBlock | AudioContentBlock | ResourceContentBlock | EmbeddedResourceContentBlock
)


def words_of(blocks: Sequence[Block]) -> str:
    """Return the text of a prompt that is nothing but text, else ''."""
    texts = [block.text for block in blocks if isinstance(block, TextContentBlock)]
    return "".join(texts).strip() if len(texts) == len(blocks) else ""


def parts_of(blocks: Sequence[Block], cwd: str) -> list[Part]:
    """Return the parts. Raises RequestError (invalid params) for what is empty, broken or not offered."""
    parts = [_part(block, cwd) for block in blocks]
    if not any(not isinstance(part, Text) or part.content.strip() for part in parts):
        raise bad("The prompt is empty.")
    return parts


def _part(block: Block, cwd: str) -> Part:
    if isinstance(block, TextContentBlock):
        return Text(block.text)
    if isinstance(block, ImageContentBlock):
        return _blob(block.data, block.mime_type, _name(block.uri))
    if isinstance(block, ResourceContentBlock):
        return Text(_link(block, cwd))
    if isinstance(block, EmbeddedResourceContentBlock):
        resource = block.resource
        if isinstance(resource, TextResourceContents):
            where = _place(resource.uri, cwd)
            return Text(f'\n<resource uri="{where}">\n{resource.text}\n</resource>\n')
        return _blob(resource.blob, resource.mime_type, _name(resource.uri))
    raise bad("Sound is not taken: promptCapabilities.audio is false.")


def _blob(data: str, mime: str | None, name: str | None) -> Part:
    try:
        raw = base64.b64decode(data, validate=True)
        return blob(raw, filename=name, mime_type=mime)
    except binascii.Error as error:
        raise bad(f"{name or mime} is not base64: {error}.") from None
    except UnsupportedInputError as error:
        raise bad(str(error)) from None


def _link(block: ResourceContentBlock, cwd: str) -> str:
    told = [text for text in (block.title, block.description) if text]
    return f"[{block.name}]({_place(block.uri, cwd)})" + (f" ({'; '.join(told)})" if told else "")


def _place(uri: str, cwd: str) -> str:
    """Return where a resource is: for a file in the session's folder its path there, as the tools take it."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # it is no address that anybody could open
        return uri
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return uri
    path = os.path.normpath(unquote(parts.path))
    inside = os.path.relpath(path, cwd)
    line = f"#{parts.fragment}" if parts.fragment else ""
    return (path if inside.startswith("..") else inside) + line


def _name(uri: str | None) -> str | None:
    return unquote((uri or "").rpartition("/")[2]) or None
