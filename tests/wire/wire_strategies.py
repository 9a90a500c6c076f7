"""Generated conversations: valid ones, in the form in which an agent keeps them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from windlass.core.messages import Blob, Message, Part, Reasoning, ResponseStatus, Text, ToolCall, ToolResponse, Uri

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(8))
PDF = b"%PDF-1.7\n%\xe2\xe3"

STATUSES: tuple[ResponseStatus, ...] = ("ok", "error")
#: Text with at least one visible character, as UTF-8 can carry it.
clean_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda t: bool(t.strip())
)
#: Text that holds what JSON or a store may not carry.
wild_text = st.one_of(
    clean_text,
    st.sampled_from(
        ["a\ud800b", "nul\x00inside", "\udfff", "\u2028\u2029", "data: x\n\nevent: error", "\r\n\r\n", "é👍\ufeff"]
    ),
).filter(lambda t: bool(t.strip()))
names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


def json_values(text: st.SearchStrategy[str], *, big: bool = False) -> st.SearchStrategy[Any]:
    """Return JSON values; `big` adds integers past 64 bits."""
    numbers = st.integers(-(1 << 63), (1 << 64) - 1)
    if big:
        numbers = st.one_of(numbers, st.sampled_from([1 << 64, -(1 << 70)]))
    leaf = st.one_of(st.none(), st.booleans(), numbers, st.floats(allow_nan=False, allow_infinity=False), text)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
        max_leaves=6,
    )


@st.composite
def conversations(
    draw: st.DrawFn,
    *,
    text: st.SearchStrategy[str] = clean_text,
    media: st.SearchStrategy[Part] | None = None,
    reasoning: st.SearchStrategy[Part] | None = None,
    results: st.SearchStrategy[Any] | None = None,
    big: bool = False,
    prefix: str = "call",
) -> list[Message]:
    """Return a conversation that ends with a user or tool message; every call has one response right after it."""
    out: list[Message] = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        said: list[Part] = [Text(draw(text))]
        if media is not None and draw(st.booleans()):
            said.insert(draw(st.integers(0, 1)), draw(media))
        out.append(Message("user", tuple(said)))
        for _ in range(draw(st.integers(0, 2))):
            parts: list[Part] = [draw(reasoning)] if reasoning is not None and draw(st.booleans()) else []
            if draw(st.booleans()):
                parts.append(Text(draw(text)))
            calls: list[ToolCall] = []
            for _ in range(draw(st.integers(1, 3))):
                arguments = draw(st.dictionaries(names, json_values(text, big=big), max_size=3))
                calls.append(ToolCall(f"{prefix}_{number}", draw(names), arguments))
                number += 1
            out.append(Message("assistant", (*parts, *calls)))
            status = st.sampled_from(STATUSES)
            answers = [
                ToolResponse(call.id, draw(text if results is None else results), draw(status)) for call in calls
            ]
            out.append(Message("tool", tuple(answers)))
            if draw(st.booleans()):
                out.append(Message("user", (Text(draw(text)),)))
        out.append(Message("assistant", (Text(draw(text)),)))
    return out[:-1]


images = st.sampled_from(
    [Blob(PNG, "image/png"), Blob(b"GIF89a\x01\x00", "image/gif"), Blob(b"\xff\xd8\xff\xe0", "image/jpeg")]
)
documents = st.sampled_from(
    [Blob(PDF, "application/pdf", "document", "a.pdf"), Blob("tëxt".encode(), "text/plain", "document", "n.txt")]
)
addresses = st.sampled_from(
    [Uri("https://example.test/x.png"), Uri("https://example.test/x.pdf", "application/pdf", "document")]
)


def _signed(text: str, mark: str) -> Reasoning:
    return Reasoning(text, {"anthropic": {"signature": mark}})


def _redacted(data: str) -> Reasoning:
    return Reasoning("", {"anthropic": {"redacted_data": data}})


signed = st.builds(_signed, clean_text, st.text("abcDEF123=", min_size=1, max_size=9))
redacted = st.builds(_redacted, st.text("abc=", min_size=1, max_size=9))
