"""S116: messages that are forged, replayed, cut or too long change nothing, get a typed refusal and are counted."""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.threads import run_in_thread
from windlass.testing.clock import FakeClock
from windlass.training.federated import (
    Coordinator,
    FederatedConfig,
    MalformedMessage,
    OversizedMessage,
    Update,
    messages,
)
from windlass.training.federated.messages import PREFIX, SentUpdate, sign
from windlass.training.federated.service import Answer, Service

TOKEN = "a token of 32 characters or more"
SIZE = 4


def service(folder: Path | None = None, rounds: int = 0, quorum: int | None = None, **config: int) -> Service:
    made = Coordinator(msgspec.convert({"min_updates": 2, **config}, FederatedConfig), SIZE, folder=folder)
    return Service(made, TOKEN, rounds=rounds, quorum=quorum)


def code(answer: Answer) -> str:
    return "ok" if answer.status == 200 else msgspec.json.decode(answer.body)["code"]


async def enrol(to: Service, node: str = "a", nonce: str = "0" * 32) -> bytes:
    body = msgspec.json.encode(messages.Enrol(node, nonce))
    target = f"{PREFIX}/enrol"
    answer = await to.handle(
        "POST", target, sign(messages.derive_key(TOKEN, "enrol"), node, "POST", target, body), body
    )
    assert code(answer) == "ok", answer
    told = msgspec.json.decode(answer.body, type=messages.Enrolled)
    return messages.derive_key(TOKEN, "node", node, nonce, told.nonce)


def an_update(value: float = 1.0, round_: int = 0, step: int = 1, size: int = SIZE) -> bytes:
    return messages.encode_vector(SentUpdate(round_, step, 1, size), np.full(size, value, np.float32))


async def send(to: Service, key: bytes, body: bytes, node: str = "a") -> Answer:
    target = f"{PREFIX}/updates"
    return await to.handle("POST", target, sign(key, node, "POST", target, body), body)


async def test_a_good_message_is_taken_and_its_answer_signed() -> None:
    to = service()
    key = await enrol(to)
    headers = sign(key, "a", "POST", f"{PREFIX}/updates", an_update())
    answer = await to.handle("POST", f"{PREFIX}/updates", headers, an_update())
    assert (code(answer), to.coordinator.waiting(), to.coordinator.counts["accepted"]) == ("ok", ("a",), 1)
    expected = messages.mac_of_answer(key, headers["x-windlass-nonce"], 200, answer.body)
    assert answer.headers == [("x-windlass-mac", expected)]
    again = await send(to, key, an_update())
    assert msgspec.json.decode(again.body) == {"round": 0, "updates": 1, "again": True}
    assert to.coordinator.counts["accepted"] == 1


def test_keys_are_hkdf_and_codes_are_hmac_sha256() -> None:
    """Against RFC 5869 and RFC 2104 spelled out, so that a node in another language can be written from the page."""
    prk = hmac.new(b"windlass federated 1", TOKEN.encode(), sha256).digest()
    okm = hmac.new(prk, b"node\na\n" + b"0" * 32 + b"\n" + b"1" * 32 + b"\x01", sha256).digest()
    assert messages.derive_key(TOKEN, "node", "a", "0" * 32, "1" * 32) == okm
    with clock.use(FakeClock()):
        headers = sign(okm, "a", "POST", "/federated/v1/updates", b"body")
    lines = ["windlass-federated-1", "POST", "/federated/v1/updates", "a", headers["x-windlass-nonce"],
             headers["x-windlass-time"], sha256(b"body").hexdigest()]  # fmt: skip
    assert headers["x-windlass-mac"] == hmac.new(okm, "\n".join(lines).encode(), sha256).hexdigest()


UPDATES = f"{PREFIX}/updates"
AGGREGATE = f"{PREFIX}/aggregate"


def forgeries(
    headers: dict[str, str], body: bytes, key: bytes
) -> dict[str, tuple[str, str, str, dict[str, str], bytes]]:
    """Return by name what becomes of a good update on the way, each with the refusal it gets."""

    def changed(name: str, value: str) -> dict[str, str]:
        return {**headers, f"x-windlass-{name}": value}

    other_key = sign(b"x" * 32, "a", "POST", UPDATES, body)
    return {
        "body-bit": ("forged_message", "POST", UPDATES, headers, body[:-1] + bytes([body[-1] ^ 1])),
        "other-node": ("forged_message", "POST", UPDATES, changed("node", "b"), body),
        "nobody": ("unknown_node", "POST", UPDATES, changed("node", "zz"), body),
        "nonce": ("forged_message", "POST", UPDATES, changed("nonce", "f" * 32), body),
        "time": ("forged_message", "POST", UPDATES, changed("time", str(clock.now_ns() + 1)), body),
        "code": ("forged_message", "POST", UPDATES, changed("mac", "0" * 64), body),
        "key": ("forged_message", "POST", UPDATES, other_key, body),
        "other-place": ("forged_message", "POST", UPDATES, sign(key, "a", "POST", f"{PREFIX}/enrol", body), body),
        "other-method": ("forged_message", "POST", UPDATES, sign(key, "a", "GET", UPDATES, body), body),
        "node-as-operator": ("unknown_node", "POST", AGGREGATE, sign(key, "a", "POST", AGGREGATE, b""), b""),
        "operator-by-node-key": (
            "forged_message", "POST", AGGREGATE, sign(key, messages.OPERATOR, "POST", AGGREGATE, b""), b"",
        ),
        "unsigned": ("malformed_message", "POST", UPDATES, {}, body),
        "nonce-form": ("malformed_message", "POST", UPDATES, changed("nonce", "F" * 32), body),
        "line-end": ("malformed_message", "POST", UPDATES, changed("node", "a\nb"), body),
        "time-form": ("malformed_message", "POST", UPDATES, changed("time", "-1"), body),
        "query": ("malformed_message", "POST", f"{UPDATES}?x=1", headers, body),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(forgeries(dict[str, str](), b"?", b"")))
async def test_s116_a_forged_message_is_refused_typed_and_counted(name: str) -> None:
    to = service()
    key = await enrol(to)
    await enrol(to, "b", "1" * 32)
    body = an_update()
    headers = sign(key, "a", "POST", UPDATES, body)
    expected, method, target, sent, changed = forgeries(headers, body, key)[name]
    answer = await to.handle(method, target, sent, changed)
    assert (code(answer), answer.headers) == (expected, []), "and who cannot sign gets nothing signed"
    assert answer.status in (400, 401)
    assert (to.coordinator.waiting(), to.coordinator.counts) == ((), {expected: 1})
    assert code(await to.handle("POST", UPDATES, headers, body)) == "ok", "the true one is still good"


async def test_s116_a_replayed_message_is_refused() -> None:
    to = service()
    key = await enrol(to)
    headers = sign(key, "a", "POST", UPDATES, an_update())
    assert code(await to.handle("POST", UPDATES, headers, an_update())) == "ok"
    for _ in range(3):
        assert code(await to.handle("POST", UPDATES, headers, an_update())) == "replayed_message"
    assert to.coordinator.counts == {"accepted": 1, "replayed_message": 3}


async def test_s116_an_old_or_future_message_is_refused_also_when_the_clock_jumps() -> None:
    # Not on the fake loop: the coordinator works in a thread. Only what it reads of the time is fake.
    with clock.use(fake := FakeClock()):
        to = service()
        key = await enrol(to)
        sent = [sign(key, "a", "POST", UPDATES, an_update()) for _ in range(3)]
        fake.elapsed += 121.0
        assert code(await to.handle("POST", UPDATES, sent[0], an_update())) == "replayed_message"
        fake.jump(-121.0)
        # Its nonce was never seen and its time is right again, but one that was seen may have been forgotten.
        assert code(await to.handle("POST", UPDATES, sent[1], an_update())) == "replayed_message"
        fake.jump(+200.0)
        ahead = sign(key, "a", "POST", UPDATES, an_update())
        fake.jump(-190.0)
        assert code(await to.handle("POST", UPDATES, ahead, an_update())) == "replayed_message"
        fake.jump(+190.0)
        assert code(await to.handle("POST", UPDATES, ahead, an_update())) == "ok"


async def test_s116_a_message_of_an_earlier_round_is_refused() -> None:
    to = service()
    keys = {node: await enrol(to, node) for node in "ab"}
    assert [code(await send(to, keys[node], an_update(), node)) for node in "ab"] == ["ok", "ok"]
    assert to.coordinator.round == 1
    # Signed anew, as a node that was taken over could.
    assert code(await send(to, keys["a"], an_update(9.0))) == "stale_update"
    assert code(await send(to, keys["a"], an_update(9.0, round_=1, step=1))) == "stale_update"
    assert to.coordinator.weights.tolist() == [1.0] * SIZE
    assert to.coordinator.counts["stale_update"] == 2


async def test_s116_what_was_signed_before_a_restart_is_refused(tmp_path: Path) -> None:
    """The nonces that the killed coordinator had seen are gone with it."""
    to = service(tmp_path / "s")
    key = await enrol(to)
    headers = sign(key, "a", "POST", UPDATES, an_update())
    assert code(await to.handle("POST", UPDATES, headers, an_update())) == "ok"
    again = service(tmp_path / "s")
    assert code(await again.handle("POST", UPDATES, headers, an_update())) == "replayed_message"
    assert code(await send(again, key, an_update(2.0))) == "duplicate_update", "the key and the update are still known"
    assert again.coordinator.counts["accepted"] == 1


async def test_s116_truncated_messages_are_refused_at_every_length() -> None:
    to = service()
    key = await enrol(to)
    whole = an_update()
    for length in range(len(whole)):
        assert code(await send(to, key, whole[:length])) == "malformed_message", length
    assert to.coordinator.counts == {"malformed_message": len(whole)}
    assert code(await send(to, key, whole)) == "ok"


async def test_s116_oversized_messages_are_refused() -> None:
    to = service()
    key = await enrol(to)
    limit = messages.vector_limit(SIZE)
    assert to.limit("POST", UPDATES) == limit
    assert code(await send(to, key, an_update() + bytes(limit))) == "oversized_message"
    target = f"{PREFIX}/enrol"
    long = b'{"node":"a","nonce":"' + b"0" * 70_000 + b'"}'
    assert code(await to.handle("POST", target, sign(key, "a", "POST", target, long), long)) == "oversized_message"
    weights = f"{PREFIX}/weights"
    assert code(await to.handle("GET", weights, sign(key, "a", "GET", weights, b"x"), b"x")) == "oversized_message"
    assert to.coordinator.counts == {"oversized_message": 3}


@pytest.mark.parametrize(
    ("header", "weights"),
    [
        pytest.param(b'{"round":0,"step":1,"sample_count":1,"model_size":4,"x":1}', bytes(16), id="unknown-field"),
        pytest.param(b'{"round":0,"step":1,"sample_count":1}', bytes(16), id="missing-field"),
        pytest.param(b'{"round":"0","step":1,"sample_count":1,"model_size":4}', bytes(16), id="type"),
        pytest.param(b'{"round":0,"step":1,"sample_count":1,"model_size":5}', bytes(16), id="length-lies"),
        pytest.param(b'{"round":0,"step":1,"sample_count":1,"model_size":-4}', bytes(16), id="negative"),
        pytest.param(b'{"round":0,"step":1e99,"sample_count":1,"model_size":4}', bytes(16), id="number"),
        pytest.param(b"[" * 60_000, b"", id="nesting"),
        pytest.param(b"\xff\xfe", bytes(16), id="not-utf8"),
    ],
)
async def test_s116_messages_that_follow_no_schema_are_refused(header: bytes, weights: bytes) -> None:
    to = service()
    key = await enrol(to)
    body = b"WFL1" + len(header).to_bytes(4, "little") + header + weights
    assert code(await send(to, key, body)) == "malformed_message"
    assert to.coordinator.waiting() == ()


async def test_a_model_of_another_size_is_an_invalid_update_signed_by_the_coordinator() -> None:
    """Reference E's example on the wire: 2 weights for a larger model."""
    to = service()
    key = await enrol(to)
    answer = await send(to, key, an_update(size=2))
    assert (code(answer), answer.status, len(answer.headers)) == ("invalid_update", 400, 1)
    assert b"holds 2 weights, and the model has 4" in answer.body
    nan = messages.encode_vector(SentUpdate(0, 1, 1, SIZE), np.array([1, 2, 3, np.nan], np.float32))
    assert code(await send(to, key, nan)) == "invalid_update"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_s116_any_bytes_give_a_typed_refusal(data: bytes) -> None:
    for body in (data, b"WFL1" + data, b"WFL1\x02\x00\x00\x00{}" + data):
        with pytest.raises((MalformedMessage, OversizedMessage)):
            messages.decode_vector(body, SentUpdate, SIZE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.integers(0, 1 << 40))
def test_messages_with_weights_come_back_as_they_were(values: list[float], number: int) -> None:
    sent, vector = SentUpdate(number, number, 1, len(values), {"loss": 0.5}), np.array(values, np.float32)
    head, got = messages.decode_vector(messages.encode_vector(sent, vector), SentUpdate, len(values))
    assert head == sent and got.tobytes() == vector.tobytes()


async def test_enrolment_is_once_per_name_and_again_for_the_same_nonce() -> None:
    to = service()
    assert await enrol(to, "a", "1" * 32) == await enrol(to, "a", "1" * 32)
    body, target = msgspec.json.encode(messages.Enrol("a", "2" * 32)), f"{PREFIX}/enrol"
    enrolling = messages.derive_key(TOKEN, "enrol")
    assert code(await to.handle("POST", target, sign(enrolling, "a", "POST", target, body), body)) == "node_exists"
    assert (
        code(await to.handle("POST", target, sign(enrolling, "b", "POST", target, body), body)) == "malformed_message"
    )
    wrong = messages.derive_key("another token, as long as it is", "enrol")
    assert code(await to.handle("POST", target, sign(wrong, "a", "POST", target, body), body)) == "forged_message"
    assert to.coordinator.nodes == ("a",)


async def test_one_node_cannot_fill_the_memory_of_nonces() -> None:
    to = service()
    key = await enrol(to)
    target = f"{PREFIX}/round"
    codes = [code(await to.handle("GET", target, sign(key, "a", "GET", target, b""), b"")) for _ in range(4097)]
    assert (codes.count("ok"), codes[-1]) == (4096, "replayed_message")


async def test_a_client_that_leaves_does_not_stop_what_it_began() -> None:
    to = service(quorum=0)
    key = await enrol(to)
    task = asyncio.create_task(send(to, key, an_update()))
    while not task.done() and not to.coordinator.waiting():
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])
    await to.close()
    # Either it was cancelled before anything began, or the update is whole.
    assert to.coordinator.counts["accepted"] == len(to.coordinator.waiting())
    assert code(await send(to, key, an_update())) == "ok"
    assert to.coordinator.counts["accepted"] == 1


async def test_many_at_once_lose_and_double_nothing() -> None:
    to = service(min_updates=8)
    keys = {f"n{i}": await enrol(to, f"n{i}") for i in range(8)}
    sent = [send(to, key, an_update(float(i)), node) for i, (node, key) in enumerate(keys.items()) for _ in range(3)]
    codes = [code(answer) for answer in await asyncio.gather(*sent)]
    assert to.coordinator.round == 1
    assert to.coordinator.weights.tolist() == [3.5] * SIZE
    assert to.coordinator.counts["accepted"] == 8
    assert set(codes) <= {"ok", "stale_update"} and codes.count("ok") >= 8


async def test_the_operator_ends_rounds_and_sees_the_counts() -> None:
    to = service(quorum=0, min_updates=1, rounds=1)
    key = await enrol(to)
    operator = messages.derive_key(TOKEN, "operator")

    async def ask(method: str, what: str) -> Answer:
        target = f"{PREFIX}/{what}"
        return await to.handle(method, target, sign(operator, "@operator", method, target, b""), b"")

    assert code(await ask("POST", "aggregate")) == "insufficient_updates"
    await send(to, key, an_update(3.0))
    assert to.coordinator.round == 0
    assert code(await ask("POST", "aggregate")) == "ok"
    status = msgspec.json.decode((await ask("GET", "status")).body, type=messages.Status)
    assert (status.round, status.done, status.nodes, status.counts) == (1, True, ["a"], {"accepted": 1, "rounds": 1})
    assert to.finished.is_set()
    assert code(await send(to, key, an_update(round_=1, step=2))) == "stale_update", "all rounds are over"
    assert code(await ask("POST", "aggregate")) == "insufficient_updates"


async def test_a_round_that_was_full_when_it_was_killed_is_ended_at_the_next_start(tmp_path: Path) -> None:
    to = service(tmp_path / "s", quorum=0)
    for node in "ab":
        await send(to, await enrol(to, node), an_update(2.0), node)
    again = service(tmp_path / "s")
    await again.resume()
    assert (again.coordinator.round, again.coordinator.weights.tolist()) == (1, [2.0] * SIZE)


def test_services_need_a_token_and_numbers_that_can_be() -> None:
    made = Coordinator(FederatedConfig(min_updates=2), SIZE)
    for bad in ({"token": "short"}, {"quorum": 1}, {"quorum": 65}, {"rounds": -1}, {"window": 0.0}):
        with pytest.raises(ConfigError):
            Service(made, **{"token": TOKEN, **bad})  # pyright: ignore[reportArgumentType]


async def test_reading_the_weights_never_mixes_two_rounds() -> None:
    made = Coordinator(FederatedConfig(), 50_000)
    made.register_node("a")
    seen: list[tuple[int, set[float]]] = []

    def rounds() -> None:
        for step in range(1, 30):
            value = np.full(50_000, float(step), np.float32)
            made.submit_update(Update(node_id="a", step=step, weights=value))
            made.aggregate()

    working = asyncio.create_task(run_in_thread(rounds))
    while not working.done():
        number, weights = made.current()
        seen.append((number, set(np.unique(weights).tolist())))
        await asyncio.sleep(0)
    await working
    assert len(seen) > 1 and all(values == {float(number)} for number, values in seen)
