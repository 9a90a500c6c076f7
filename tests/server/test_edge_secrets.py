"""Canaries: what is secret goes in everywhere and comes out nowhere."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import Any

from tests.server.conftest import Serve, Served
from tests.server.edge import Answer, ask, request, wire
from windlass.core.config import Config
from windlass.providers.route import Router
from windlass.server.http import Call, parse_head
from windlass.server.start import ENDPOINTS
from windlass.testing.faults import FaultServer, Part, Received, Reply, Rst, Step, Stream, sse

CANARIES = {
    "file key": "sk-canary01-in-the-file",
    "environment key": "sk-canary02-in-the-environment",
    "legacy key": "canary03-legacy",
    "userinfo": "canary04-password",
    "wrong key": "wl-canary05-never-a-key",
    "query key": "canary06-in-the-query",
    "cookie": "canary07-in-a-cookie",
    "AWS secret": "canary08-aws-secret",
    "AWS token": "canary09-aws-session-token",
    "prompt": "canary10-what-was-asked",
    "answer": "canary11-what-was-said",
    "tool": "canary12-what-a-tool-told",
}
JSON = {"content-type": "application/json"}


def upstream_of(received: Received) -> Step:
    """Fail in every way that could tell of a secret: by the name of the model that was asked for."""
    model = str(json.loads(received.body).get("model", ""))
    shown = received.headers.get("authorization", "") + received.headers.get("x-api-key", "")
    told = f"Incorrect API key provided: {shown}. You said {received.body.decode()}"
    error = json.dumps(
        {"error": {"message": f"Incorrect API key provided: {shown}", "type": "x", "code": shown}}
    ).encode()
    chunk = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": CANARIES["answer"]}}]}
    begun: list[Part] = sse(json.dumps(chunk))
    steps: dict[str, Step] = {
        "echo401": Reply(401, error, JSON), "echo403": Reply(403, error, JSON), "echo400": Reply(400, error, JSON),
        "echo500": Reply(500, error, JSON), "echo429": Reply(429, error, {**JSON, "retry-after": "0"}),
        "echo404": Reply(404, error, JSON), "html": Reply(200, f"<p>{told}".encode(), {"content-type": "text/html"}),
        "text500": Reply(500, told.encode(), {"content-type": "text/plain"}),
        "head": Reply(401, error, {**JSON, "x-request-id": shown, "www-authenticate": f"Bearer {shown}"}),
        "garbage": Reply(200, told.encode(), JSON), "reset": Rst(),
        "event": Stream([*begun, *sse(error.decode())]), "first": Stream(sse(error.decode())),
        "cut": Stream(begun), "badchunk": Stream([*begun, *sse("{" + told)]),
        "moved": Reply(302, b"", {"location": f"http://127.0.0.1:1/?key={shown}"}),
    }  # fmt: skip
    message = {"role": "assistant", "content": CANARIES["answer"]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return steps.get(model, Reply(200, json.dumps(whole).encode(), JSON))


MODELS = ("echo401", "echo403", "echo400", "echo500", "echo429", "echo404", "html", "text500", "head", "garbage",
          "reset",
          "event", "first", "cut", "badchunk", "moved", "good")  # fmt: skip


def config(url: str) -> str:
    """Return a configuration with secrets wherever one can stand."""
    routes = "".join([f'"{model}" = "up:{model}"\n"env-{model}" = "openai:{model}"\n' for model in MODELS])
    at = url.removeprefix("http://")
    return f"""
[server]
log = "json"
debug = true
metrics = "prometheus"
[providers.up]
base_url = "{url}/v1"
api_key = "{CANARIES["file key"]}"
[providers.openai]
base_url = "{url}/v1"
[providers.user]
base_url = "http://me:{CANARIES["userinfo"]}@{at}/v1"
api_key = "{CANARIES["file key"]}"
[providers.away]
base_url = "http://me:{CANARIES["userinfo"]}@127.0.0.1:9/v1"
api_key = "{CANARIES["file key"]}"
[routes]
{routes}
user = "user:echo401"
away = "away:x"
"""


def asked(model: str, stream: bool) -> dict[str, Any]:
    """Return a request with something secret in every part of it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    return {
        "model": model, "stream": stream, "max_tokens": 5, "user": "u",
        "messages": [
            {"role": "user", "content": CANARIES["prompt"]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": CANARIES["tool"]},
        ],
    }  # fmt: skip


def outside(answer: Answer, *, own: bool = False) -> bytes:
    """Return what a client sees of an answer; of its `own` without what it said itself, and what it was told for it."""
    shown = repr(answer.headers).encode() + answer.body
    for name in ("answer", "prompt", "tool") if own else ():
        shown = shown.replace(CANARIES[name].encode(), b"")
    return shown


async def test_s54_s55_canaries_are_in_no_output(serve: Serve) -> None:
    async with FaultServer(upstream_of) as upstream:
        env = {
            "OPENAI_API_KEY": CANARIES["environment key"], "LLM_ROUTER_API_KEY": CANARIES["legacy key"],
            "AWS_ACCESS_KEY_ID": "AKIDX", "AWS_SECRET_ACCESS_KEY": CANARIES["AWS secret"],
            "AWS_SESSION_TOKEN": CANARIES["AWS token"],
        }  # fmt: skip
        served = await asyncio.to_thread(serve, config(upstream.url), "--reload-config", **env)
        token = (served.home / "admin-token").read_text()
        boss = {"authorization": f"Bearer {token}"}
        made = [
            json.loads((await _post(served, "/v1/keys", boss, {"name": name, "tenant": name})).body) for name in "ab"
        ]
        keys = [str(row["secret"]) for row in made]
        seen: list[tuple[str, bytes]] = []
        for at, secret in enumerate((*keys, CANARIES["legacy key"], token)):
            for model in (*MODELS, *[f"env-{name}" for name in MODELS], "user", "away", "unknown"):
                if at and not model.startswith(("echo401", "user", "cut", "unknown")):
                    continue
                for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
                    for stream in (False, True):
                        body = asked(model, stream)
                        if path == "/v1/responses":
                            body = {"model": model, "stream": stream, "input": CANARIES["prompt"], "store": False}
                        elif path == "/v1/messages":
                            body["messages"] = body["messages"][:1]
                        headers = {"x-api-key": secret, "cookie": f"a={CANARIES['cookie']}", "user-agent": "canary/1"}
                        answer = await _post(served, f"{path}?key={CANARIES['query key']}", headers, body)
                        seen.append((f"{path} {model} {stream}", outside(answer, own=True)))
        seen += await _others(served, keys[0], token)
        # A line of ours and a reload that fails, with a secret where the mistake is.
        file = served.home / "gateway.toml"
        file.write_text(config(upstream.url) + f'\n[providers.up]\napi_key = "{CANARIES["file key"]}"\n')
        await _logged(served, "not reloaded")
        await asyncio.to_thread(served.stop)
        seen.append(("log", served.log.read_bytes()))
        files = [path for path in served.home.rglob("*") if path.is_file()]
        seen += [(file.name, file.read_bytes()) for file in files if file.name not in ("gateway.toml", "admin-token")]
        with sqlite3.connect(served.home / "accounts.db") as database:
            seen.append(("records", "\n".join(database.iterdump()).encode()))
        database.close()
        names = {**CANARIES, "key of a": keys[0], "key of b": keys[1], "admin token": token.strip()}
        assert len(names) >= 12 and any(name == "records" and b"echo401" in text for name, text in seen)
        leaks = [(where, name) for where, text in seen for name, canary in names.items() if canary.encode() in text]
        assert leaks == [], "\n".join([f"{where} | {name}" for where, name in leaks])


async def _post(served: Served, path: str, headers: dict[str, str], body: Any) -> Answer:
    async with wire(served.port) as sent:
        await sent.send(request("POST", path, headers, json.dumps(body).encode()))
        return await sent.answer()


async def _others(served: Served, key: str, token: str) -> list[tuple[str, bytes]]:
    """Ask every route that tells of anything, as everybody, and be refused in every way."""
    out: list[tuple[str, bytes]] = []
    shows = [{}, {"x-api-key": key}, {"authorization": f"Bearer {token}"}, {"x-api-key": CANARIES["wrong key"]},
             {"x-api-key": key, "api-key": token}, {"origin": f"http://{CANARIES['cookie']}"},
             {"host": CANARIES["cookie"]}, {"accept": "application/json", "x-api-key": key}]  # fmt: skip
    for endpoint in ENDPOINTS:
        path = endpoint.path
        for part in ("{response}", "{session}", "{model}", "{key}"):
            path = path.replace(part, "x1")
        if endpoint.method == "GET":
            for headers in shows:
                answer = await ask(served.port, request("GET", f"{path}?key={CANARIES['query key']}", headers))
                out.append((f"{path} {headers}", outside(answer)))
        else:
            for body in (b"{", b"[]", json.dumps({"api_key": CANARIES["prompt"]}).encode(), b"\xff"):
                answer = await ask(served.port, request(endpoint.method, path, {"x-api-key": key}, body))
                out.append((f"{path} {body!r}", outside(answer)))
    broken = b"GET / HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\x01\r\n\r\n" % key.encode()
    refused = [await ask(served.port, data) for data in (broken, request("PUT", "/health", {"x-api-key": key}))]
    out += [("refused", outside(answer)) for answer in refused]
    return out


async def _logged(served: Served, text: str) -> None:
    for _ in range(1000):
        if text in served.log.read_text():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{text!r} never came: {served.log.read_text()}")


def test_s54_representations_tell_no_secret() -> None:
    secret = CANARIES["file key"]
    made = Config(
        environ={"OPENAI_API_KEY": secret, "WINDLASS_HOME": "/nowhere"},
        providers={
            "up": {"base_url": f"http://me:{secret}@127.0.0.1:9/v1", "api_key": secret, "headers": {"x": secret}}
        },
    )
    target = Router(made).route("up:x").targets[0]
    head = parse_head(
        request("GET", f"/v1/models?key={secret}", {"authorization": f"Bearer {secret}", "cookie": secret})
    )
    call = Call(head, "127.0.0.1", 0.0, secret.encode(), "id")
    for thing in (
        made,
        made.provider_settings("up"),
        made.provider_settings("openai"),
        target,
        target.provider,
        head,
        call,
    ):
        assert secret not in repr(thing) and secret not in str(thing), type(thing)
