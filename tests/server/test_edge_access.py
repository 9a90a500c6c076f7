"""Who comes in: the same decision on every route, whatever carries the credential and however the path is written."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.conftest import InProcess, StartGateway
from tests.server.edge import Answer, ask, request, until, wire
from windlass.accounts import keys
from windlass.accounts.keys import KeyInfo, KeyRing, digest_of
from windlass.core import clock
from windlass.server.access import is_loopback
from windlass.server.endpoints import Endpoint
from windlass.server.settings import ServerSettings, read_settings
from windlass.server.start import ENDPOINTS
from windlass.testing.faults import FaultServer, Reply, Stream, sse

#: What anybody may ask who reaches the port. A new public route is added here, or it is a mistake.
PUBLIC = {("GET", "/health"), ("GET", "/ready"), ("GET", "/diagnostics/providers"), ("GET", "/openapi.json")}
CARRIERS = {
    "Authorization": "Bearer {}",
    "authorization": "bearer   {}",
    "x-api-key": "{}",
    "X-API-KEY": "{}",
    "api-key": "{}",
    "x-goog-api-key": "{}",
}
NOT_CARRIERS: list[tuple[str, dict[str, str]]] = [
    ("?key={}", {}),
    ("?api_key={}", {}),
    ("?access_token={}", {}),
    ("", {"cookie": "authorization=Bearer {}; x-api-key={}"}),
    ("", {"proxy-authorization": "Bearer {}"}),
    ("", {"x-authorization": "Bearer {}"}),
    ("", {"x-forwarded-authorization": "Bearer {}"}),
    ("", {"authorization": "Basic {}"}),
    ("", {"authorization": "Token {}"}),
    ("", {"authorization": "Bearer{}"}),
]


def path_of(endpoint: Endpoint, name: str = "x1") -> str:
    """Return a path of this route, with `name` for each of its parameters."""
    path = endpoint.path
    while "{" in path:
        path = path[: path.index("{")] + name + path[path.index("}") + 1 :]
    return path


def to(endpoint: Endpoint, headers: dict[str, str], query: str = "", name: str = "x1") -> bytes:
    """Return a request for a route, with the least body where it reads one: one that no handler goes far with."""
    return request(endpoint.method, path_of(endpoint, name) + query, headers, b"{}" if endpoint.body else None)


def guarded(endpoint: Endpoint) -> bool:
    """Tell whether an ordinary key is refused; the counters as text tell of all tenants."""
    return endpoint.access == "admin" or endpoint.path == "/metrics"


def told(answer: Answer) -> tuple[int, bytes]:
    """Return what a client learns of a refusal."""
    return answer.status, answer.body if answer.status >= 400 else b""


async def keyed(gateway: StartGateway, **settings_: Any) -> tuple[InProcess, str, str]:
    """Start a gateway with a key of a client and one of an administrator; returns their secrets too."""
    made = await gateway(**settings_)
    _, client = await made.gateway.accounts.create("ann", tenant="a")
    _, admin = await made.gateway.accounts.create("root", role="admin")
    return made, client, admin


# -------------------------------------------------------------------------------------------------- every route (S42)


async def test_s42_every_carrier_means_the_same_on_every_route(gateway: StartGateway) -> None:
    made, client, admin = await keyed(gateway)
    for endpoint in ENDPOINTS:
        without = told(await ask(made.port, to(endpoint, {})))
        for secret in (client, admin):
            answers = [told(await ask(made.port, to(endpoint, {name: form.format(secret)})))
                       for name, form in CARRIERS.items()]  # fmt: skip
            assert answers == answers[:1] * len(answers), (endpoint.path, answers)
            assert answers[0][0] != 401
            assert (answers[0][0] == 403) is (secret is client and guarded(endpoint)), endpoint.path
        for query, headers in NOT_CARRIERS:
            given_ = {name: value.format(client, client) for name, value in headers.items()}
            assert told(await ask(made.port, to(endpoint, given_, query.format(client)))) == without, (endpoint, query)


async def test_s42_two_different_credentials_are_none(gateway: StartGateway) -> None:
    made, client, admin = await keyed(gateway)
    for endpoint in ENDPOINTS:
        for one, two in (("authorization", "x-api-key"), ("x-api-key", "api-key"), ("api-key", "x-goog-api-key")):
            both = {one: f"Bearer {client}" if one == "authorization" else client, two: admin}
            assert (await ask(made.port, to(endpoint, both))).status == 401, endpoint.path
            same = {one: f"Bearer {client}" if one == "authorization" else client, two: client}
            assert (await ask(made.port, to(endpoint, same))).status != 401
        for name in ("authorization", "x-api-key", "api-key", "x-goog-api-key"):
            twice = to(endpoint, {name: client}).replace(b"\r\n\r\n", f"\r\n{name}: {admin}\r\n\r\n".encode(), 1)
            assert (await ask(made.port, twice)).status == 400


async def test_s48_every_route_needs_credentials_but_those_listed_here(gateway: StartGateway) -> None:
    assert {(row.method, row.path) for row in ENDPOINTS if row.access == "public"} == PUBLIC
    made, _, _ = await keyed(gateway)
    for endpoint in ENDPOINTS:
        public = (endpoint.method, endpoint.path) in PUBLIC
        for headers in ({}, {"authorization": "Bearer wl-wrong"}, {"x-api-key": ""}, {"authorization": "Bearer"}):
            answer = await ask(made.port, to(endpoint, headers))
            assert (answer.status == 401) is not public, (endpoint.path, headers, answer)
            if not public:
                assert answer.headers["www-authenticate"] == "Bearer" and msgspec.json.decode(answer.body)
        if endpoint.method == "GET" and "{" not in endpoint.path:
            head = await ask(made.port, request("HEAD", endpoint.path))
            assert (head.status == 401) is not public


async def test_s48_without_any_key_model_routes_are_open_on_this_machine_and_admin_routes_are_not(
    gateway: StartGateway,
) -> None:
    made = await gateway()
    closed = await gateway(server={"loopback_open": False})
    for endpoint in ENDPOINTS:
        answer = await ask(made.port, to(endpoint, {}))
        assert (answer.status == 401) is (endpoint.access == "admin"), endpoint.path
        answer = await ask(closed.port, to(endpoint, {}))
        assert (answer.status == 401) is (endpoint.access != "public"), endpoint.path


async def test_s49_admin_routes_refuse_an_ordinary_key_and_take_the_servers_own_token(gateway: StartGateway) -> None:
    made, client, _ = await keyed(gateway)
    rows = [row for row in ENDPOINTS if row.access == "admin"]
    assert len(rows) >= 5
    for endpoint in rows:
        answer = await ask(made.port, to(endpoint, {"x-api-key": client}))
        assert answer.status == 403 and msgspec.json.decode(answer.body)["error"]["code"] == "forbidden"
        answer = await ask(made.port, to(endpoint, {"x-api-key": made.gateway.admin_token}))
        assert answer.status not in (401, 403)


async def test_what_strangers_learn_of_providers_and_clients(gateway: StartGateway) -> None:
    made, client, admin = await keyed(gateway, providers={"up": {"base_url": "http://me:pw@127.0.0.1:9/v1"}})
    for headers in ({}, {"x-api-key": client}):
        answer = await ask(made.port, request("GET", "/diagnostics/providers", headers))
        assert b"127.0.0.1" not in answer.body and b"targets" not in answer.body
    assert b"targets" in (await ask(made.port, request("GET", "/diagnostics/providers", {"x-api-key": admin}))).body
    _, boss_a = await made.gateway.accounts.create("boss-a", tenant="a", role="admin")
    _, boss_b = await made.gateway.accounts.create("boss-b", tenant="b", role="admin")
    for secret, seen in ((client, False), (admin, True), (boss_a, True), (boss_b, False)):
        listed = await ask(made.port, request("GET", "/diagnostics/clients", {"x-api-key": secret}))
        assert (b'"ann"' in listed.body) is seen


# ------------------------------------------------------------------------------------------------------- keys (S41)


async def test_s41_only_the_very_same_secret_is_the_key(gateway: StartGateway) -> None:
    made, client, _ = await keyed(gateway)
    near = [
        client[:-1], client + "x", client[1:], client.upper(), client.lower(), client.swapcase(), client[:8], "wl-",
        client.replace("-", "_", 1), client + "=", client + "," + client, "Bearer " + client, client[:-1] + "\xe9",
        client + "\xa0", client * 20, '"' + client + '"', client + "%00", "x" * 4096, "x" * 5000,
    ]  # fmt: skip
    async with wire(made.port) as sent:
        await sent.send(request("GET", "/api/version", {"x-api-key": client}))
        assert (await sent.answer()).status == 200
        # The same connection, so that what was remembered of the head before must not be taken for this one.
        await sent.send(
            request("GET", "/api/version", {"x-api-key": client[:-1] + ("a" if client[-1] != "a" else "b")})
        )
        assert (await sent.answer()).status == 401
    for secret in near:
        assert (await ask(made.port, request("GET", "/api/version", {"x-api-key": secret}))).status == 401, secret
    assert (await ask(made.port, request("GET", "/api/version", {"x-api-key": "x" * 1_000_000}))).status == 431
    assert (await ask(made.port, request("GET", "/api/version", {"x-api-key": client + "\0"}))).status == 400


secrets_ = st.text(max_size=40) | st.text("ab", max_size=6) | st.text(max_size=6).map(lambda text: "wl-same-" + text)


@given(st.lists(secrets_, min_size=1, max_size=12, unique=True), secrets_)
@settings(max_examples=150, deadline=None)
def test_s41_a_secret_is_found_by_all_of_it(known: list[str], asked: str) -> None:
    ring = KeyRing()
    rows = [(str(at), f"k{at}", "", "client", "[]", None, None, None, None, "total", None, text[:8], 0, None, None)
            for at, text in enumerate(known)]  # fmt: skip
    ring.take(rows, [(digest_of(text), str(at), None) for at, text in enumerate(known)], [])
    for at, text in enumerate(known):
        found = ring.identify(text)
        assert isinstance(found, KeyInfo) and found.key_id == str(at)
    assert (ring.identify(asked) is not None) is (asked in known)


async def test_s52_known_and_unknown_secrets_take_the_same_steps(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, client, _ = await keyed(gateway)
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def watched(one: Any, two: Any) -> bool:
        compared.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(keys.hmac, "compare_digest", watched)
    steps: list[list[tuple[int, int]]] = []
    for secret in (client, "wl-" + "x" * 43, client[:-1] + "!"):
        compared.clear()
        await ask(made.port, request("GET", "/api/version", {"x-api-key": secret}))
        steps.append(compared[-1:])
    # Digests of 32 bytes, never the secrets themselves, and one comparison whether there is such a key or not.
    assert steps == [[(32, 32)]] * 3


# ------------------------------------------------------------------------------- what is remembered of a repeated head


async def status_of(sent: Any, data: bytes) -> int:
    """Send a request on a connection that is open already."""
    await sent.send(data)
    return (await sent.answer()).status


async def test_a_remembered_decision_ends_with_the_key(gateway: StartGateway) -> None:
    made, client, _ = await keyed(gateway)
    accounts = made.gateway.accounts
    (row,) = [row for row in await accounts.list() if row.name == "ann"]
    data = request("GET", "/api/version", {"x-api-key": client})
    async with wire(made.port) as sent:
        assert [await status_of(sent, data) for _ in range(3)] == [200] * 3
        await accounts.revoke(row.key_id)
        assert await status_of(sent, data) == 401
    key, rotated = await accounts.create("cid")
    data = request("GET", "/api/version", {"x-api-key": rotated})
    async with wire(made.port) as sent:
        assert [await status_of(sent, data) for _ in range(3)] == [200] * 3
        await accounts.rotate(key.key_id, grace=0)
        assert await status_of(sent, data) == 401


async def test_a_remembered_decision_ends_with_the_time_of_the_key(gateway: StartGateway) -> None:
    made, _, _ = await keyed(gateway)
    accounts = made.gateway.accounts
    for replaced in (False, True):
        if replaced:
            key, secret = await accounts.create("replaced")
            await accounts.rotate(key.key_id, grace=0.4)
        else:
            _, secret = await accounts.create("brief", expires=clock.now_ns() + 400_000_000)
        data = request("GET", "/api/version", {"x-api-key": secret})
        async with wire(made.port) as sent:
            assert [await status_of(sent, data) for _ in range(2)] == [200] * 2
            async with asyncio.timeout(10):
                while (status := await status_of(sent, data)) == 200:
                    await asyncio.sleep(0.02)
            assert status == 401


async def test_a_remembered_decision_ends_when_the_first_key_is_made(gateway: StartGateway) -> None:
    made = await gateway()
    data = request("GET", "/api/version")
    async with wire(made.port) as sent:
        assert [await status_of(sent, data) for _ in range(2)] == [200] * 2
        await made.gateway.accounts.create("ann")
        assert await status_of(sent, data) == 401


async def test_a_remembered_decision_ends_with_a_reload(gateway: StartGateway) -> None:
    made = await gateway()
    data = request("GET", "/api/version", {"host": "localhost:8081"})
    async with wire(made.port) as sent:
        assert [await status_of(sent, data) for _ in range(2)] == [200] * 2
        made.gateway.replace(read_settings({"loopback_open": False}), made.gateway.config, made.gateway.router)
        assert await status_of(sent, data) == 401
    made.gateway.replace(ServerSettings(), made.gateway.config, made.gateway.router)
    other = request("GET", "/api/version", {"host": "gateway.example"})
    assert (await ask(made.port, other)).status == 421
    made.gateway.replace(read_settings({"hosts": ["Gateway.Example"]}), made.gateway.config, made.gateway.router)
    assert (await ask(made.port, other)).status == 200


async def test_s44_a_key_that_is_revoked_while_its_body_comes_is_not_served(gateway: StartGateway) -> None:
    made, client, _ = await keyed(gateway)
    async with wire(made.port) as sent, wire(made.port) as other:
        for one in (sent, other):
            head = {"x-api-key": client, "content-length": "2", "content-type": "application/json"}
            await one.send(request("POST", "/v1/chat/completions", head), b"{")
        await until(lambda: made.listener.buffered == 2)
        await other.send(b"}")
        assert (await other.answer()).status == 400
        (row,) = [row for row in await made.gateway.accounts.list() if row.name == "ann"]
        await made.gateway.accounts.revoke(row.key_id)
        await sent.send(b"}")
        assert (await sent.answer()).status == 401


async def test_s44_a_revoked_key_loses_its_stream_at_once_and_others_theirs_not(gateway: StartGateway) -> None:
    chunk = '{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}'
    go = asyncio.Event()
    async with FaultServer([Stream([*sse(chunk), go, *sse("[DONE]")])]) as upstream:
        routes = {"fake": "up:fake"}
        made, client, admin = await keyed(
            gateway, providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "k"}}, routes=routes
        )
        body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"hi"}]}'
        async with wire(made.port) as one, wire(made.port) as two:
            for sent, secret in ((one, client), (two, admin)):
                await sent.send(request("POST", "/v1/chat/completions", {"x-api-key": secret}, body))
                assert (await sent.reader.readuntil(b'"one"')).startswith(b"HTTP/1.1 200")
            (row,) = [row for row in await made.gateway.accounts.list() if row.name == "ann"]
            await made.gateway.accounts.revoke(row.key_id)
            got = await one.reader.readuntil(b"0\r\n\r\n")
            assert b"key_revoked" in got and b"[DONE]" not in got
            await upstream.wait(open=1)
            go.set()
            assert b"[DONE]" in await two.reader.readuntil(b"0\r\n\r\n")


# ------------------------------------------------------------------------------------------------- browsers (S47, S50)


async def test_s47_pages_of_other_sites_get_nothing(gateway: StartGateway) -> None:
    made = await gateway(server={"origins": ["https://app.example"]})
    evil = ["https://evil.example", "null", "http://localhost.evil", "http://localhost", "http://127.0.0.1:8081",
            "https://app.example.evil", "https://app.example:444", "http://app.example", "https://APP.example",
            ""]  # fmt: skip
    for endpoint in ENDPOINTS:
        answers = [await ask(made.port, to(endpoint, {"origin": origin})) for origin in evil]
        assert {answer.status for answer in answers} == {403}, endpoint.path
        asked = {"origin": evil[0], "access-control-request-method": endpoint.method}
        answers.append(await ask(made.port, request("OPTIONS", path_of(endpoint), asked)))
        assert answers[-1].status == 405 and endpoint.method in answers[-1].headers["allow"]
        assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]
        allowed = await ask(made.port, to(endpoint, {"origin": "https://app.example"}))
        assert (allowed.status == 401) is (endpoint.access == "admin") and allowed.status != 403


async def test_s47_a_body_that_a_page_can_send_unasked_is_refused(gateway: StartGateway) -> None:
    made = await gateway()
    kinds = ["text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data",
             "application/jsonp", "application/json-seq", "text/json", "*/*", "application/json, x/y"]  # fmt: skip
    for endpoint in ENDPOINTS:
        if endpoint.body and endpoint.access != "admin":
            for kind in kinds:
                assert (await ask(made.port, to(endpoint, {"content-type": kind}))).status == 415, (endpoint, kind)
            for kind in ("application/json", "Application/JSON; charset=utf-8", ""):
                assert (await ask(made.port, to(endpoint, {"content-type": kind}))).status not in (403, 415)


async def test_s50_a_name_that_was_made_to_point_here_is_not_answered(gateway: StartGateway) -> None:
    made = await gateway(server={"hosts": ["gateway.example"]})
    known = ["localhost", "LocalHost", "localhost:1", "127.0.0.1", "127.0.0.1:8081", "[::1]", "[::1]:8081",
             "gateway.example", "GATEWAY.example:443"]  # fmt: skip
    others = ["evil.example", "evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.",
              "evil-localhost", "127.0.0.2", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:0:0:1]", "2130706433",
              "127.1", "gateway.example.", "x.gateway.example"]  # fmt: skip
    for endpoint in ENDPOINTS:
        for host in known if endpoint.path == "/health" else known[:1]:
            assert (await ask(made.port, to(endpoint, {"host": host}))).status != 421, host
        for host in others if endpoint.path in ("/health", "/v1/chat/completions") else others[:2]:
            answer = await ask(made.port, to(endpoint, {"host": host}))
            assert answer.status == 421 and host.encode() not in answer.body, host
    forwarded = {"host": "evil.example", "x-forwarded-host": "localhost", "forwarded": "host=localhost"}
    assert (await ask(made.port, request("GET", "/health", forwarded))).status == 421


async def test_s50_a_server_that_others_reach_answers_to_any_name_and_needs_keys(gateway: StartGateway) -> None:
    made = await gateway(settings=ServerSettings(host="127.0.0.1"))
    await made.gateway.accounts.create("ann")
    made.gateway.replace(ServerSettings(host="0.0.0.0"), made.gateway.config, made.gateway.router)
    assert (await ask(made.port, request("GET", "/health", {"host": "any.example"}))).status == 200
    assert (await ask(made.port, request("GET", "/api/version", {"host": "any.example"}))).status == 401
    made.gateway.replace(ServerSettings(host="127.0.0.9"), made.gateway.config, made.gateway.router)
    assert (await ask(made.port, request("GET", "/health", {"host": "127.0.0.9:80"}))).status == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("127.evil.example", False),
     ("127.0.0.1.evil.example", False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("", False),
     ("localhost.evil.example", False), ("127.1", False), ("::ffff:10.0.0.1", False)],
)  # fmt: skip
def test_s51_only_addresses_of_this_machine_count_as_such(host: str, local: bool) -> None:
    assert is_loopback(host) is local


# --------------------------------------------------------------------------------------- paths and headers (S67, S68)


async def test_s67_another_way_to_write_a_path_is_another_path(gateway: StartGateway) -> None:
    made, client, _ = await keyed(gateway)
    paths = [
        "/v1/%2e%2e/health", "/v1/../health", "/./health", "/health/", "/health/.", "/Health", "/HEALTH", "/%68ealth",
        "/health;x=y", "/health%00", "/health%20", "/health%2f", "/health%3fx", "/v1/..;/health", "/v1/keys/../models",
        "/v1//models", "/v1/%2fmodels", "/v1%2fkeys", "/v1/%6beys", "/v1/keys/", "/V1/keys", "/v1/KEYS", "/v1\\keys",
        "/v1/models/%2e%2e/keys", "/v1/models/..%2fkeys/x", "/v1/models/%2E%2E", "/v1/models/..", "/v1/models/%00",
        "/v1/models/%0d%0a", "/v1/models/%ff", "/v1/models/%c0%ae", "/v1/models/\u0025zz", "/", "/health/../v1/keys",
        "/v1/sessions/%2e%2e", "/v1/responses/..%2f..%2fkeys", "/model/%2e%2e/converse", "/~", "/health.json",
    ]  # fmt: skip
    for path in paths:
        for headers in ({}, {"x-api-key": client}):
            for method in ("GET", "POST", "DELETE"):
                body = b"{}" if method == "POST" else None
                answer = await ask(made.port, request(method, path, headers, body))
                assert answer.status in (400, 401, 404, 405), (method, path, answer)
                assert b"Traceback" not in answer.body
    for path in ("//health", "//evil.example/health", "/health#", "http://localhost/health"):
        assert (await ask(made.port, request("GET", path, {"x-api-key": client}))).status == 400
    for query in ("?", "?a=b", "?/../v1/keys", "?%00", "?a=b?c=d"):
        assert (await ask(made.port, request("GET", "/health" + query))).status == 200
        assert (await ask(made.port, request("GET", "/v1/keys" + query, {"x-api-key": client}))).status == 403


async def test_s68_what_a_proxy_would_say_is_not_believed(gateway: StartGateway) -> None:
    made, client, admin = await keyed(gateway)
    lies = {
        "x-http-method-override": "DELETE", "x-method-override": "DELETE", "x-http-method": "DELETE",
        "x-forwarded-for": "203.0.113.9", "x-real-ip": "203.0.113.9", "forwarded": "for=203.0.113.9;host=evil",
        "x-forwarded-host": "evil", "x-forwarded-proto": "https", "x-forwarded-port": "1", "x-forwarded-prefix": "/v1",
        "x-original-url": "/v1/keys", "x-rewrite-url": "/v1/keys", "x-forwarded-user": "root", "x-remote-user": "root",
        "x-forwarded-client-cert": "x", "x-windlass-tenant": "b", "x-tenant-id": "b", "x-admin": "1",
    }  # fmt: skip
    for endpoint in ENDPOINTS:
        for secret in ({}, {"x-api-key": client}):
            plain = await ask(made.port, to(endpoint, secret))
            assert told(await ask(made.port, to(endpoint, {**secret, **lies}))) == told(plain), endpoint.path
    listed = await ask(made.port, request("GET", "/diagnostics/clients", {"x-api-key": admin, **lies}))
    addresses = {row["address"] for row in msgspec.json.decode(listed.body)["known_clients"]}
    assert addresses == {"127.0.0.1"}


OK = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


async def test_s70_a_clients_headers_go_no_further_and_neither_do_an_upstreams(gateway: StartGateway) -> None:
    answer = Reply(200, OK, {"content-type": "application/json", "set-cookie": "a=b", "x-upstream": "secret-host",
                             "server": "upstream/1", "access-control-allow-origin": "*"})  # fmt: skip
    async with FaultServer([answer]) as upstream:
        made, client, _ = await keyed(
            gateway,
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "sk-up"}},
            routes={"fake": "up:fake"},
        )
        mine = {
            "authorization": f"Bearer {client}", "connection": "authorization, x-hop", "x-hop": "1", "te": "trailers",
            "keep-alive": "timeout=5", "proxy-connection": "keep-alive", "proxy-authorization": "Basic eA==",
            "upgrade": "h2c", "http2-settings": "AAMAAABk", "trailer": "x", "cookie": "a=b", "x-mine": "1",
            "openai-organization": "org-x", "user-agent": "mine/1", "x-forwarded-for": "203.0.113.9",
            "x-request-id": "req-1", "accept-encoding": "br",
        }  # fmt: skip
        for path, model in (("/v1/chat/completions", "fake"), ("/v1/messages", "fake")):
            body = msgspec.json.encode(
                {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
            )
            got = await ask(made.port, request("POST", path, mine, body))
            assert got.status == 200
            assert not {"set-cookie", "x-upstream", "server", "access-control-allow-origin", "upgrade"} & set(
                got.headers
            )
        await until(lambda: len(upstream.requests) == 2)
        for received in upstream.requests:
            assert received.headers["authorization"] == "Bearer sk-up"
            assert set(received.headers) <= {
                "host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
            }  # fmt: skip
            assert not {"mine/1", "br", client} & set(received.headers.values())
