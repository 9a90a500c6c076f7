"""An authorization server with an API behind it, on loopback: it checks what the RFCs say, and fails as told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.credentials import Credentials, CredentialStore, Login
from windlass.core.items import Finish, Item, NoticeItem
from windlass.core.messages import user
from windlass.core.request import Budget, Request
from windlass.providers.retry import Retrying
from windlass.testing.faults import FaultServer, Received, Reply, Step, Stream, sse

JSON = {"content-type": "application/json"}
CLIENT = "client-of-mine"


def said(text: str) -> Stream:
    """A streamed answer of the API."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    return Stream(sse(json.dumps({"id": "1", "object": "chat.completion.chunk", "choices": [choice]}), "[DONE]"))


@dataclass
class FakeOAuth:
    """`codes`, `refreshes` and `accesses` are what is valid now; `log` names each request to the token endpoint.

    `steps` are what the token endpoint does instead of answering, in order; `more` is added to what it answers.
    """

    lifetime: int | None = 3600
    rotates: bool = True
    codes: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    refreshes: set[str] = field(default_factory=set[str])
    accesses: set[str] = field(default_factory=set[str])
    log: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    asked: list[str] = field(default_factory=list[str])
    revoked: list[str] = field(default_factory=list[str])
    steps: list[Step | None] = field(default_factory=list[Step | None])
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    #: What the page of the vendor does with a request to log in, None to agree.
    consent: Callable[[dict[str, str]], dict[str, str]] | None = None
    #: How often a device is told to wait before its person has agreed; None: the person refuses.
    device_waits: int | None = 0
    #: Whether the API answers 403 to everybody, with the token in its text.
    forbids: bool = False
    number: int = 0

    def __post_init__(self) -> None:
        self.server = FaultServer(self._step)

    async def __aenter__(self) -> FakeOAuth:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.server.__aexit__(None, None, None)

    @property
    def url(self) -> str:
        return self.server.url

    def table(self, **oauth: Any) -> dict[str, Any]:
        """A [providers.NAME] table for the API, with a login."""
        own = {"client_id": CLIENT, "authorize_url": f"{self.url}/authorize", "token_url": f"{self.url}/token"}
        return {"base_url": f"{self.url}/v1", "model": "m", "oauth": {**own, **oauth}}

    def grant(self) -> dict[str, Any]:
        """Make tokens that are valid from now on."""
        self.number += 1
        access, refresh = f"access-{self.number:04}", f"refresh-{self.number:04}"
        self.accesses.add(access)
        self.refreshes.add(refresh)
        told: dict[str, Any] = {"access_token": access, "refresh_token": refresh, "token_type": "Bearer"}
        return {**told, **({} if self.lifetime is None else {"expires_in": self.lifetime}), **self.more}

    @property
    def refreshed(self) -> int:
        """How many renewals were asked for."""
        return sum(asked.get("grant_type") == "refresh_token" for asked in self.log)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _step(self, received: Received) -> Step:
        target = urlsplit(received.target)
        if target.path.startswith("/.well-known/") or "openid-configuration" in target.path:
            return Reply(200, json.dumps(self.metadata).encode(), JSON) if self.metadata else Reply(404)
        if target.path == "/authorize":
            return self._authorize(dict(parse_qsl(target.query)))
        if target.path == "/token":
            return self._token(received)
        if target.path == "/revoke":
            token = dict(parse_qsl(received.body.decode()))["token"]
            self.revoked.append(token)
            self.accesses.discard(token)
            self.refreshes.discard(token)
            return Reply(200)
        if target.path == "/device":
            told = {
                "device_code": "device-code-1", "user_code": "WDJB-MJHT", "expires_in": 600, "interval": 1,
                "verification_uri": f"{self.url}/activate",
            }  # fmt: skip
            return Reply(200, json.dumps(told).encode(), JSON)
        return self._api(received)

    def _authorize(self, asked: dict[str, str]) -> Step:
        assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256", asked
        assert len(asked["state"]) >= 32 and len(asked["code_challenge"]) == 43
        code = f"code-{len(self.codes) + 1:04}"
        self.codes[code] = asked
        answer = {"code": code, "state": asked["state"]}
        if self.consent is not None:
            answer = self.consent(answer)
        return Reply(302, b"", {"location": f"{asked['redirect_uri']}?{urlencode(answer)}"})

    def _token(self, received: Received) -> Step:
        if received.headers["content-type"] == "application/json":
            asked: dict[str, str] = json.loads(received.body)
        else:
            asked = {name: values[0] for name, values in parse_qs(received.body.decode()).items()}
        self.log.append(asked)
        if self.steps and (step := self.steps.pop(0)) is not None:
            return step
        if asked.get("client_id") != CLIENT:
            return refusal("invalid_client")
        kind = asked.get("grant_type", "")
        if kind == "authorization_code":
            begun = self.codes.pop(asked["code"], None)  # good for one use
            if begun is None or begun["redirect_uri"] != asked["redirect_uri"]:
                return refusal("invalid_grant")
            digest = base64.urlsafe_b64encode(hashlib.sha256(asked["code_verifier"].encode()).digest())
            if digest.decode().rstrip("=") != begun["code_challenge"]:
                return refusal("invalid_grant", "The verifier does not fit.")
        elif kind == "refresh_token":
            if asked["refresh_token"] not in self.refreshes:
                return refusal("invalid_grant", f"Unknown token {asked['refresh_token']}")
            if self.rotates:
                self.refreshes.discard(asked["refresh_token"])
        elif kind == "urn:ietf:params:oauth:grant-type:device_code":
            if self.device_waits is None:
                return refusal("access_denied")
            if self.device_waits:
                self.device_waits -= 1
                return refusal("slow_down" if self.device_waits == 1 else "authorization_pending")
        else:
            return refusal("unsupported_grant_type")
        return Reply(200, json.dumps(self.grant()).encode(), JSON)

    def _api(self, received: Received) -> Step:
        token = received.headers.get("authorization", "").removeprefix("Bearer ")
        self.asked.append(token)
        if self.forbids:
            return Reply(403, json.dumps({"error": {"message": f"Not for {token}"}}).encode(), JSON)
        if token not in self.accesses:
            error = {"error": {"message": f"Bad token {token}", "code": "invalid_token", "type": "auth"}}
            return Reply(401, json.dumps(error).encode(), JSON)
        if received.target.endswith("/models"):
            return Reply(200, b'{"data":[{"id":"m"}]}', JSON)
        return said(f"Hello {token[-4:]}")


def refusal(code: str, text: str = "") -> Reply:
    """What a token endpoint says (RFC 6749, 5.2)."""
    told = {"error": code, **({"error_description": text} if text else {})}
    return Reply(400, json.dumps(told).encode(), JSON)


async def visit(url: str) -> tuple[int, str, str]:
    """Get an address as a browser does, but follow nothing; returns status, Location and body."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    writer.write(f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await _all(reader)).partition("\r\n\r\n")
    writer.close()
    lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split(" ")[1]), headers.get("location", ""), body


async def _all(reader: asyncio.StreamReader) -> str:
    """Read until the end, or as much as a length says."""
    data = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = (line.partition(": ") for line in data.lower().split("\r\n"))
    length = next((int(value) for name, _, value in lines if name == "content-length"), 0)
    return data + (await reader.readexactly(length)).decode()


# -- how the tests of providers ask -----------------------------------------------------------------------------------


def config(home: Path, providers: dict[str, Any], **environ: str) -> Config:
    return Config(environ={"WINDLASS_HOME": str(home), **environ}, providers=providers)


def keep(home: Path, login: Login, name: str = "mine") -> CredentialStore:
    """Keep a login as `windlass auth` does, where there is no keyring."""
    store = CredentialStore(home / "credentials")
    assert store.write(name, login, "file") == "file"
    return store


def made_by(server: FakeOAuth, expires: int | None = None, **fields: Any) -> Login:
    """A login that the server gave."""
    told = server.grant()
    given = Credentials(told["access_token"], told["refresh_token"], expires, "acc-1")
    return Login(given, f"{server.url}/token", CLIENT, server.url, **fields)


def provider_of(home: Path, table: dict[str, Any], name: str = "mine", **environ: str) -> Any:
    made = registry.model(f"{name}:m", config(home, {name: table}, **environ))[0]
    assert isinstance(made, Retrying)
    return Retrying(made.provider, base=0.001)


async def ask(provider: Any, attempts: int = 3) -> tuple[str, list[NoticeItem]]:
    request = Request(model="m", messages=[user("hi")], budget=Budget(None, attempts))
    items: list[Item] = [item async for item in provider.stream(request)]
    assert isinstance(items[-1], Finish)
    return items[-1].message.text, [item for item in items if isinstance(item, NoticeItem)]
