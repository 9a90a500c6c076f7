"""Bedrock over a loopback server that checks every signature with botocore itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config as SdkConfig
from botocore.credentials import Credentials, RefreshableCredentials

from windlass.agent.agent import Agent
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ConfigError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    UnsupportedInputError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Message, Reasoning, Text, ToolCall, ToolResponse, user
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.core.threads import run_in_thread
from windlass.core.usage import Usage
from windlass.providers import bedrock
from windlass.providers.bedrock import canonical_model
from windlass.providers.retry import Retrying
from windlass.providers.vendors import VENDORS
from windlass.testing.faults import FaultServer, Fin, Received, Reply, Step, Stream
from windlass.tools.function import tool
from windlass.wire.base import DecodedRequest
from windlass.wire.bedrock import DIALECT
from windlass.wire.eventstream import HeaderValue, encode_frame

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session//token+=="
KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
ARN = f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{CLAUDE}"
MODELS = ["m", "amazon.nova-micro-v1:0", CLAUDE, ARN, "arn:aws:sagemaker:us-east-1:123456789012:endpoint/e-1"]
FRAMES = {"content-type": "application/vnd.amazon.eventstream"}


def event(name: str, **fields: Any) -> bytes:
    headers: dict[str, HeaderValue] = {
        ":event-type": name, ":content-type": "application/json", ":message-type": "event"
    }  # fmt: skip
    return encode_frame(headers, json.dumps(fields).encode())


def exception(kind: str, message: str) -> bytes:
    headers: dict[str, HeaderValue] = {":exception-type": kind, ":message-type": "exception"}
    return encode_frame(headers, json.dumps({"message": message}).encode())


def delta(**fields: Any) -> bytes:
    return event("contentBlockDelta", delta=fields, contentBlockIndex=0)


START, STOP = event("messageStart", role="assistant"), event("messageStop", stopReason="end_turn")
TAIL = event("metadata", usage={"inputTokens": 4, "outputTokens": 3, "cacheReadInputTokens": 16}, metrics={})
HELLO = [START, delta(text="Hel"), delta(text="lo"), event("contentBlockStop", contentBlockIndex=0), STOP, TAIL]
ANSWER = Stream(HELLO, headers=FRAMES)
ASKED = Request(model="amazon.nova-micro-v1:0", messages=[user("hi")])


def refusal(status: int, kind: str, message: str = "no") -> Reply:
    headers = {"content-type": "application/json", "x-amzn-errortype": kind}
    return Reply(status, json.dumps({"message": message}).encode(), headers)


def config(server: FaultServer, environ: Mapping[str, str] | None = None) -> Config:
    return Config.from_environment({"BEDROCK_BASE_URL": server.url, **(KEYS if environ is None else environ)})


def provider_of(server: FaultServer, environ: Mapping[str, str] | None = None) -> Any:
    provider, _, _ = registry.model("bedrock:m", config(server, environ))
    return Retrying(provider.provider, base=0.001)


async def ask(provider: Any, request: Request = ASKED) -> tuple[list[Item], Finish]:
    items: list[Item] = [item async for item in provider.stream(request)]
    assert isinstance(items[-1], Finish)
    return items, items[-1]


def signed_by(
    request: Received, *, key: str = KEY, secret: str = SECRET, token: str | None = None, region: str = "us-east-1"
) -> bool:
    """Compute the signature as botocore does, from what arrived, and compare."""
    algorithm, _, rest = request.headers["authorization"].partition(" ")
    fields = dict(part.strip().split("=", 1) for part in rest.split(","))
    moment = request.headers["x-amz-date"]
    assert (algorithm, fields["Credential"]) == (
        "AWS4-HMAC-SHA256",
        f"{key}/{moment[:8]}/{region}/bedrock/aws4_request",
    )
    assert request.headers.get("x-amz-security-token") == token
    names = fields["SignedHeaders"].split(";")
    assert {"host", "x-amz-date", *(["x-amz-security-token"] if token else [])} <= set(names)
    headers = {name: request.headers[name] for name in names}
    url = f"http://{request.headers['host']}{request.target}"
    asked: Any = AWSRequest(method=request.method, url=url, headers=headers, data=request.body)
    asked.context["timestamp"] = moment
    auth: Any = SigV4Auth(Credentials(key, secret, token), "bedrock", region)
    text = auth.string_to_sign(asked, auth.canonical_request(asked))
    return auth.signature(text, asked) == fields["Signature"]


# ---------------------------------------------------------------------------------------------------------- signing


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("token", [None, TOKEN])
async def test_every_request_is_signed_as_botocore_would(model: str, token: str | None) -> None:
    environ = {**KEYS, **({"AWS_SESSION_TOKEN": token} if token else {})}
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, environ)
        items, finish = await ask(provider, Request(model=model, messages=[user("hi é")], system="S"))
        await provider.close()
        (request,) = server.requests
    assert signed_by(request, token=token)
    assert request.target.startswith("/model/") and request.target.endswith("/converse-stream")
    assert request.target.count("/") == 3 and ":" not in request.target
    assert [item.text for item in items if isinstance(item, TextItem)] == ["Hel", "lo"]
    assert (finish.message.text, finish.usage) == ("Hello", Usage(20, 3, 16))


@pytest.mark.parametrize("model", MODELS[:4])
async def test_boto3_asks_for_the_same_path_and_passes_the_same_check(model: str) -> None:
    def by_sdk(url: str) -> None:
        session: Any = boto3.Session(aws_access_key_id=KEY, aws_secret_access_key=SECRET, aws_session_token=TOKEN)
        options = SdkConfig(retries={"max_attempts": 0})
        sdk: Any = session.client("bedrock-runtime", region_name="us-east-1", endpoint_url=url, config=options)
        answer = sdk.converse_stream(modelId=model, messages=[{"role": "user", "content": [{"text": "hi"}]}])
        names = [name for item in answer["stream"] for name in item]
        assert (names[0], names[-1]) == ("messageStart", "metadata")
        sdk.close()

    async with FaultServer([ANSWER]) as server:
        await run_in_thread(by_sdk, server.url)
        provider = provider_of(server, {**KEYS, "AWS_SESSION_TOKEN": TOKEN})
        await ask(provider, Request(model=model, messages=[user("hi")]))
        await provider.close()
        theirs, ours = server.requests
    assert signed_by(theirs, token=TOKEN) and signed_by(ours, token=TOKEN)
    assert ours.target == theirs.target


async def test_the_check_notices_what_was_changed() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        await ask(provider)
        await provider.close()
        (request,) = server.requests
    assert signed_by(request)
    assert not signed_by(replace(request, body=request.body + b" "))
    assert not signed_by(replace(request, target=request.target.replace("nova", "novo")))
    assert not signed_by(replace(request, method="GET"))
    assert not signed_by(request, secret="other")


async def test_keys_of_one_set_belong_together() -> None:
    environ = {
        **KEYS,
        "AWS_SESSION_TOKEN": TOKEN,
        "BEDROCK_ACCESS_KEY_ID": "AKOTHER",
        "BEDROCK_SECRET_ACCESS_KEY": "s2",
    }
    async with FaultServer([ANSWER]) as server:
        settings = config(server, environ)
        provider, _, _ = registry.model("bedrock:m", settings)
        await ask(provider)
        await provider.close()
        assert signed_by(server.requests[0], key="AKOTHER", secret="s2")
    assert len(settings.notices) == 2
    assert not any(secret in notice for notice in settings.notices for secret in (KEY, SECRET, "AKOTHER", "s2"))


async def test_a_bearer_token_is_sent_as_it_is() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {**KEYS, "AWS_BEARER_TOKEN_BEDROCK": "bedrock-api-key-x"})
        await ask(provider)
        async with provider.forward(b"{}", "m", stream=False) as response:
            await response.read()
        assert await provider.provider.refresh() is False
        await provider.close()
        first, second = [request.headers for request in server.requests]
    assert first["authorization"] == second["authorization"] == "Bearer bedrock-api-key-x"
    assert "x-amz-date" not in first


def test_nobody_pays_for_botocore_who_does_not_sign() -> None:
    script = """
import asyncio, sys
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.messages import user
from windlass.core.request import Request
from windlass.testing.faults import FaultServer, Stream

async def main():
    async with FaultServer([Stream([bytes.fromhex(sys.argv[1])], headers={"content-type": "x/y"})]) as server:
        environ = {"BEDROCK_BASE_URL": server.url, "AWS_BEARER_TOKEN_BEDROCK": "t"}
        provider, _, _ = registry.model("bedrock:m", Config.from_environment(environ))
        items = [item async for item in provider.stream(Request(model="m", messages=[user("x")]))]
        print(items[-1].message.text, [name for name in sys.modules if name.startswith(("botocore", "boto3"))])
        await provider.close()

asyncio.run(main())
"""
    command = [sys.executable, "-c", script, b"".join(HELLO).hex()]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "Hello []"


async def test_a_missing_botocore_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        with pytest.raises(ConfigError, match=r"pip install 'windlass\[bedrock\]'"):
            await ask(provider)
        await provider.close()
        assert server.requests == []


# ------------------------------------------------------------------------------------------------------ credentials


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give AWS's tools a home of their own: no variables, no machine's role, files in a folder of this test."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def write_process(home: Path, *lives: float, seconds: float = 0.0) -> None:
    """Make `credential_process` a program whose n-th run gives key `KEYn`, good for the n-th of `lives` in seconds."""
    ends = [(datetime.now(UTC) + timedelta(seconds=life)).isoformat() for life in lives]
    program = f"""
import json, pathlib, sys, time
time.sleep({seconds})
runs = pathlib.Path({str(home / "runs")!r})
number = int(runs.read_text()) if runs.exists() else 0
runs.write_text(str(number + 1))
end = {ends!r}[min(number, {len(ends) - 1})]
key = {{"AccessKeyId": f"KEY{{number + 1}}", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": end}}
print(json.dumps({{"Version": 1, **key}}))
"""
    (home / "process.py").write_text(program)
    (home / "config").write_text(f"[profile temp]\ncredential_process = {sys.executable} {home / 'process.py'}\n")


def runs(home: Path) -> int:
    return int((home / "runs").read_text())


async def test_a_profile_of_the_shared_files(aws: Path) -> None:
    (aws / "credentials").write_text("[dev]\naws_access_key_id = AKDEV\naws_secret_access_key = sdev\n")
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "dev"})
        await ask(provider)
        await provider.close()
        table = {"base_url": server.url, "profile": "dev", "region": "eu-west-1"}
        stated, _, _ = registry.model("bedrock:m", Config(environ={}, providers={"bedrock": table}))
        await ask(stated)
        await stated.close()
        first, second = server.requests
    assert signed_by(first, key="AKDEV", secret="sdev")
    assert signed_by(second, key="AKDEV", secret="sdev", region="eu-west-1")


async def test_no_credentials_and_unknown_profiles_are_said_before_anything_is_sent(aws: Path) -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {})
        with pytest.raises(AuthError, match="AWS_ACCESS_KEY_ID") as caught:
            await ask(provider)
        assert (caught.value.provider, caught.value.model) == ("bedrock", ASKED.model)
        with pytest.raises(AuthError):
            async with provider.forward(b"{}", "m", stream=True):
                pass
        await provider.close()
        named = provider_of(server, {"AWS_PROFILE": "nobody"})
        with pytest.raises(ConfigError, match="nobody"):
            await ask(named)
        await named.close()
        assert server.requests == []


async def test_temporary_credentials_are_renewed_when_botocore_says_so(
    aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_process(aws, 300, 7200)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "temp"})
        with monkeypatch.context() as early:
            early.setattr(RefreshableCredentials, "_advisory_refresh_timeout", 200)
            early.setattr(RefreshableCredentials, "_mandatory_refresh_timeout", 100)
            await ask(provider)
            await ask(provider)
        # As if time had passed: the first pair is now near its end, the second one is not.
        await ask(provider)
        await ask(provider)
        await provider.close()
        requests = server.requests
    keys = ["KEY1", "KEY1", "KEY2", "KEY2"]
    checked = [signed_by(sent, key=key, secret="s", token="t") for sent, key in zip(requests, keys, strict=True)]
    assert checked == [True] * 4
    assert runs(aws) == 2


async def test_a_renewal_that_fails_does_not_slow_every_request(aws: Path) -> None:
    write_process(aws, 300, 300)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "temp"})
        for _ in range(4):
            await ask(provider)
        await provider.close()
    assert runs(aws) == 2


async def test_finding_credentials_blocks_nobody_and_is_done_once_for_all(aws: Path) -> None:
    write_process(aws, 7200, seconds=0.2)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "temp"})
        asked = asyncio.gather(*[ask(provider) for _ in range(8)])
        turns = 0
        while not server.requests and not asked.done():
            turns += 1
            await asyncio.sleep(0.01)
        await asked
        await provider.close()
        assert len(server.requests) == 8
    assert runs(aws) == 1 and turns >= 5


async def test_cancelling_one_who_waits_leaves_the_others(aws: Path) -> None:
    write_process(aws, 7200, seconds=0.2)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "temp"})
        first, second = [asyncio.create_task(ask(provider)) for _ in range(2)]
        await asyncio.sleep(0.05)
        first.cancel()
        _, finish = await second
        await provider.close()
    assert first.cancelled() and finish.message.text == "Hello" and runs(aws) == 1


async def test_credentials_that_never_come_are_a_timeout(aws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_process(aws, 7200, seconds=0.5)
    monkeypatch.setattr(bedrock, "_WITHIN", 0.05)
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server, {"AWS_PROFILE": "temp"})
        with pytest.raises(ProviderTimeoutError, match="credentials"):
            await ask(provider, Request(model="m", messages=[user("x")], budget=Budget(None, 1)))
        await provider.close()
        assert server.requests == []


async def test_r19_refused_credentials_are_looked_for_again_once(aws: Path) -> None:
    expired = refusal(403, "ExpiredTokenException", "The security token included in the request is expired")
    (aws / "credentials").write_text("[default]\naws_access_key_id = A1\naws_secret_access_key = s1\n")
    async with FaultServer([ANSWER, expired, ANSWER, expired]) as server:
        provider = provider_of(server, {})
        await ask(provider)
        (aws / "credentials").write_text("[default]\naws_access_key_id = A2\naws_secret_access_key = s2\n")
        await ask(provider)
        first, second, third = server.requests
        assert signed_by(first, key="A1", secret="s1") and signed_by(second, key="A1", secret="s1")
        assert signed_by(third, key="A2", secret="s2")
        with pytest.raises(AuthError, match="expired"):
            await ask(provider)
        # Nothing new was found: it is not asked again.
        assert len(server.requests) == 4
        await provider.close()


# ---------------------------------------------------------------------------------------------- addresses and models


def base_of(environ: Mapping[str, str]) -> tuple[str, str]:
    provider: Any = registry.model("bedrock:m", Config.from_environment(environ))[0]
    return provider.base_url, provider.provider.signer.region


@pytest.mark.parametrize(
    ("environ", "url", "region"),
    [
        ({}, "https://bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, "https://bedrock-runtime.eu-west-3.amazonaws.com", "eu-west-3"),
        (
            {"AWS_REGION": "us-gov-west-1", "AWS_DEFAULT_REGION": "us-gov-west-1"},
            "https://bedrock-runtime.us-gov-west-1.amazonaws.com",
            "us-gov-west-1",
        ),
        ({"BEDROCK_REGION": "cn-north-1"}, "https://bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        (
            {"BEDROCK_BASE_URL": "https://bedrock-runtime.eu-west-1.amazonaws.com/", "AWS_REGION": "us-west-2"},
            "https://bedrock-runtime.eu-west-1.amazonaws.com",
            "eu-west-1",
        ),
        (
            {"BEDROCK_RUNTIME_BASE_URL": "http://proxy.test", "AWS_REGION": "us-west-2"},
            "http://proxy.test",
            "us-west-2",
        ),
    ],
)
def test_the_address_and_the_region_that_is_signed(environ: dict[str, str], url: str, region: str) -> None:
    assert base_of(environ) == (url, region)


@pytest.mark.parametrize("region", ["evil.test/x", "us-east-1.evil.test", "us east", "US-EAST-1", "-", "us-"])
def test_a_region_that_is_none_never_becomes_a_host(region: str) -> None:
    with pytest.raises(ConfigError, match="no AWS region"):
        base_of({"AWS_REGION": region})


@pytest.mark.parametrize("model", ["", ".", "..", "a b", "x\r\ny: z", "m?x=1", "m#f", "é", "x" * 2049])
async def test_a_model_that_would_be_another_path_is_refused(model: str) -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        with pytest.raises(BadRequestError, match="no model id"):
            await ask(provider, Request(model=model, messages=[user("x")]))
        await provider.close()
        assert server.requests == []


def test_the_default_model_and_its_variable() -> None:
    assert registry.model("bedrock", Config.from_environment({}))[2] == "bedrock:amazon.nova-micro-v1:0"
    named = Config.from_environment({"BEDROCK_MODEL": CLAUDE})
    assert registry.model("bedrock", named)[2] == f"bedrock:{CLAUDE}"
    assert VENDORS["bedrock"].key == "optional"


def test_what_models_take() -> None:
    provider: Any = registry.model("bedrock:m", Config.from_environment({}))[0]
    claude = provider.capabilities(CLAUDE)
    assert (claude.reasoning, claude.max_output, claude.cache_breakpoints) == ("budget", 64000, True)
    assert provider.capabilities(ARN) == claude and claude.image_in_tool_result
    old = provider.capabilities("anthropic.claude-3-5-sonnet-20241022-v2:0")
    assert (old.reasoning, old.max_output, old.cache_breakpoints) == ("none", 8192, False)
    micro = provider.capabilities("amazon.nova-micro-v1:0")
    assert (micro.vision, micro.documents, micro.max_output, micro.cache_breakpoints) == (False, False, 10_000, False)
    assert provider.capabilities("eu.amazon.nova-2-lite-v1:0").max_output == 65_535
    other = provider.capabilities("meta.llama3-3-70b-instruct-v1:0")
    assert (other.vision, other.max_output, other.reasoning) == (True, None, "none")
    assert provider.structured_output is False


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
        ("amazon.nova-lite-v1:0:300k", "nova-lite"),
        (
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
            "claude-3-haiku-20240307",
        ),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2", "a1b2"),
    ],
)
def test_names_without_region_maker_and_version(model: str, name: str) -> None:
    assert canonical_model(model) == name


async def test_the_models_of_a_region() -> None:
    body = {"modelSummaries": [{"modelId": "b"}, {"modelId": "a"}, {"other": 1}]}
    listed = Reply(200, json.dumps(body).encode(), {"content-type": "application/json"})
    async with FaultServer([listed]) as server:
        provider = provider_of(server)
        assert await provider.models() == ["a", "b"]
        await provider.close()
        (request,) = server.requests
    assert (request.method, request.target) == ("GET", "/foundation-models") and signed_by(request)


# --------------------------------------------------------------------------------------------------------- exchanges


async def test_a_gateway_forwards_bytes_as_they_are() -> None:
    whole = Reply(200, b'{"as":"it is"}', {"content-type": "application/json"})
    async with FaultServer([whole, ANSWER]) as server:
        provider = provider_of(server)
        async with provider.forward(b'{"x":1}', ARN, stream=False) as response:
            assert await response.read() == b'{"as":"it is"}'
        async with provider.forward(b'{"x":2}', "m", stream=True) as response:
            assert b"".join([chunk async for chunk in response.chunks()]) == b"".join(HELLO)
        await provider.close()
        first, second = server.requests
    assert signed_by(first) and signed_by(second)
    assert (first.body, first.target.rsplit("/", 1)[-1]) == (b'{"x":1}', "converse")
    assert (second.body, second.target) == (b'{"x":2}', "/model/m/converse-stream")


async def test_leaving_a_forwarded_stream_early_closes_it() -> None:
    hold = asyncio.Event()
    async with FaultServer([Stream([START, hold], headers=FRAMES)]) as server:
        provider = provider_of(server)
        async with provider.forward(b"{}", "m", stream=True) as response:
            async for _ in response.chunks():
                break
        await server.wait(open=0)
        await provider.close()


async def test_an_answer_that_comes_whole_is_taken_too() -> None:
    body = {"output": {"message": {"role": "assistant", "content": [{"text": "Hi"}]}}, "stopReason": "end_turn"}
    whole = Reply(200, json.dumps(body).encode(), {"content-type": "application/json"})
    async with FaultServer([whole]) as server:
        provider = provider_of(server)
        items, finish = await ask(provider)
        await provider.close()
    assert [type(item) for item in items] == [TextItem, Finish] and finish.usage.estimated


async def test_r01_r15_what_fails_before_the_content_is_asked_again_with_a_fresh_signature() -> None:
    steps: list[Step] = [Fin(), Stream([START, exception("throttlingException", "slow")], headers=FRAMES), ANSWER]
    async with FaultServer(steps) as server:
        provider = provider_of(server)
        items, finish = await ask(provider, Request(model="m", messages=[user("x")], budget=Budget(None, 3)))
        await provider.close()
        assert len(server.requests) == 3 and all(signed_by(request) for request in server.requests)
    assert finish.message.text == "Hello"
    assert [item.kind for item in items if isinstance(item, NoticeItem)] == ["retry", "retry"]


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_r07_r10_a_broken_stream_is_interrupted_with_its_text(end: Any) -> None:
    async with FaultServer([Stream([*HELLO[:3], HELLO[3][:9]], headers=FRAMES, end=end)]) as server:
        provider = provider_of(server)
        with pytest.raises(StreamInterrupted) as caught:
            await ask(provider)
        await provider.close()
    assert (caught.value.partial, caught.value.provider) == ("Hello", "bedrock")


async def test_r14_damaged_frames_are_typed() -> None:
    damaged = HELLO[2][:-3] + b"\x00\x00\x00"
    async with FaultServer([Stream([*HELLO[:2], damaged, *HELLO[3:]], headers=FRAMES)]) as server:
        provider = provider_of(server)
        with pytest.raises(WireError, match="checksum") as caught:
            await ask(provider)
        await provider.close()
    assert caught.value.partial == "Hel"


async def test_r15_an_exception_amid_the_answer_is_the_error_it_says() -> None:
    parts = [*HELLO[:2], exception("modelStreamErrorException", "it broke")]
    async with FaultServer([Stream(parts, headers=FRAMES)]) as server:
        provider = provider_of(server)
        with pytest.raises(OverloadedError, match="it broke") as caught:
            await ask(provider.provider)
        await provider.close()
    assert (caught.value.partial, caught.value.provider_code) == ("Hel", "modelStreamErrorException")


async def test_r16_a_login_page_is_named() -> None:
    page = Reply(200, b"<html>Please log in</html>", {"content-type": "text/html"})
    async with FaultServer([page]) as server:
        provider = provider_of(server)
        with pytest.raises(WireError, match="login page"):
            await ask(provider)
        await provider.close()


async def test_r21_an_answer_without_its_usage_is_whole() -> None:
    async with FaultServer([Stream(HELLO[:-1], headers=FRAMES)]) as server:
        provider = provider_of(server)
        _, finish = await ask(provider)
        await provider.close()
    assert finish.message.text == "Hello" and finish.usage == Usage(estimated=True)


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected", "attempts"),
    [
        (400, "ValidationException", "bad", BadRequestError, 1),
        (400, "ValidationException", "Input is too long for requested model.", ContextExceededError, 1),
        (403, "AccessDeniedException", "no", AuthError, 1),
        (404, "ResourceNotFoundException", "gone", ModelNotFoundError, 1),
        (408, "ModelTimeoutException", "late", ProviderTimeoutError, 3),
        (424, "ModelErrorException", "odd", OverloadedError, 3),
        (429, "ThrottlingException:http://internal/", "slow", RateLimitError, 3),
        (500, "InternalServerException", "oops", OverloadedError, 3),
        (503, "ServiceUnavailableException", "busy", OverloadedError, 3),
    ],
)
async def test_r19_which_errors_are_asked_again(
    status: int, kind: str, message: str, expected: type[ProviderError], attempts: int
) -> None:
    async with FaultServer([refusal(status, kind, message)]) as server:
        provider = provider_of(server)
        with pytest.raises(expected, match=message) as caught:
            await ask(provider, Request(model="m", messages=[user("x")], budget=Budget(None, 3)))
        await provider.close()
        assert len(server.requests) == attempts
    assert (caught.value.status, caught.value.provider_code) == (status, kind.partition(":")[0])


async def test_tools_keep_their_own_names_on_the_way() -> None:
    name = "server.look at"
    sent: list[str] = []

    def answer(body: bytes) -> Stream:
        wire = json.loads(body)["toolConfig"]["tools"][0]["toolSpec"]["name"]
        sent.append(wire)
        start = event("contentBlockStart", start={"toolUse": {"toolUseId": "t", "name": wire}}, contentBlockIndex=0)
        return Stream([START, start, delta(toolUse={"input": "{}"}), STOP, TAIL], headers=FRAMES)

    request = Request(model="m", messages=[user("x")], tools=(ToolSpec(name),))
    first = answer(DIALECT.encode_request(request, VENDORS["bedrock"].capabilities, stream=True))
    async with FaultServer([first]) as server:
        provider = provider_of(server)
        items, finish = await ask(provider, request)
        await provider.close()
    assert sent[0] != name
    assert [item.name for item in items if isinstance(item, ToolCallItem)] == [name, None]
    assert finish.message.tool_calls == (ToolCall("t", name, {}),)


async def test_claudes_signatures_are_anthropics() -> None:
    parts = [START, delta(reasoningContent={"text": "hm"}), delta(reasoningContent={"signature": "sig"}), STOP, TAIL]
    async with FaultServer([Stream(parts, headers=FRAMES)]) as server:
        provider = provider_of(server)
        items, finish = await ask(provider, Request(model=ARN, messages=[user("x")]))
        _, others = await ask(provider, Request(model="openai.gpt-5-v1:0", messages=[user("x")]))
        talk = [user("x"), finish.message, user("y")]
        await ask(provider, Request(model=CLAUDE, messages=talk))
        await ask(provider, Request(model="amazon.nova-pro-v1:0", messages=talk))
        await provider.close()
        back, without = [json.loads(request.body)["messages"][1]["content"][0] for request in server.requests[2:]]
    assert items[1] == ReasoningItem("", {"anthropic": {"signature": "sig"}})
    assert finish.message.parts == (Reasoning("hm", {"anthropic": {"signature": "sig"}}),)
    assert others.message.parts == (Reasoning("hm", {"bedrock": {"signature": "sig"}}),)
    assert back == {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}}
    assert without == {"text": "(empty)"}


async def test_embeddings_are_not_there() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        with pytest.raises(UnsupportedInputError):
            await provider.embed(["x"], "m")
        await provider.close()
        assert server.requests == []


async def test_an_agent_turns_with_tools_on_bedrock() -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    start = event("contentBlockStart", start={"toolUse": {"toolUseId": "t1", "name": "add"}}, contentBlockIndex=0)
    calls = [START, start, delta(toolUse={"input": '{"a":2,'}), delta(toolUse={"input": '"b":3}'})]
    called = Stream([*calls, event("messageStop", stopReason="tool_use"), TAIL], headers=FRAMES)
    async with FaultServer([called, ANSWER]) as server:
        agent = Agent("bedrock:amazon.nova-pro-v1:0", config=config(server), tools=[add])
        result = await agent.run("2+3?", temperature=0.2)
        await agent.destroy()
        first, second = [json.loads(request.body) for request in server.requests]
        assert all(signed_by(request) for request in server.requests)
    assert result.text == "Hello" and first["inferenceConfig"] == {"maxTokens": 10_000, "temperature": 0.2}
    got: DecodedRequest = DIALECT.decode_request(json.dumps(second).encode())
    assert got.request.messages[1] == Message("assistant", (ToolCall("t1", "add", {"a": 2, "b": 3}),))
    assert got.request.messages[2] == Message("tool", (ToolResponse("t1", "5"),))


async def test_what_cannot_be_told_is_a_notice() -> None:
    async with FaultServer([ANSWER]) as server:
        provider = provider_of(server)
        items, _ = await ask(provider, Request(model="m", messages=[user("x")], settings=Settings(seed=1, top_k=3)))
        await provider.close()
    assert isinstance(items[0], NoticeItem) and "seed, top_k" in items[0].message
    assert items[1:3] == [TextItem("Hel"), TextItem("lo")] and items[-1].message == Message(  # pyright: ignore[reportAttributeAccessIssue]
        "assistant", (Text("Hello"),), finish_reason="stop"
    )
