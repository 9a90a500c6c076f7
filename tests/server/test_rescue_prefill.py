"""The sixteenth fault where it bites: a begun stream is to be continued by a target that refuses to."""

from __future__ import annotations

import openai
import pytest

from tests.server.conftest import StartGateway

WHOLE = "one two three four five six seven eight nine ten"


async def _ask(url: str) -> tuple[str, list[str]]:
    text, reasons = "", list[str]()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="r", messages=[{"role": "user", "content": "count"}], stream=True
        )
        try:
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reasons += [choice.finish_reason] if choice.finish_reason else []
        except openai.APIError as error:
            reasons.append(f"error {error.code}")
    return text, reasons


async def test_a_target_that_refuses_a_prefill_is_followed_by_one_that_takes_it(gateway: StartGateway) -> None:
    up = await gateway(routes={"r": ["fault:cut?tokens=3", "fault:prefill-rejected", "fault:ok"]})
    assert await _ask(up.url) == (WHOLE, ["stop"])


@pytest.mark.parametrize("cut", [1, 3])
async def test_where_every_other_target_refuses_the_stream_ends_with_an_error(gateway: StartGateway, cut: int) -> None:
    up = await gateway(routes={"r": [f"fault:cut?tokens={cut}", "fault:prefill-rejected"]})
    text, reasons = await _ask(up.url)
    assert WHOLE.startswith(text) and text and len(text) < len(WHOLE)
    assert len(reasons) == 1 and reasons[0].startswith("error ")
