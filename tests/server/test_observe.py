"""Health, readiness, metrics and diagnostics: reference A's shapes, a strict reader of Prometheus' format, no leaks."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.conftest import InProcess, StartGateway
from windlass.accounts.records import RequestRecord
from windlass.server.observe import prometheus
from windlass.server.stats import BUCKETS, Stats
from windlass.testing.faults import FaultServer, Fin, Reply, Stream, sse

JSON = {"content-type": "application/json"}
ASK = {"model": "here", "messages": [{"role": "user", "content": "one two three"}]}


async def _get(up: InProcess, path: str, key: str = "", **headers: str) -> httpx.Response:
    if key:
        headers["authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(base_url=up.url) as client:
        return await client.get(path, headers=headers)


async def _ask(up: InProcess, **changes: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=up.url) as client:
        return await client.post("/v1/chat/completions", json={**ASK, **changes})


# --------------------------------------------------------------------------------------------------- Prometheus' format

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


class Family:
    """One metric: its kind, its text, and its samples by (name, labels)."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def value(self, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        wanted = set(labels.items())
        return math.fsum(value for (_, found), value in self.samples.items() if wanted <= found)


def parse(text: str) -> dict[str, Family]:
    """Read Prometheus' text format 0.0.4 strictly: HELP, TYPE, then that family's samples, and nothing twice."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    current = helped = about = ""
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            helped, _, about = line[7:].partition(" ")
            assert re.fullmatch(_NAME, helped) and about and helped not in families, line
        elif line.startswith("# TYPE "):
            current, _, kind = line[7:].partition(" ")
            assert current == helped and kind in _SUFFIXES, line
            families[current] = Family(kind, about)
        else:
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            name, block, value = found.groups()
            family = families[current]
            assert name in [current + suffix for suffix in _SUFFIXES[family.kind]], line
            labels = _LABEL.findall(block or "")
            assert ",".join([f'{key}="{text}"' for key, text in labels]) == (block or ""), line
            assert len({key for key, _ in labels}) == len(labels), line
            key = (name, frozenset((k, re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), v)) for k, v in labels))
            assert key not in family.samples, line
            family.samples[key] = float(value)
    for name, family in families.items():
        if family.kind == "histogram":
            _check_histogram(name, family)
    return families


def _check_histogram(name: str, family: Family) -> None:
    rows: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    for (sample, labels), value in family.samples.items():
        if sample == f"{name}_bucket":
            bound = float(dict(labels)["le"].replace("+Inf", "inf"))
            rows.setdefault(frozenset(pair for pair in labels if pair[0] != "le"), []).append((bound, value))
    for labels, buckets in rows.items():
        buckets.sort()
        assert [bound for bound, _ in buckets] == [*BUCKETS, math.inf]
        counts = [count for _, count in buckets]
        assert counts == sorted(counts) and counts[-1] == family.samples[f"{name}_count", labels]
        assert (f"{name}_sum", labels) in family.samples


async def _metrics(up: InProcess, key: str = "") -> dict[str, Family]:
    answer = await _get(up, "/metrics", key)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.text)


async def test_metrics_are_prometheus_text_and_count_what_happened(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"}, server={"instance_id": 'a"b\\c'})
    for _ in range(3):
        assert (await _ask(up)).status_code == 200
    assert (await _ask(up, model="nobody:x")).status_code == 404
    assert (await _get(up, "/nothing")).status_code == 404
    families = await _metrics(up)
    requests = families["windlass_requests_total"]
    assert requests.value() == 4 and requests.value(target="echo:x", status="200", outcome="ok") == 3
    assert families["windlass_attempts_total"].value() == 3
    assert families["windlass_input_tokens_total"].value(target="echo:x") == 9
    assert families["windlass_output_tokens_total"].value(target="echo:x") == 12
    assert families["windlass_http_refused_total"].value(status="404") == 1
    assert families["windlass_http_responses_total"].value(result="failed") == 1
    assert families["windlass_target_healthy"].value(target="echo:x", state="closed") == 1
    (labels,) = [labels for _, labels in families["windlass_build_info"].samples]
    assert dict(labels)["instance"] == 'a"b\\c'
    count = {k: v for (name, k), v in families["windlass_request_duration_seconds"].samples.items() if "_count" in name}
    assert sum(count.values()) == 4
    total = families["windlass_own_seconds_total"].value() + families["windlass_upstream_seconds_total"].value()
    sums = [v for (n, _), v in families["windlass_request_duration_seconds"].samples.items() if n.endswith("_sum")]
    assert math.fsum(sums) == pytest.approx(total)


async def test_s59_names_that_clients_make_up_are_no_labels(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x", "far": ["echo:y", "echo:z"]})
    names = [
        'echo:evil"} 1',
        "echo:a, fault:b",
        "echo:a, echo:x, echo:y, echo:z, echo:x",
        "echo:a\\b",
        "here",
        "nobody:x",
    ]
    for name in [*names, *[f"echo:{number}" for number in range(30)]]:
        await _ask(up, model=name)
    families = await _metrics(up)
    targets = {dict(labels)["target"] for _, labels in families["windlass_requests_total"].samples}
    assert targets == {"", "echo:x", "echo:other"}
    known = {dict(labels)["target"] for _, labels in families["windlass_target_healthy"].samples}
    assert {"echo:x", "echo:y", "echo:z"} <= known <= {"echo:x", "echo:y", "echo:z", "local"}
    assert families["windlass_requests_total"].value() == 36


@given(st.lists(st.text(max_size=40), max_size=60))
def test_series_stay_few_whatever_targets_are_called(names: list[str]) -> None:
    ours = frozenset(("echo", "fault", "echo:x", "fault:y"))
    stats = Stats(ours.__contains__)
    for name in names:
        for target in (name, f"echo:{name}", f"{name}, echo:x", f"echo:x, {name}"):
            stats.observe(RequestRecord("1", 1, target=target))
    allowed = {"", "other", "echo", "fault", "echo:x", "fault:y", "echo:other", "fault:other"}
    for _, label, _, _ in stats.series:
        assert label in allowed or set(label.split(", ")) <= ours
    assert sum(row.count for row in stats.series.values()) == 4 * len(names)


def test_series_are_bounded_and_nothing_is_lost() -> None:
    stats = Stats(lambda name: True)
    for number in range(3000):
        stats.observe(RequestRecord("1", 1, target=f"echo:{number}", cost=1))
    assert len(stats.series) == 2001
    assert sum(row.cost for row in stats.series.values()) == 3000


async def test_money_is_told_to_the_last_nano_dollar(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"})
    for cost in (9_007_199_254_740_993, 1):
        up.gateway.stats.observe(RequestRecord("1", 1, endpoint="e", target="echo:x", cost=cost))
    lines = [line for line in prometheus(up.gateway) if line.startswith("windlass_cost_dollars_total")]
    assert [line.rpartition(" ")[2] for line in lines] == ["9007199.254740994"]


async def test_metrics_in_reference_a_s_json(gateway: StartGateway) -> None:
    plain = await gateway(routes={"here": "echo:x"})
    await _ask(plain)
    asked = await _get(plain, "/metrics", accept="application/json")
    assert asked.json() == {
        "instance_id": "local-instance", "total_requests": 2, "successful_requests": 1, "failed_requests": 0,
        "active_connections": 1,
    }  # fmt: skip
    configured = await gateway(server={"metrics": "json"})
    assert set((await _get(configured, "/metrics")).json()) == set(asked.json())
    assert (await _get(configured, "/metrics", accept="text/plain")).text.startswith("# HELP ")


async def test_s54_totals_of_all_tenants_are_for_administrators(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"})
    _, secret = await up.gateway.accounts.create("ann", tenant="t1")
    _, admin = await up.gateway.accounts.create("root", role="admin")
    assert (await _get(up, "/metrics")).status_code == 401
    refused = await _get(up, "/metrics", secret)
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "forbidden"
    assert (await _get(up, "/metrics", secret, accept="application/json")).status_code == 200
    assert "windlass_requests_total" in await _metrics(up, admin)


# --------------------------------------------------------------------------------------------------- health, readiness


async def test_health_and_readiness(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"}, server={"instance_id": "i-1"})
    assert (await _get(up, "/health")).json() == {"status": "ok", "instance_id": "i-1"}
    ready = await _get(up, "/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "instance_id": "i-1"})


async def test_not_ready_while_no_target_of_a_route_answers(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "fault:down", "there": ["echo:x", "fault:down"]}, server={"attempts": 1})
    target = up.gateway.router.route("here").targets[0]
    while target.breaker.healthy:
        await _ask(up)
    ready = await _get(up, "/ready")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["no target of route here answers"]
    await up.gateway.accounts.create("ann")
    assert "reasons" not in (await _get(up, "/ready")).json()


async def test_not_ready_while_records_cannot_be_written_and_ready_again(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"})
    accounts = up.gateway.accounts
    await accounts.tables.execute("ALTER TABLE account_requests RENAME TO away")
    await _ask(up)
    with pytest.raises(Exception, match="account_requests"):
        await accounts.flush()
    ready = await _get(up, "/ready")
    assert ready.status_code == 503 and ready.json()["reasons"] == ["request records cannot be written"]
    await accounts.tables.execute("ALTER TABLE away RENAME TO account_requests")
    await accounts.flush()
    assert (await _get(up, "/ready")).status_code == 200


# ---------------------------------------------------------------------------------------------------------- diagnostics


async def test_clients_are_listed_to_administrators_alone(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"})
    assert (await _get(up, "/diagnostics/clients")).json()["known_clients"] == []
    _, secret = await up.gateway.accounts.create("ann", tenant="t1")
    for _ in range(2):
        await _get(up, "/diagnostics/requests", secret)
    told = (await _get(up, "/diagnostics/clients", secret)).json()
    assert told == {"instance_id": "local-instance", "active_connections": 1, "known_clients": []}
    admin = (await _get(up, "/diagnostics/clients", up.gateway.admin_token)).json()
    rows = {row["key"]: row for row in admin["known_clients"]}
    assert rows["ann"]["address"] == "127.0.0.1" and rows["ann"]["requests"] == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", rows["ann"]["last_seen"])
    assert secret not in str(admin) and up.gateway.admin_token not in str(admin)


async def test_requests_are_counted_in_reference_a_s_shape(gateway: StartGateway) -> None:
    up = await gateway(routes={"here": "echo:x"})
    await _ask(up)
    await _ask(up, model="nobody:x")
    told = (await _get(up, "/diagnostics/requests")).json()
    assert told == {
        "instance_id": "local-instance", "total_requests": 3, "successful_requests": 1, "failed_requests": 1
    }  # fmt: skip


_TAGS: list[tuple[str, Any, dict[str, Any]]] = [
    ("up", Reply(200, b'{"models":[{"name":"qwen3.5:9b"},{"name":"x"}]}', JSON),
     {"reachable": True, "configured_model_available": True, "installed_model_count": 2, "error": None}),
    ("other model", Reply(200, b'{"models":[{"name":"llama:1"},{"name":"qwen3.5:2b"}]}', JSON),
     {"reachable": True, "configured_model_available": False, "suggested_model": "qwen3.5:2b",
      "error": "configured_model_not_found"}),
    ("nothing installed", Reply(200, b'{"models":[]}', JSON),
     {"reachable": True, "installed_model_count": 0, "suggested_model": None, "error": "configured_model_not_found"}),
    ("no json", Reply(200, b"<html>", JSON), {"reachable": False, "error": "invalid_tags_payload"}),
    ("no object", Reply(200, b"[1]", JSON), {"reachable": False, "error": "invalid_tags_payload"}),
    ("no models", Reply(200, b'{"tags":[]}', JSON), {"reachable": False, "error": "missing_models_field"}),
    ("null models", Reply(200, b'{"models":null}', JSON), {"reachable": False, "error": "invalid_models_field"}),
    ("odd models", Reply(200, b'{"models":{"a":1}}', JSON), {"reachable": False, "error": "invalid_models_field"}),
    ("hangs up", Fin(), {"reachable": False, "error": "ProviderConnectionError"}),
]  # fmt: skip


@pytest.mark.parametrize(("step", "expected"), [row[1:] for row in _TAGS], ids=[row[0] for row in _TAGS])
async def test_the_ollama_probe_tells_reference_a_s_words(
    gateway: StartGateway, step: Any, expected: dict[str, Any]
) -> None:
    async with FaultServer([step]) as upstream:
        up = await gateway(providers={"ollama": {"base_url": upstream.url, "model": "qwen3.5:9b"}})
        told = (await _get(up, "/diagnostics/providers")).json()["providers"]["ollama"]
        assert told["configured_model"] == "qwen3.5:9b" and told["base_url"] is None
        assert {name: told[name] for name in expected} == expected


async def test_the_probe_s_http_error_has_its_detail_for_administrators(gateway: StartGateway) -> None:
    async with FaultServer([Reply(418, b'{"error":"secret-host says no"}', JSON)]) as upstream:
        up = await gateway(providers={"ollama": {"base_url": upstream.url}})
        stranger = (await _get(up, "/diagnostics/providers")).json()["providers"]["ollama"]
        admin = (await _get(up, "/diagnostics/providers", up.gateway.admin_token)).json()["providers"]["ollama"]
        assert stranger["error"] == "HTTP 418"
        assert admin["error"].startswith("HTTP 418: ") and "secret-host says no" in admin["error"]
        assert admin["base_url"] == upstream.url
        # Asked once, however many want to know.
        assert len(upstream.requests) == 1


async def test_s54_strangers_learn_no_address_and_nobody_a_key(gateway: StartGateway, tmp_path: Path) -> None:
    canaries = {
        "openrouter": {"api_key": "sk-canary-1", "base_url": "https://user:canary-2@router.internal/v1?k=canary-3"},
        "bedrock": {"base_url": "https://bedrock.internal"},
        "ollama": {"base_url": "http://127.0.0.1:9"},
    }
    environ = {
        "AWS_ACCESS_KEY_ID": "canary-4", "AWS_SECRET_ACCESS_KEY": "canary-5", "AWS_SESSION_TOKEN": "canary-6",
        "AWS_REGION": "eu-west-9", "OPENROUTER_HTTP_REFERER": "https://canary-7", "OPENROUTER_APP_NAME": "canary-8",
    }  # fmt: skip
    up = await gateway(providers=canaries, environ=environ)
    stranger = (await _get(up, "/diagnostics/providers")).json()
    assert set(stranger) == {"instance_id", "providers"}
    providers = stranger["providers"]
    assert set(providers) == {"default_provider", "ollama", "openrouter", "bedrock"}
    assert providers["openrouter"] == {
        "provider": "openrouter", "base_url": None, "configured_api_key": True,
        "default_model": providers["openrouter"]["default_model"], "has_http_referer": True, "has_app_name": True,
    }  # fmt: skip
    assert providers["bedrock"] == {
        "provider": "bedrock", "runtime_base_url": None, "region": "eu-west-9", "configured_credentials": True,
        "has_session_token": True, "default_model": providers["bedrock"]["default_model"],
    }  # fmt: skip
    admin = (await _get(up, "/diagnostics/providers", up.gateway.admin_token)).json()
    assert admin["providers"]["openrouter"]["base_url"] == "https://router.internal/v1"
    assert "canary" not in str(stranger) and "internal" not in str(stranger)
    assert "canary" not in str(admin) and "targets" in admin


async def test_what_a_stream_used_is_counted_where_its_model_is_priced(gateway: StartGateway) -> None:
    chunk = '{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}'
    usage = '{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}'
    async with FaultServer([Stream(sse(chunk, usage, "[DONE]"))]) as upstream:
        providers = {"up": {"base_url": f"{upstream.url}/v1", "api_key": "k"}}
        up = await gateway(providers=providers, routes={"here": "up:gpt-4.1"})
        assert (await _ask(up, stream=True)).status_code == 200
        families = await _metrics(up)
        assert families["windlass_input_tokens_total"].value(target="up:gpt-4.1") == 7
        assert families["windlass_output_tokens_total"].value() == 2
        # The vendor's own name of it is in no table: then it is the price of the name by which it was asked.
        assert families["windlass_cost_dollars_total"].value() == pytest.approx((7 * 2 + 2 * 8) / 1e6)
        assert families["windlass_unknown_cost_total"].value() == 0
