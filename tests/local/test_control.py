"""Control tokens in what people, tools and pages say are text to the model (S77)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.local.gguf_bytes import STRING, array, gguf, string, tensor, text
from windlass.local.control import ControlTokens, control_tokens
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions, count_tokens
from windlass.local.gguf import read_header

TOKENS = ControlTokens(("<|im_start|>", "<|im_end|>", "</s>", "[INST]", "<｜User｜>", "### End", "<a<b>"))


async def test_s77_a_control_token_in_a_text_is_text_to_the_model() -> None:
    model = embedded_model()
    options = EngineOptions(context=model.profile.context, threads=1, gpu_layers=0, memory_map=False)
    engine = Engine(model.path, options, verify=model.verify)

    async def size(content: str, role: str = "user") -> int:
        messages = [{"role": "user", "content": "x"}, {"role": role, "content": content, "tool_call_id": "c"}]
        return await count_tokens(engine, {"messages": messages[1:] if role == "user" else messages})

    try:
        for role in ("user", "assistant"):
            plain = await size("aXb", role)
            for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>"):
                # As the token itself it would be one, as the letter is.
                assert await size(f"a{token}b", role) > plain + 3, (role, token)
        assert await size("<b>") == await size("<c>")
    finally:
        engine.close()


def test_s77_the_tokens_are_those_of_the_model() -> None:
    tokens = control_tokens(read_header(embedded_model().path))
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_response>"} <= tokens.texts
    assert all(len(token) < 40 for token in tokens.texts)


@pytest.mark.parametrize("kinds", [[3, 1, 4, 3, 3], None, [3, 1]])
def test_s77_a_vocabulary_without_kinds_has_no_control_tokens(tmp_path: Path, kinds: list[int] | None) -> None:
    words = ["<s>", "word", "<x>", "<y", "z" * 300]
    pairs = [string("tokenizer.chat_template", "{{ messages }} <x>"),
             array("tokenizer.ggml.tokens", STRING, len(words), b"".join(map(text, words)))]  # fmt: skip
    if kinds is not None:
        pairs.append(array("tokenizer.ggml.token_type", 5, len(kinds), struct.pack(f"<{len(kinds)}i", *kinds)))
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf(pairs, [tensor("a", [32], 0, 0)], bytes(128)))
    found = control_tokens(read_header(file)).texts
    assert found == (frozenset(("<s>", "<x>", "<y")) if kinds is not None and len(kinds) == len(words) else frozenset())
    if kinds is not None and len(kinds) == len(words):
        info = read_header(file)
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(OSError, match="shorter"):
            control_tokens(info)


pieces = st.lists(
    st.sampled_from([*sorted(TOKENS.texts), "<", "|", ">", "a", "[", "### ", "End", "\u200b"]), max_size=12
)


@given(pieces.map("".join))
def test_s77_no_token_is_left_in_any_text_and_nothing_else_changes(content: str) -> None:
    def walk(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [text for item in items for text in walk(item)]

    body: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": content}]},
            {"role": "tool", "tool_call_id": "<|im_end|>", "content": content, "n": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": content}}],
        "grammar": content,
    }
    plain = TOKENS.as_text(body)
    assert plain["grammar"] == content and plain["messages"][1]["tool_call_id"] == "<|im_end|>"
    for told in (*walk(plain["messages"][0]), plain["messages"][1]["content"], *walk(plain["tools"])):
        assert not [token for token in TOKENS.texts if token in told], told
        assert told.replace("\u200b", "") in (content.replace("\u200b", ""), "user", "text", "function", "f")
    if not [token for token in TOKENS.texts if token in content]:
        assert plain == body
