"""The program from outside: signals, reloads, revoked keys, addresses."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Serve, Served
from windlass.testing.faults import FaultServer, Reply, Stream, sse

JSON = {"content-type": "application/json"}
ASK = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


def _chunk(text: str, finish: str = "null") -> str:
    return f'{{"id":"c","model":"m","choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{finish}}}]}}'


def _config(upstream: FaultServer, *server: str) -> str:
    lines = "\n".join(server)
    return f"""
[server]
{lines}
[providers.up]
base_url = "{upstream.url}/v1"
api_key = "sk-up"
[routes]
fake = "up:fake"
"""


def _windlass(served: Served, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "windlass", *args]
    return subprocess.run(command, env=served.env, cwd=served.home, capture_output=True, text=True, timeout=30)


async def _in_thread(served: Served, number: int = signal.SIGTERM) -> int:
    return await asyncio.to_thread(served.stop, number)


async def test_r33_sigterm_lets_streams_end_and_exits_0(serve: Serve) -> None:
    go = asyncio.Event()
    parts = [*sse(_chunk("one ")), go, *sse(_chunk("two", '"stop"'), "[DONE]")]
    async with FaultServer([Stream(parts)]) as upstream, httpx.AsyncClient(timeout=20) as client:
        served = serve(_config(upstream))
        texts: list[str] = []

        async def read(begun: asyncio.Event) -> None:
            async with client.stream("POST", f"{served.url}/v1/chat/completions", json=ASK) as answer:
                async for piece in answer.aiter_text():
                    begun.set()
                    texts.append(piece)

        begun = [asyncio.Event() for _ in range(10)]
        readers = [asyncio.ensure_future(read(event)) for event in begun]
        for event in begun:
            await event.wait()
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            for _ in range(200):
                await client.get(f"{served.url}/health", headers={"connection": "close"})
        go.set()
        await asyncio.gather(*readers)
        assert "".join(texts).count("[DONE]") == 10
        assert await asyncio.to_thread(served.process.wait, 20) == 0


async def test_r33_streams_past_the_drain_window_end_with_an_error(serve: Serve) -> None:
    parts = [*sse(_chunk("one ")), asyncio.Event(), *sse("[DONE]")]
    async with FaultServer([Stream(parts)]) as upstream, httpx.AsyncClient(timeout=20) as client:
        served = serve(_config(upstream, "drain_seconds = 0.2"))
        text = ""
        async with client.stream("POST", f"{served.url}/v1/chat/completions", json=ASK) as answer:
            async for piece in answer.aiter_text():
                if not text:
                    served.process.send_signal(signal.SIGTERM)
                text += piece
        assert "[DONE]" not in text
        assert json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert await asyncio.to_thread(served.process.wait, 20) == 0


async def test_sighup_takes_new_routes_and_drops_no_stream(serve: Serve) -> None:
    go = asyncio.Event()
    parts = [*sse(_chunk("one ")), go, *sse(_chunk("two", '"stop"'), "[DONE]")]
    whole = Reply(200, b'{"choices":[{"message":{"content":"new"},"finish_reason":"stop"}]}', JSON)
    async with (
        FaultServer([Stream(parts)]) as old,
        FaultServer([whole]) as new,
        httpx.AsyncClient(timeout=20) as client,
    ):
        served = serve(_config(old))
        text = ""
        async with client.stream("POST", f"{served.url}/v1/chat/completions", json=ASK) as answer:
            async for piece in answer.aiter_text():
                text += piece
                if go.is_set():
                    continue
                (served.home / "gateway.toml").write_text("this is = [not toml")
                served.process.send_signal(signal.SIGHUP)
                await _logged(served, "not reloaded")
                (served.home / "gateway.toml").write_text(_config(new))
                served.process.send_signal(signal.SIGHUP)
                await _logged(served, "read again")
                done = await client.post(f"{served.url}/v1/chat/completions", json={**ASK, "stream": False})
                assert done.json()["choices"][0]["message"]["content"] == "new"
                go.set()
        assert text.count("[DONE]") == 1
        assert await _in_thread(served) == 0


async def test_reload_config_sees_a_changed_file(serve: Serve) -> None:
    whole = Reply(200, b'{"choices":[{"message":{"content":"new"},"finish_reason":"stop"}]}', JSON)
    async with FaultServer([whole]) as new, httpx.AsyncClient(timeout=20) as client:
        served = serve("", "--reload-config")
        (served.home / "gateway.toml").write_text(_config(new))
        await _logged(served, "read again")
        done = await client.post(f"{served.url}/v1/chat/completions", json={**ASK, "stream": False})
        assert done.json()["choices"][0]["message"]["content"] == "new"


async def test_s44_a_revoked_key_ends_its_stream_within_a_second_or_so(serve: Serve) -> None:
    parts = [*sse(_chunk("one ")), asyncio.Event(), *sse("[DONE]")]
    async with FaultServer([Stream(parts)]) as upstream, httpx.AsyncClient(timeout=20) as client:
        served = serve(_config(upstream))
        key = _windlass(served, "keys", "create", "ann").stdout.strip()
        url, headers = f"{served.url}/v1/chat/completions", {"authorization": f"Bearer {key}"}
        for _ in range(1000):  # until the gateway has seen that there are keys now
            if (await client.post(url, json={}, headers={"authorization": "Bearer nobody"})).status_code == 401:
                break
        text = ""
        async with client.stream("POST", url, json=ASK, headers=headers) as answer:
            assert answer.status_code == 200
            async for piece in answer.aiter_text():
                if not text:
                    lines = _windlass(served, "keys", "list", "--json").stdout.splitlines()
                    listed = [json.loads(line) for line in lines]
                    number = next(row["id"] for row in listed if row["name"] == "ann")
                    assert _windlass(served, "keys", "revoke", number).returncode == 0
                text += piece
        assert "key_revoked" in text and "[DONE]" not in text
        assert (await client.post(url, json=ASK, headers=headers)).status_code == 401


def test_s51_an_address_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    env = {"WINDLASS_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    command = [sys.executable, "-m", "windlass", "serve", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "windlass keys create" in done.stderr


def test_s51_the_admin_token_is_the_users_alone(serve: Serve) -> None:
    served = serve()
    token = served.home / "admin-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) > 40
    assert token.read_text() not in served.log.read_text()


def test_a_taken_port_is_a_sentence(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    command = [sys.executable, "-m", "windlass", "serve", "--port", str(first.port)]
    done = subprocess.run(command, env=first.env, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "Cannot listen on 127.0.0.1" in done.stderr


async def _logged(served: Served, text: str) -> None:
    for _ in range(1000):
        if text in served.log.read_text():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{text!r} never came: {served.log.read_text()}")
