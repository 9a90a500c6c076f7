"""Logging in: the code, what proves that it is ours, and everything that is refused (S84)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.oauth_server import CLIENT, JSON, FakeOAuth, refusal, visit
from windlass.core import clock
from windlass.core.credentials import Credentials
from windlass.core.errors import AuthError, ConfigError, OverloadedError, PermissionRefused, WindlassError, WireError
from windlass.core.http import Client
from windlass.core.oauth import OAuth
from windlass.core.oauth_login import Redirect, browser_argv, open_browser, pasted
from windlass.core.oauth_settings import OAuthSettings, read_settings, safe_url
from windlass.testing.clock import FakeClock
from windlass.testing.faults import Reply

PATIENCE = 20.0


def jwt(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


def settings_of(server: FakeOAuth, **fields: Any) -> OAuthSettings:
    own = {"authorize_url": f"{server.url}/authorize", "token_url": f"{server.url}/token", "client_id": CLIENT}
    return read_settings("mine", {}, {**own, **fields}, {})


@asynccontextmanager
async def client_of(settings: OAuthSettings) -> AsyncGenerator[OAuth]:
    async with Client(proxies={}) as client:
        yield OAuth("mine", settings, client)


async def log_in(oauth: OAuth) -> Credentials:
    """Log in as a person does whose browser does what it is told."""
    async with Redirect(oauth.settings.redirect_uri) as redirect:
        begun = oauth.authorization(redirect.uri)
        redirect.expect(begun.state)
        status, location, _ = await visit(begun.url)
        assert status == 302
        status, _, page = await visit(location)
        assert status == 200 and "close this page" in page
        async with clock.deadline(PATIENCE):
            return await oauth.exchange(begun, oauth.code_of(begun, await redirect.answer()))


# ------------------------------------------------------------------------------------------------------------ the code


async def test_a_login_with_pkce_on_a_free_port() -> None:
    async with FakeOAuth() as server, client_of(settings_of(server, scopes="a b", parameters={"x": "y"})) as oauth:
        before = clock.now_ns() // 1_000_000
        made = await log_in(oauth)
        assert (made.access, made.refresh) == ("access-0001", "refresh-0001")
        assert made.expires is not None and 3_590_000 <= made.expires - before <= 3_700_000
        (asked,) = server.log
        assert asked.keys() == {"grant_type", "code", "redirect_uri", "code_verifier", "client_id"}
        assert 43 <= len(asked["code_verifier"]) <= 128
        begun = dict(parse_qsl(urlsplit(server.server.requests[0].target).query))
        assert (begun["scope"], begun["x"], begun["client_id"]) == ("a b", "y", CLIENT)
        uri = urlsplit(begun["redirect_uri"])
        assert (uri.hostname, uri.path) == ("127.0.0.1", "/callback") and (uri.port or 0) > 1024
        # Another login is another one in everything.
        await log_in(oauth)
        again = dict(parse_qsl(urlsplit(server.server.requests[2].target).query))
        assert all(again[name] != begun[name] for name in ("state", "code_challenge"))


async def test_a_code_is_good_for_one_use_and_only_with_its_verifier() -> None:
    async with FakeOAuth() as server, client_of(settings_of(server)) as oauth:
        begun = oauth.authorization("http://127.0.0.1:9/callback")
        _, location, _ = await visit(begun.url)
        code = dict(parse_qsl(urlsplit(location).query))["code"]
        other = oauth.authorization("http://127.0.0.1:9/callback")
        with pytest.raises(AuthError, match=r"invalid_grant.*verifier"):
            await oauth.exchange(other, code)
        with pytest.raises(AuthError, match="invalid_grant"):  # it was used up
            await oauth.exchange(begun, code)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"code": "c"}, AuthError, "another login"),
        ({"code": "c", "state": "other"}, AuthError, "another login"),
        ({"code": "c", "state": "é"}, AuthError, "another login"),
        ({"error": "access_denied", "error_description": "no\x1b[2J"}, AuthError, "another login"),
        ({"error": "access_denied", "state": "S", "error_description": "no\x1b[2J"}, PermissionRefused, r"\(no \[2J\)"),
        ({"error": "server_error", "state": "S"}, AuthError, "server_error"),
        ({"state": "S"}, AuthError, "no code"),
        ({"code": "c", "state": "S", "iss": "https://evil.test"}, AuthError, "another issuer"),
    ],
)
async def test_s84_answers_that_are_not_ours(answer: dict[str, str], kind: type[Exception], words: str) -> None:
    settings = OAuthSettings(
        CLIENT, issuer="https://as.test", authorize_url="https://as.test/a", token_url="https://as.test/t"
    )
    async with client_of(settings) as oauth:
        begun = oauth.authorization("http://127.0.0.1:9/callback")
        with pytest.raises(kind, match=words):
            oauth.code_of(begun, {key: begun.state if value == "S" else value for key, value in answer.items()})
        assert oauth.code_of(begun, {"code": "c", "state": begun.state, "iss": "https://as.test"}) == "c"
        assert begun.state not in repr(begun) and begun.verifier not in repr(begun)


async def test_s84_the_address_on_this_machine_takes_one_answer_and_only_ours() -> None:
    async with Redirect("http://127.0.0.1/callback") as redirect:
        assert (await visit(f"{redirect.uri}?code=x&state="))[0] == 404  # nothing is waited for yet
        redirect.expect("the-state")
        answer = asyncio.create_task(redirect.answer())
        port = urlsplit(redirect.uri).port
        paths = ("/", "/callback?code=evil", "/callback?code=evil&state=other", "/callback?state=the-state",
                 "/other?code=evil&state=the-state", "/callback?code=a&state=the-state&state=other")  # fmt: skip
        for path in paths:
            status, _, page = await visit(f"http://127.0.0.1:{port}{path}")
            assert (status, "not the login" in page, "evil" in page) == (404, True, False), path
        # A page of the web whose name was pointed here.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /callback?code=evil&state=the-state HTTP/1.1\r\nhost: evil.test\r\n\r\n")
        assert b"404" in await reader.readline()
        writer.close()
        for raw in (b"\r\n\r\n", b"POST /callback?code=x&state=the-state HTTP/1.1\r\nhost: localhost\r\n\r\n",
                    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):  # fmt: skip
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            writer.write_eof()
            assert b"200" not in await reader.read()
            writer.close()
        assert not answer.done()
        good = f"{redirect.uri}?code=good&state=the-state"
        assert (await visit(good))[0] == 200
        assert (await answer)["code"] == "good"
        assert (await visit(good.replace("good", "replayed")))[0] == 404
    with pytest.raises(OSError, match=r"refused|Connect"):
        await visit(good)


async def test_the_address_may_be_the_registered_one() -> None:
    async with Redirect("http://localhost/auth/cb") as first:
        port = urlsplit(first.uri).port
        assert first.uri == f"http://localhost:{port}/auth/cb"
        with pytest.raises(ConfigError, match=f"Port {port}.*cannot be listened on"):
            async with Redirect(f"http://127.0.0.1:{port}/cb"):
                raise AssertionError
    async with Redirect("https://vendor.test/shows/the/code") as page:
        assert (page.listens, page.uri) == (False, "https://vendor.test/shows/the/code")
    for uri in ("http://vendor.test/cb", "javascript:alert(1)", "file:///etc/passwd", "127.0.0.1"):
        with pytest.raises(ConfigError):
            Redirect(uri)


# ---------------------------------------------------------------------------------------------------------- the server


def metadata(server: FakeOAuth, **more: Any) -> dict[str, Any]:
    return {
        "issuer": server.url, "authorization_endpoint": f"{server.url}/authorize",
        "token_endpoint": f"{server.url}/token", "revocation_endpoint": f"{server.url}/revoke",
        "code_challenge_methods_supported": ["S256"], **more,
    }  # fmt: skip


async def test_an_issuer_tells_its_addresses() -> None:
    async with FakeOAuth() as server:
        server.metadata = metadata(server)
        settings = read_settings(
            "mine", {"token_url": "https://row.test"}, {"issuer": server.url, "client_id": CLIENT}, {}
        )
        async with client_of(settings) as oauth:
            found = await oauth.discover()
            assert (found.token_url, found.revoke_url) == (f"{server.url}/token", f"{server.url}/revoke")
            assert (await log_in(oauth)).access == "access-0001"
            # Once: what is known is not asked for again.
            await oauth.discover()
            assert sum("well-known" in request.target for request in server.server.requests) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"issuer": "https://evil.test"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"code_challenge_methods_supported": None}, "PKCE"),
        ({"token_endpoint": "http://evil.test/token"}, "not https"),
        ({"authorization_endpoint": "javascript:alert(document.cookie)"}, "no https address"),
        ({"authorization_endpoint": "file:///bin/sh"}, "no https address"),
    ],
)
async def test_s84_metadata_that_is_not_believed(change: dict[str, Any], words: str) -> None:
    async with FakeOAuth() as server:
        server.metadata = metadata(server, **change)
        async with client_of(OAuthSettings(CLIENT, issuer=server.url)) as oauth:
            with pytest.raises((AuthError, ConfigError), match=words):
                await oauth.discover()
            assert server.log == []


async def test_metadata_that_is_not_there_or_broken() -> None:
    async with FakeOAuth() as server, client_of(OAuthSettings(CLIENT, issuer=f"{server.url}/tenant")) as oauth:
        with pytest.raises(AuthError, match="tells nothing"):
            await oauth.discover()
        asked = [request.target for request in server.server.requests]
        assert asked == ["/.well-known/oauth-authorization-server/tenant", "/tenant/.well-known/openid-configuration"]


def test_s84_a_remote_server_does_not_name_this_machine() -> None:
    with pytest.raises(ConfigError, match="on this machine"):
        safe_url("http://127.0.0.1:22/token", "The token_endpoint", named_by="https://as.test")
    assert safe_url("http://[::1]:9/x", "x") and safe_url("https://as.test/x", "x", named_by="https://as.test")


URLS = ("javascript:alert(1)", "JAVASCRIPT:alert(1)", "data:text/html,x", "file:///etc/passwd", "http://as.test/a",
        "https://as.test/a b", "https://as.test/\nX", "https://user:pw@as.test/", "-oProxyCommand=x", "", "https://",
        "vbscript:x", "https://as.test/\u202e", "ssh://as.test")  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_s84_addresses_that_no_token_and_no_browser_goes_to(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        safe_url(url, "The address")
    assert "pw" not in str(caught.value)
    with pytest.raises(ConfigError):
        browser_argv(url, {"BROWSER": "true", "PATH": os.environ["PATH"]})


@pytest.mark.parametrize(
    ("more", "kind", "words"),
    [
        ({"token_type": "mac"}, WireError, "no bearer"),
        ({"access_token": ""}, WireError, "without a token"),
        ({"access_token": "a b"}, ConfigError, "visible ASCII"),
        ({"id_token": jwt(aud="another-program")}, AuthError, "another program's"),
        ({"id_token": jwt(aud=[CLIENT], nonce="another")}, AuthError, "another attempt"),
        ({"access_token": jwt(aud="https://other.test")}, AuthError, "another audience"),
    ],
)
async def test_s84_tokens_for_somebody_else(more: dict[str, Any], kind: type[Exception], words: str) -> None:
    async with FakeOAuth(more=more) as server:
        audience = "https://api.test" if "access_token" in more else ""
        async with client_of(settings_of(server, scopes="openid", audience=audience)) as oauth:
            with pytest.raises(kind, match=words) as caught:
                await log_in(oauth)
            assert "refresh-0001" not in str(caught.value)


async def test_tokens_for_us_name_the_account_and_the_end() -> None:
    mine = jwt(aud=["https://api.test", "x"], exp=2_000_000_000)
    identity = jwt(aud=CLIENT, **{"https://api.openai.com/auth": {"chatgpt_account_id": "acc-5"}})
    async with FakeOAuth(lifetime=None, more={"access_token": mine, "id_token": identity}) as server:
        async with client_of(settings_of(server, scopes="openid", audience="https://api.test")) as oauth:
            made = await log_in(oauth)
            assert (made.account_id, made.expires) == ("acc-5", 2_000_000_000_000)
            assert server.log[0]["resource"] == "https://api.test"
        server.more = {"account": {"uuid": "acc-6"}}
        async with client_of(settings_of(server)) as oauth:
            assert (await log_in(oauth)).account_id == "acc-6"


async def test_an_identity_of_another_issuer_is_refused() -> None:
    async with FakeOAuth() as server:
        server.metadata = metadata(server)
        server.more = {"id_token": jwt(aud=CLIENT, iss="https://evil.test")}
        async with client_of(OAuthSettings(CLIENT, issuer=server.url, scopes=("openid",))) as oauth:
            await oauth.discover()
            with pytest.raises(AuthError, match="another issuer"):
                await log_in(oauth)


async def test_failures_name_no_secret_and_the_next_step() -> None:
    async with FakeOAuth() as server, client_of(settings_of(server, client_secret="the-secret")) as oauth:
        begun = oauth.authorization("http://127.0.0.1:9/callback")
        words = f"the-code {begun.verifier} the-secret"
        server.steps = [refusal("invalid_client", words), Reply(500, words.encode()), Reply(401, words.encode()), None]
        for kind, text in ((AuthError, "invalid_client"), (OverloadedError, "500"), (AuthError, "401")):
            with pytest.raises(kind, match=text) as caught:
                await oauth.exchange(begun, "the-code")
            assert not any(word in str(caught.value) for word in words.split())
        assert server.log[0]["client_secret"] == "the-secret" and "the-secret" not in repr(oauth.settings)
        with pytest.raises(ConfigError, match=r"client id.*Register a client of your own"):
            OAuth("mine", OAuthSettings(authorize_url="https://as.test/"), Client()).authorization("http://127.0.0.1/")


async def test_a_json_token_endpoint_gets_json() -> None:
    async with FakeOAuth() as server, client_of(settings_of(server, body="json", headers={"x-beta": "b"})) as oauth:
        await log_in(oauth)
        sent = server.server.requests[1]
        assert (sent.headers["content-type"], sent.headers["x-beta"]) == ("application/json", "b")
        assert json.loads(sent.body)["state"]


async def test_revoking_and_having_no_way_to() -> None:
    async with FakeOAuth() as server:
        async with client_of(settings_of(server)) as oauth:
            assert await oauth.revoke(Credentials("a", "r")) is False
        async with client_of(settings_of(server, revoke_url=f"{server.url}/revoke")) as oauth:
            assert await oauth.revoke(Credentials("a", "r")) is True
        assert server.revoked == ["r", "a"]


# -------------------------------------------------------------------------------------------------------------- device


async def test_a_login_on_another_device() -> None:
    async with FakeOAuth(device_waits=3) as server:
        settings = settings_of(server, device_url=f"{server.url}/device", scopes="a")
        async with client_of(settings) as oauth:
            slept: list[float] = []

            async def sleep(seconds: float) -> None:
                slept.append(seconds)

            device = await oauth.device()
            assert (device.user_code, device.interval) == ("WDJB-MJHT", 1.0) and "device-code" not in repr(device)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(clock, "sleep", sleep)
                assert (await oauth.granted(device)).access == "access-0001"
            # Told to slow down, it does.
            assert slept == [1.0, 1.0, 1.0, 6.0] or slept == [1.0, 1.0, 6.0, 6.0]
            server.device_waits = None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(clock, "sleep", sleep)
                with pytest.raises(PermissionRefused, match="refused on the other device"):
                    await oauth.granted(device)
                server.steps = [refusal("expired_token")]
                with pytest.raises(AuthError, match="Nobody has agreed"):
                    await oauth.granted(device)
                server.steps = [refusal("invalid_client", device.device_code)]
                with pytest.raises(AuthError, match="invalid_client") as caught:
                    await oauth.granted(device)
                assert device.device_code not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- browser


def test_a_browser_gets_the_address_as_one_argument(tmp_path: Path) -> None:
    path = {"PATH": os.environ["PATH"]}
    url = "https://as.test/a?x=$(touch%20/tmp/evil)&y=`id`;z"
    true = browser_argv(url, {"BROWSER": "true", **path})
    assert true is not None and true[1:] == [url] and true[0].endswith("/true")
    words = browser_argv(url, {"BROWSER": "not-there-1:'bad quotes:true --new '%s' x:false", **path})
    assert words is None or words[0].endswith("/false") or words[1:] == ["--new", url, "x"]
    assert browser_argv(url, {"BROWSER": "not-there-1", **path}) is None
    assert sys.platform == "darwin" or browser_argv(url, path) is None  # no screen


async def test_browsers_that_work_fail_stay_or_are_not_there(tmp_path: Path) -> None:
    path = {"PATH": os.environ["PATH"]}
    assert await open_browser("https://as.test/", {"BROWSER": "true", **path})
    assert not await open_browser("https://as.test/", {"BROWSER": "false", **path})
    assert not await open_browser("https://as.test/", {"BROWSER": "not-there-1", **path})
    broken = tmp_path / "browser"
    broken.write_text("not a program")
    broken.chmod(0o755)
    assert not await open_browser("https://as.test/", {"BROWSER": str(broken), **path})


# -------------------------------------------------------------------------------------------------------------- pasted


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (" http://127.0.0.1:5/callback?code=c&state=s \n", {"code": "c", "state": "s"}),
        ("?code=c%2F1&state=s", {"code": "c/1", "state": "s"}),
        ("code=c", {"code": "c"}),
        ("c/1#theirs", {"code": "c/1", "state": "theirs"}),
        ("c==", {"code": "c==", "state": "ours"}),
        ("", {}),
        ("https://as.test/", {}),
        ("error=access_denied&state=s", {"error": "access_denied", "state": "s"}),
    ],
)
def test_what_may_be_pasted(text: str, fields: dict[str, str]) -> None:
    assert pasted(text, "ours") == fields


@given(st.text())
def test_anything_may_be_pasted(text: str) -> None:
    assert all(isinstance(value, str) for value in pasted(text, "ours").values())


@given(st.dictionaries(st.sampled_from(["access_token", "expires_in", "id_token", "token_type", "account"]),
                       st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.text())))  # fmt: skip
def test_any_answer_of_a_token_endpoint_is_credentials_or_a_typed_error(told: dict[str, Any]) -> None:
    oauth = OAuth("mine", OAuthSettings(CLIENT, token_url="https://as.test/t"), Client(proxies={}))
    with clock.use(FakeClock()):
        try:
            whole = oauth._whole(told, 200, b"")  # pyright: ignore[reportPrivateUsage]
            assert oauth._credentials(whole).access == told["access_token"]  # pyright: ignore[reportPrivateUsage]
        except WindlassError as error:
            assert str(error)


def test_s84_rows_are_overridden_as_a_whole() -> None:
    row = {"authorize_url": "https://row.test/a", "token_url": "https://row.test/t", "scopes": "a b"}
    mixed = read_settings("mine", row, {"token_url": "https://own.test/t"}, {})
    # Never the code of one server to another: its pages are no longer those of the row.
    assert (mixed.authorize_url, mixed.scopes) == ("", ("a", "b"))
    named = read_settings("mine", row, {"client_id": "env:ID", "client_secret": "env:GONE"}, {"ID": "x"})
    assert (named.client_id, named.client_secret, named.token_url) == ("x", "", "https://row.test/t")


async def test_a_broken_body_of_any_kind_is_typed() -> None:
    async with FakeOAuth() as server, client_of(settings_of(server)) as oauth:
        begun = oauth.authorization("http://127.0.0.1:9/callback")
        bodies = [b"", b"{", b"[]", b'"x"', b'{"access_token": 5}', b"\xff" * 9, b"[" * 5000, b"x" * (2 << 20)]
        for body in bodies:
            server.steps = [Reply(200, body, JSON)]
            with pytest.raises(WindlassError):
                await oauth.exchange(begun, "c")
