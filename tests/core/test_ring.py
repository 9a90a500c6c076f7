"""Short-term memory: limits, pairs of calls and responses, and what fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, Uri, assistant, user
from windlass.core.ring import Ring, count_tokens


def calls(*ids: str) -> Message:
    return Message("assistant", tuple([ToolCall(id_, "look", {}) for id_ in ids]))


def response(id_: str, text: str = "found") -> Message:
    return Message("tool", (ToolResponse(id_, text),))


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


def test_tokens_are_counted_as_reference_b_does() -> None:
    blob = Blob(b"x" * 9000, "application/pdf", "document")
    assert count_tokens(user("12345")) == 2 and count_tokens(user("")) == 0
    assert count_tokens(user([Blob(b"x" * 9000, "image/png"), Uri("https://a.example/b.png")])) == 170
    assert count_tokens(user([blob, "1234"])) == 51
    assert count_tokens(Message("assistant", (ToolCall("1", "look", {"a": 1}),))) == 3
    assert count_tokens(Message("tool", (ToolResponse("1", (Text("1234"), Blob(b"", "image/png"))),))) == 86


def test_the_oldest_go_first_by_messages_and_by_tokens() -> None:
    ring = Ring(max_messages=3)
    ring.extend([user(str(number)) for number in range(10)])
    assert texts(list(ring)) == ["7", "8", "9"] and len(ring) == 3
    ring = Ring(max_tokens=5)
    ring.extend([user("1234" * 2), user("1234" * 2), user("1234" * 2)])
    assert len(ring) == 2 and ring.tokens == 4


def test_the_newest_is_kept_also_when_it_is_too_large() -> None:
    ring = Ring(max_tokens=5)
    ring.extend([user("a"), user("b" * 100)])
    assert texts(list(ring)) == ["b" * 100] and ring.tokens == 25


def test_calls_and_responses_go_together() -> None:
    ring = Ring(max_messages=4)
    ring.extend([user("ask"), calls("1", "2"), response("1"), response("2"), assistant("done")])
    assert [message.role for message in ring] == ["assistant", "tool", "tool", "assistant"]
    ring.add(user("more"))
    assert texts(list(ring)) == ["done", "more"]


def test_what_came_between_a_call_and_its_response_stays_with_them() -> None:
    ring = Ring(max_messages=3)
    ring.extend([calls("1"), user("hurry"), response("1")])
    assert [message.role for message in ring] == ["assistant", "user", "tool"]
    ring.add(assistant("done"))
    assert [message.role for message in ring] == ["assistant"] and ring.tokens == 1


def test_a_response_whose_call_is_gone_is_not_kept() -> None:
    ring = Ring(max_messages=1)
    ring.extend([calls("1"), user("next")])
    assert not ring.add(response("1")) and ring.add(user("last"))
    assert texts(list(ring)) == ["last"]


def test_context_is_the_longest_run_of_newest_units_that_fits() -> None:
    ring = Ring()
    ring.extend([user("1234"), calls("1"), response("1", "12345678"), assistant("1234")])
    sizes = [count_tokens(message) for message in ring]
    assert sizes == [1, 2, 2, 1]
    assert ring.context(0) == [] and len(ring.context(1)) == 1 and len(ring.context(4)) == 1
    assert len(ring.context(5)) == 3 and ring.context(6) == list(ring)


def test_looking_into_it() -> None:
    ring = Ring()
    ring.extend([user("Alpha"), assistant("beta"), user("gamma alpha")])
    assert texts(ring.last(2)) == ["beta", "gamma alpha"] and ring.last(0) == []
    assert texts(ring.by_role("user")) == ["Alpha", "gamma alpha"] == texts(ring.search("ALPHA"))
    ring.clear()
    assert (len(ring), ring.tokens, list(ring)) == (0, 0, [])


@pytest.mark.parametrize("limits", [{"max_messages": 0}, {"max_tokens": -1}])
def test_a_limit_below_one_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Ring(**limits)


steps = st.lists(
    st.one_of(st.text(max_size=20).map(user), st.sampled_from("abc").map(calls), st.sampled_from("abc").map(response))
)


@given(steps, st.integers(1, 6), st.integers(1, 20), st.integers(0, 20))
def test_no_half_pair_no_overrun_and_the_order_of_arrival(
    messages: list[Message], most: int, tokens: int, room: int
) -> None:
    ring = Ring(most, tokens)
    kept = [message for message in messages if ring.add(message)]
    held = list(ring)
    assert held == kept[len(kept) - len(held) :]
    assert ring.tokens == sum(map(count_tokens, held)) and len(ring) == len(held)
    for some in (held, ring.context(room)):
        asked = {call.id for message in some for call in message.tool_calls}
        answered = [part.id for message in some for part in message.parts if isinstance(part, ToolResponse)]
        assert set(answered) <= asked
    assert sum(map(count_tokens, ring.context(room))) <= room
    assert held[len(held) - len(ring.context(room)) :] == ring.context(room)
