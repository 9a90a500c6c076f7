"""The built-in hooks, each in runs of a scripted model."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.helpers import Tool
from windlass.agent.agent import Agent
from windlass.agent.builtin_hooks import (
    Ranked,
    caching_hooks,
    combine_hooks,
    logging_hooks,
    metrics_hooks,
    rate_limit_hooks,
    tracing_hooks,
)
from windlass.agent.hooks import HookContext
from windlass.agent.hooks_redaction import KINDS, Redactor, redaction_hooks
from windlass.core.config import Config
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.messages import Blob, Text, ToolResponse, Uri
from windlass.core.ports import ToolContext, ToolResult
from windlass.testing.clock import FakeClock, run_with_fake_clock
from windlass.testing.scripted import ScriptedProvider, call

TEXT: dict[str, Any] = {"type": "string"}


def answers(agent: Agent) -> list[tuple[Any, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(part.response, part.status) for part in parts if isinstance(part, ToolResponse)]


def counter(name: str = "read") -> Tool:
    """A tool whose answer tells how often it was called."""

    def body(args: dict[str, Any], ctx: ToolContext) -> str:
        return f"{args.get('path', '')} {len(tool.inputs)}"

    tool = Tool(name, body, path=TEXT)
    return tool


# -- putting together -------------------------------------------------------------------------------------------------


def test_mappings_are_put_together_by_priority() -> None:
    def one(ctx: HookContext) -> None: ...
    def two(ctx: HookContext) -> None: ...

    first, last = Ranked(one, -5), Ranked(two, 5)
    made = combine_hooks({"tool:gate": [last, one]}, {"tool:gate": two, "usage": one}, {"tool:gate": first})
    assert made == {"tool:gate": [first, one, two, last], "usage": [one]}
    with pytest.raises(UnknownNameError):
        combine_hooks({"tool:gat": one})
    everything = combine_hooks(
        redaction_hooks(), caching_hooks(["a"]), rate_limit_hooks(1), logging_hooks(), metrics_hooks(Counter())
    )
    names = [getattr(handler, "__qualname__", "").split(".")[0] for handler in everything["tool:gate"]]
    assert names == ["caching_hooks", "rate_limit_hooks"], "what a cache answers is no call"
    names = [getattr(handler, "__qualname__", "").split(".")[0] for handler in everything["tool:transform"]]
    assert names == ["caching_hooks", "redaction_hooks"]
    Agent(ScriptedProvider(["x"]), hooks=everything)


# -- logging ----------------------------------------------------------------------------------------------------------


async def test_s59_logs_are_one_line_each_without_contents(caplog: pytest.LogCaptureFixture) -> None:
    def body(args: dict[str, Any], ctx: ToolContext) -> str:
        if args["path"] == "bad":
            raise ValueError("no\nsuch sk-canary-0123456789abcdef")
        return "secret\n\x1b[2Jsk-canary-0123456789abcdef"

    def run(**options: Any) -> Agent:
        model = ScriptedProvider([[call("read", path="ok"), call("read", path="bad")], "Done."])
        return Agent(model, tools=[Tool("read", body, path=TEXT)], hooks=combine_hooks(logging_hooks(**options)))

    with caplog.at_level(logging.INFO, "windlass.agent"):
        await run().run("Hello sk-canary")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "run started" and lines[-1].startswith("run ended: ")
    assert sum(line.startswith("tool read called") for line in lines) == 2
    assert sum(line.startswith("tool read answered ") for line in lines) == 2
    assert [r.levelname for r in caplog.records if r.getMessage() == "tool read failed: ValueError"] == ["WARNING"]
    assert "turn 0 used 10 in, 5 out" in lines or "turn 1 used 10 in, 5 out" in lines
    assert "canary" not in caplog.text and all("\n" not in line for line in lines)
    assert len({vars(record)["run_id"] for record in caplog.records}) == 1

    caplog.clear()
    with caplog.at_level(logging.INFO, "windlass.agent"):
        await run(content=True, redact=Redactor().redact).run("Hi\nthere")
    lines = [record.getMessage() for record in caplog.records]
    assert "run started Hi\\nthere" in lines and "canary" not in caplog.text
    assert any("secret\\n[redacted:api-key]" in line for line in lines)


# -- counts -----------------------------------------------------------------------------------------------------------


async def test_counts_of_what_no_event_tells() -> None:
    counts: Counter[str] = Counter()
    number = Tool("number", lambda args, ctx: str(args["n"]), n={"type": "integer"})
    calls = [call("number", n="3"), call("number", n="x"), call("nothing"), call("other")]
    await Agent(ScriptedProvider([calls, "Done."]), tools=[number], hooks=metrics_hooks(counts)).run("Go")
    assert counts == {"tool_coerced:number": 1, "tool_rejected:number": 1, "tool_unknown": 2}


# -- spans ------------------------------------------------------------------------------------------------------------


async def test_spans_lie_within_each_other() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    def body(args: dict[str, Any], ctx: ToolContext) -> str:
        raise ValueError("no")

    kept, tracing = InMemorySpanExporter(), TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(kept))
    model = ScriptedProvider([[call("read", path="a"), call("bad")], "Done."])
    hooks = tracing_hooks(tracing.get_tracer("test"))
    agent = Agent(model, tools=[counter(), Tool("bad", body)], hooks=hooks)
    await agent.run("Go")
    spans = kept.get_finished_spans()
    named = {span.name: span for span in spans}
    assert sorted(span.name for span in spans) == [
        "chat",
        "chat",
        "execute_tool bad",
        "execute_tool read",
        "invoke_agent",
    ]
    root = named["invoke_agent"]
    assert root.parent is None and root.attributes is not None and root.attributes["gen_ai.conversation.id"]
    home = root.get_span_context()
    assert home is not None
    assert all(span.parent is not None and span.parent.span_id == home.span_id for span in spans if span is not root)
    about = named["execute_tool bad"].attributes
    assert about is not None and about["error.type"] == "ValueError" and about["gen_ai.tool.name"] == "bad"
    usage = named["chat"].attributes
    assert usage is not None and usage["gen_ai.usage.input_tokens"] == 10
    tracing.shutdown()


async def test_a_broken_run_leaves_no_span_open() -> None:
    class Span:
        def __init__(self, name: str) -> None:
            self.name, self.ended = name, 0

        def end(self) -> None:
            self.ended += 1

        def set_attribute(self, name: str, value: Any) -> None: ...
        def get_span_context(self) -> Any: ...

    class Tracer:
        def __init__(self) -> None:
            self.spans: list[Span] = []

        def start_span(self, name: str, **_: Any) -> Span:
            self.spans.append(Span(name))
            return self.spans[-1]

    tracer = Tracer()
    agent = Agent(ScriptedProvider([RuntimeError("broken")]), hooks=tracing_hooks(tracer))
    with pytest.raises(RuntimeError, match="broken"):
        await agent.run("Go")
    assert [(span.name, span.ended) for span in tracer.spans] == [("invoke_agent", 1), ("chat", 1)]


# -- caching ----------------------------------------------------------------------------------------------------------


async def run_calls(*steps: Any, tools: list[Tool], hooks: Any, agent: Agent | None = None) -> list[Any]:
    agent = agent or Agent(ScriptedProvider([*steps, "Done."]), tools=tools, hooks=hooks)
    await agent.run("Go")
    return [text for text, _ in answers(agent)]


async def test_an_equal_call_is_answered_from_memory() -> None:
    read, counts = counter(), Counter[str]()
    hooks = caching_hooks(["read"], counts=counts)
    steps = [call("read", path="a"), call("read", path="a"), call("read", path="b"), call("read", path="a")]
    assert await run_calls(*steps, tools=[read], hooks=hooks) == ["a 1", "a 1", "b 2", "a 1"]
    assert counts == {"hits": 2, "misses": 2}
    # S58: another session never sees it.
    assert await run_calls(call("read", path="a"), tools=[read], hooks=hooks) == ["a 3"]


async def test_what_changes_files_empties_the_cache() -> None:
    read, write = counter(), counter("write_file")
    steps = [call("read", path="a"), call("write_file", path="a"), call("read", path="a"), call("read", path="a")]
    assert await run_calls(*steps, tools=[read, write], hooks=caching_hooks(["read"])) == ["a 1", "a 1", "a 2", "a 2"]


async def test_failures_and_other_tools_are_not_kept() -> None:
    def body(args: dict[str, Any], ctx: ToolContext) -> Any:
        if len(flaky.inputs) == 1:
            raise ValueError("once")
        return ToolResult("no", "error") if len(flaky.inputs) == 2 else ""

    flaky, other = Tool("flaky", body), counter("other")
    steps = [
        call("flaky"),
        call("flaky"),
        call("flaky"),
        call("flaky"),
        call("other", path="x"),
        call("other", path="x"),
    ]
    said = await run_calls(*steps, tools=[flaky, other], hooks=caching_hooks(["flaky"]))
    assert said == ["Tool error: ValueError: once", "no", "", "", "x 1", "x 2"]
    assert len(flaky.inputs) == 3


async def test_a_cached_answer_goes_through_the_transforms_again_and_parts_stay_parts() -> None:
    picture = Blob(b"png", "image/png")

    def body(args: dict[str, Any], ctx: ToolContext) -> Any:
        return ToolResult((Text("key sk-0123456789abcdefghijkl"), picture))

    look = Tool("look", body)
    hooks = combine_hooks(caching_hooks(["look"]), redaction_hooks())
    said = await run_calls(call("look"), call("look"), tools=[look], hooks=hooks)
    assert said == [(Text("key [redacted:api-key]"), picture)] * 2 and len(look.inputs) == 1


def test_the_cache_is_bounded_in_time_number_and_bytes() -> None:
    fake = FakeClock()

    async def main() -> None:
        read = counter()
        hooks = caching_hooks(["read"], ttl=60, size=2)

        async def later(_: Any) -> Any:
            fake.elapsed += 61
            return call("read", path="c")

        steps = [call("read", path=path) for path in ("a", "b", "a", "c", "b", "c")]
        said = await run_calls(*steps, later, tools=[read], hooks=hooks)
        assert said == ["a 1", "b 2", "a 1", "c 3", "b 4", "c 3", "c 5"]
        big = Tool("big", lambda args, ctx: "x" * 100)
        assert (
            len(await run_calls(call("big"), call("big"), tools=[big], hooks=caching_hooks(["big"], max_bytes=50))) == 2
        )
        assert len(big.inputs) == 2

    run_with_fake_clock(main, fake)
    refused: list[dict[str, Any]] = [{"ttl": 0}, {"size": 0}, {"max_bytes": -1}]
    for bad in refused:
        with pytest.raises(ConfigError):
            caching_hooks(["x"], **bad)


# -- rate limits ------------------------------------------------------------------------------------------------------


def test_calls_too_many_are_blocked_until_the_period_is_over() -> None:
    fake = FakeClock()

    async def main() -> None:
        read, other = counter(), counter("other")

        async def later(_: Any) -> Any:
            fake.elapsed += 41
            return call("read", path="d")

        steps = [call("read", path="a"), call("read", path="b"), call("read", path="c"), call("other", path="x"), later]
        hooks = rate_limit_hooks({"read": 2}, period=40)
        said = await run_calls(*steps, tools=[read, other], hooks=hooks)
        assert said[2] == "Blocked: rate limit: 2 calls of read in 40 s; try again in 40 s"
        assert said[:2] + said[3:] == ["a 1", "b 2", "x 1", "d 3"]

    run_with_fake_clock(main, fake)


def test_calls_too_many_wait_for_their_turn() -> None:
    fake = FakeClock()

    async def main() -> None:
        read = counter()
        hooks = rate_limit_hooks(2, period=10, over="wait", max_wait=25)
        said = await run_calls([call("read", path=str(n)) for n in range(9)], tools=[read], hooks=hooks)
        # Two a period: two at once, two after ten seconds, two after twenty; the others would wait too long.
        assert [text.startswith("Blocked: rate limit") for text in said] == [False] * 6 + [True] * 3
        assert fake.elapsed == pytest.approx(20)

    run_with_fake_clock(main, fake)
    for bad in ({"limits": 0}, {"limits": {"a": 0}}, {"limits": 1, "period": 0}, {"limits": 1, "over": "x"}):
        with pytest.raises(ConfigError):
            rate_limit_hooks(**bad)  # pyright: ignore[reportArgumentType]


async def test_what_a_cache_answers_does_not_count() -> None:
    read = counter()
    hooks = combine_hooks(rate_limit_hooks({"read": 1}), caching_hooks(["read"]))
    steps = [call("read", path="a"), call("read", path="a"), call("read", path="b")]
    said = await run_calls(*steps, tools=[read], hooks=hooks)
    assert said[:2] == ["a 1", "a 1"] and said[2].startswith("Blocked: rate limit")


# -- secrets ----------------------------------------------------------------------------------------------------------

_ID = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC2dE3f"
CANARIES = {
    "api-key": f"sk-proj-{_ID}",
    "anthropic": "sk-ant-api03-abcdefgh",
    "github": f"ghp_{_ID[:36]}",
    "gitlab": f"glpat-{_ID[:20]}",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "slack": "xoxb-123456789012-abcdefABCDEF",
    "google": f"AIza{_ID[:35]}",
    "stripe": f"sk_live_{_ID[:24]}",
    "huggingface": f"hf_{_ID[:34]}",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{_ID}",
    "npm": f"npm_{_ID[:36]}",
    "private-key": "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIE"
    + _ID
    + "\n-----END RSA PRIVATE KEY-----",
}
CONFIGURED = "my own kéy/0123456789"


@pytest.mark.parametrize("kind", CANARIES)
def test_known_shapes_are_taken_out(kind: str) -> None:
    secret = CANARIES[kind]
    for text in ("{}", "key={}", '"{}"', "a: {}, b", "line\n{}\nline", "({})", "x={}&y=1", "`{}`"):
        redactor = Redactor()
        seen = redactor.redact(text.replace("{}", secret))
        assert seen == text.replace("{}", f"[redacted:{kind}]"), seen
        assert redactor.redact(seen) == seen and redactor.counts == {kind: 1}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer [redacted:bearer]"),
        ("authorization:Basic dXNlcjpwYXNz", "authorization:Basic [redacted:bearer]"),
        ('{"Authorization": "Bearer abcdefgh12345"}', '{"Authorization": "Bearer [redacted:bearer]"}'),
        ("curl -H 'Authorization: token abcdefgh'", "curl -H 'Authorization: token [redacted:bearer]'"),
        ("bearer abcdefghijklmnopqrstuvwx", "bearer [redacted:bearer]"),
        ("\x1b[31mghp_" + _ID[:20] + "\x1b[1m" + _ID[20:36] + "\x1b[0m", "[redacted:github]"),
        (json.dumps("a\nghp_" + _ID[:36] + "\tb"), '"a\\n[redacted:github]\\tb"'),
        ("?q=key%3Dghp_" + _ID[:36] + "%26", "?q=key%3D[redacted:github]%26"),
        ("X-Api-Key: 0123456789abcdef!", "X-Api-Key: [redacted:api-key]"),
        ("export MY_API_KEY=0123456789abcdef", "export MY_API_KEY=[redacted:api-key]"),
        ("postgres://me:p4ss@db/x http://a/b:c@d", "postgres://me:[redacted:password]@db/x http://a/b:c@d"),
        ("https://hooks.slack.com/services/T0123456789/B01234567/abcdef", "https://hooks.slack.com/services/[redacted:slack]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEabc\nDEF=\nend of file", "[redacted:private-key]"),
        ('"-----BEGIN EC PRIVATE KEY-----\\nMHcC\\n-----END EC PRIVATE KEY-----\\n"', '"[redacted:private-key]\\n"'),
        ("123456789:AA" + _ID[:33], "[redacted:telegram]"),
    ],
)  # fmt: skip
def test_secrets_by_their_surroundings(text: str, seen: str) -> None:
    redactor = Redactor()
    assert redactor.redact(text) == seen or (text.endswith("end of file") and "MII" not in redactor.redact(text))
    assert Redactor().redact(redactor.redact(text)) == redactor.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn-something-quite-long-without-digits", "task-sk-1", "AKIA", "the bearer of bad news is here today",
        "authorization: none", "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "http://host:8080/a@b", "eyJ",
        "api_key=os.environ", "def api_key(self) -> str:", "AIza",
        "https://example.com/a/b?c=d", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().redact(text) == text


def test_keys_of_the_configuration_and_given_values() -> None:
    config = Config(
        environ={"OPENAI_API_KEY": CONFIGURED, "AWS_SECRET_ACCESS_KEY": "aws/secret+value=", "GROQ_API_KEY": "short"},
        providers={"mine": {"base_url": "http://x", "api_key": "another-own-key"}},
    )
    redactor = Redactor(config=config, values=["given by hand"])
    text = f"{CONFIGURED} my%20own%20k%C3%A9y%2F0123456789 aws/secret+value= another-own-key given by hand short"
    assert redactor.redact(text) == " ".join(["[redacted:key]"] * 5) + " short"


def test_random_words_only_where_asked() -> None:
    word = "q7Lx2PvR9tYw3NzB8mKc5HdF1sJg6AeU"
    assert Redactor().redact(word) == word
    assert Redactor(entropy=True).redact(f"a {word} b") == "a [redacted:random] b"
    for plain in ("da39a3ee5e6b4b0d3255bfef95601890afd80709", "a_rather_long_name_of_a_function", "A" * 40, "x" * 300):
        assert Redactor(entropy=True).redact(plain) == plain


async def test_s54_twelve_canaries_reach_neither_model_nor_history() -> None:
    env = "\n".join([f"{kind.upper()}={secret}" for kind, secret in CANARIES.items()]) + f"\nOWN={CONFIGURED}"

    def body(args: dict[str, Any], ctx: ToolContext) -> Any:
        if args["path"] == "error":
            raise ValueError(env)
        if args["path"] == "parts":
            return ToolResult((Text(env), Uri(f"https://x/?k={CANARIES['github']}"), Blob(b"sk-", "image/png")))
        return json.dumps(env) if args["path"] == "json" else env

    config = Config(environ={"OPENAI_API_KEY": CONFIGURED})
    steps = [call("read", path=path) for path in (".env", "json", "error", "parts")]
    model = ScriptedProvider([steps, "Done."])
    agent = Agent(model, tools=[Tool("read", body, path=TEXT)], hooks=redaction_hooks(config))
    await agent.run("Read")
    everything = repr(model.requests) + repr(agent.messages)
    secrets = [*CANARIES.values(), CONFIGURED]
    assert [secret for secret in secrets if secret in everything or _ID in everything] == []
    assert everything.count("[redacted:private-key]") >= 4 and "redacted:key" in everything
    assert [status for _, status in answers(agent)] == ["ok", "ok", "error", "ok"]


HOSTILE = [
    "sk-", "sk-a", "eyJ", "eyJaaaaaaaaa.", "eyJaaaaaaaaaa.eyJaaaa.", "\\neyJaaaaaaaa", "%3DeyJaaaaaaaaaaa",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", "-----END ", "-----BEGIN A A A A PRIVATE KEY", "-----END X-----",
    "-----BEGIN PRIVATE KEY-----x-----END X-----", "authorization", "authorization:", "authorization: ", "bearer ",
    "Bearer\n", "api_key", "apikey=", "://", "://a:", "://a:b", "a@", "ghp_", "AKIA", "xoxb-", "A", "a1", "AIza", "SG.",
    "SG.aaaaaaaaaaaaaaaaa.", "hooks.slack.com/services/", "123456789:AA", " ", "\n", "x-", "-", "_", "aA1", "sk-ant-",
    "dop_v1_", "\x1b[", "\x1b]",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_megabyte_of_hostile_text_takes_linear_time(piece: str) -> None:
    redactor = Redactor(config=Config(environ={"OPENAI_API_KEY": "aaaaaaaaaaaaaaab"}), entropy=True)

    def took(size: int) -> float:
        text = piece * (size // len(piece))
        begun = time.process_time()
        redactor.redact(text)
        return time.process_time() - begun

    # Sixteen times the text: quadratic work would take 256 times as long.
    small, large = max(took(1 << 16), 0.004), took(1 << 20)
    assert large < 80 * small, (small, large)


@given(st.lists(st.sampled_from([*HOSTILE, *CANARIES.values(), "word", "\\n", '"', "=", "MIIE"]), max_size=20))
def test_fuzz_redaction_is_stable(pieces: list[str]) -> None:
    text = " ".join(pieces)
    once = Redactor().redact(text)
    assert Redactor().redact(once) == once
    assert not any(secret in once for secret in CANARIES.values())


def test_the_table_says_what_it_looks_for() -> None:
    assert len({kind.pattern.pattern for kind in KINDS}) == len(KINDS)
    assert all(kind.pattern.groups <= 1 for kind in KINDS)
