"""`windlass auth` as a person runs it: a browser, a paste, another device, and what is kept afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.apps.helpers import Cli, Terminal, ended
from tests.providers.oauth_server import CLIENT, FakeOAuth, refusal, visit
from windlass.core import clock
from windlass.testing.faults import Reply

PATIENCE = 60.0
#: Does what a browser does: gets the page, follows where it sends it, and stays when told to.
BROWSER = """#!{python}
import json, sys, time, urllib.request
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
with urllib.request.urlopen(sys.argv[-1]) as answer:
    answer.read()
time.sleep({stays})
"""


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., tuple[str, Callable[[], list[list[str]]]]]:
    """Make a browser; returns its path and what it was started with."""
    log = tmp_path / "browser.log"

    def make(stays: float = 0) -> tuple[str, Callable[[], list[list[str]]]]:
        path = tmp_path / "the-browser"
        path.write_text(BROWSER.format(python=sys.executable, log=str(log), stays=stays))
        path.chmod(0o755)
        return str(path), lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return make


def configure(cli: Cli, server: FakeOAuth, name: str = "mine", **oauth: str) -> None:
    table = {
        "client_id": CLIENT,
        "authorize_url": f"{server.url}/authorize",
        "token_url": f"{server.url}/token",
        **oauth,
    }
    rows = "\n".join([f"{key} = {json.dumps(value)}" for key, value in table.items() if value])
    path = cli.home / "windlass.toml"
    before = path.read_text() if path.exists() else ""
    cli.user_config(
        f'{before}[providers.{name}]\nbase_url = "{server.url}/v1"\nmodel = "m"\n[providers.{name}.oauth]\n{rows}\n'
    )
    cli.env["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"


async def test_a_login_in_the_browser_and_a_prompt_with_it(cli: Cli, browser: Callable[..., object]) -> None:
    path, opened = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth() as server:
        configure(cli, server)
        done = await cli("auth", "mine", BROWSER=f"{path} --new-window")
        assert (done.code, done.out) == (0, ""), done.err
        (argv,) = opened()
        # A program and its arguments: the address is one of them, whatever is in it.
        assert argv[0] == "--new-window" and len(argv) == 2 and argv[1].startswith(f"{server.url}/authorize?")
        file = cli.home / "credentials" / "mine.json"
        assert "logged in to mine; kept in" in done.err and str(file) in done.err
        assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
        shown = done.err + (await cli("auth", "status")).out + (await cli("auth", "status", "--json")).out
        assert not any(word in shown for word in ("access-0001", "refresh-0001", "code-0001"))
        assert server.log[0]["code_verifier"] not in shown
        asked = await cli("run", "-m", "mine", "--tools", "none", "hi")
        assert (asked.code, asked.out.strip()) == (0, "Hello 0001"), asked.err


async def test_every_provider_with_a_client_id_and_the_reference_s_options(
    cli: Cli, browser: Callable[..., object]
) -> None:
    path, opened = browser(stays=3)  # pyright: ignore[reportGeneralTypeIssues] - in the foreground, as some do
    async with FakeOAuth() as server:
        for name in ("anthropic", "openai", "mine"):
            configure(cli, server, name)
        done = await cli("auth", BROWSER=path)
        assert done.code == 0 and len(opened()) == 3, done.err
        assert sorted(file.name for file in (cli.home / "credentials").iterdir()) == [
            "anthropic.json", "mine.json", "openai.json",
        ]  # fmt: skip
        # The vendor's row says how the token endpoint is asked.
        headers = [r.headers for r in server.server.requests if r.target == "/token"]
        assert sorted(h.get("anthropic-beta", "") for h in headers) == ["", "", "oauth-2025-04-20"]
        assert (await cli("auth", "--openai", "--anthropic", BROWSER=path)).code == 0 and len(opened()) == 5


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["mine"], 2, "no client id for mine. Register a client of your own"),
        (["nobody"], 2, "Unknown provider 'nobody'"),
        (["--anthropic"], 2, "no authorize_url for anthropic"),
        (["--openai"], 2, "no client id for openai"),
        ([], 2, "Which provider"),
        (["logout"], 2, "Which login"),
        (["logout", "mine"], 2, "Nobody is logged in to mine"),
        (["status", "mine"], 2, "Nobody is logged in to mine"),
        (["status"], 0, "nobody is logged in to anything"),
        (["mine", "--timeout", "-1"], 2, "seconds"),
        (["mine", "--device"], 2, "no device_url"),
    ],
)
async def test_what_cannot_be_done_is_told_and_nothing_is_opened(
    cli: Cli, browser: Callable[..., object], args: list[str], code: int, words: str
) -> None:
    path, opened = browser()  # pyright: ignore[reportGeneralTypeIssues]
    cli.user_config('[providers.mine]\nbase_url = "https://api.test/v1"\n[providers.mine.oauth]\nissuer = ""\n'
                    'authorize_url = "https://as.test/a"\ntoken_url = "https://as.test/t"\n')  # fmt: skip
    done = await cli("auth", *args, BROWSER=path)
    assert (done.code, words in done.err) == (code, True), done.err
    assert opened() == [] and not (cli.home / "credentials").exists()


async def test_s84_a_page_that_is_no_page_is_not_opened(cli: Cli, browser: Callable[..., object]) -> None:
    path, opened = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth() as server:
        for address in ("javascript:alert(1)", "file:///etc/passwd", "http://as.test/", "https://as.test/$(id) x"):
            configure(cli, server, authorize_url=address)
            done = await cli("auth", "mine", BROWSER=path)
            assert done.code == 2 and "https" in done.err, done.err
            (cli.home / "windlass.toml").unlink()
        assert opened() == [] and server.server.requests == []


async def test_saying_no_in_the_browser_ends_with_3(cli: Cli, browser: Callable[..., object]) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth(consent=lambda answer: {"error": "access_denied", "state": answer["state"]}) as server:
        configure(cli, server)
        done = await cli("auth", "mine", BROWSER=path)
        assert done.code == 3 and "access_denied" in done.err and server.log == []


async def test_s84_an_answer_to_another_login_is_waited_past(cli: Cli, browser: Callable[..., object]) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth(consent=lambda answer: {**answer, "state": "replayed"}) as server:
        configure(cli, server)
        done = await cli("auth", "mine", "--timeout", "1.5", BROWSER=path)
        assert done.code == 5 and "Nobody has logged in to mine within 1.5 s" in done.err and server.log == []
        assert not (cli.home / "credentials").exists()


async def test_a_server_that_fails_ends_with_5(cli: Cli, browser: Callable[..., object]) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth() as server:
        configure(cli, server)
        for step, words in ((Reply(500), "answered 500"), (refusal("invalid_grant", "expired code"), "expired code")):
            server.steps = [step]
            done = await cli("auth", "mine", BROWSER=path)
            assert (done.code, words in done.err) == (5, True), done.err
        assert not (cli.home / "credentials").exists()


async def test_without_a_browser_the_answer_is_piped_in(cli: Cli, browser: Callable[..., object]) -> None:
    path, opened = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth() as server:
        configure(cli, server)
        process = await cli.start("auth", "mine", "--no-browser", stdin=asyncio.subprocess.PIPE, BROWSER=path)
        assert process.stderr is not None and process.stdin is not None
        url = ""
        async with clock.deadline(PATIENCE):
            while not url.startswith("http"):
                url = (await process.stderr.readline()).decode().strip()
        _, location, _ = await visit(url)
        process.stdin.write(f"\n{location}\n".encode())
        done = await ended(process)
        assert done.code == 0 and "logged in to mine" in done.err and opened() == []
        # Nobody there at all.
        done = await cli("auth", "mine", "--no-browser", "--timeout", "1", BROWSER=path)
        assert done.code == 5 and opened() == []


async def test_in_a_terminal_the_code_may_be_typed(cli: Cli, terminal: Callable[..., Terminal]) -> None:
    async with FakeOAuth() as server:
        # A page elsewhere that shows the code.
        configure(cli, server, redirect_uri="https://vendor.test/shows/the/code")
        screen = terminal("auth", "mine")
        shown = await screen.until("the code it shows:")
        url = next(line for line in shown.splitlines() if line.startswith("http")).strip()
        _, location, _ = await visit(url)
        assert location.startswith("https://vendor.test/shows/the/code?")
        fields = dict(part.split("=") for part in location.partition("?")[2].split("&"))
        screen.type(f"{fields['code']}#{fields['state']}\n")
        await screen.until("logged in to mine")
        assert await screen.ended() == 0


async def test_on_another_device(cli: Cli) -> None:
    async with FakeOAuth(device_waits=1) as server:
        configure(cli, server, authorize_url="", device_url=f"{server.url}/device")
        done = await cli("auth", "mine")
        assert done.code == 0 and "enter the code WDJB-MJHT" in done.err and f"{server.url}/activate" in done.err
        server.device_waits = None
        assert (await cli("auth", "mine")).code == 3


async def test_status_tells_how_each_login_stands(cli: Cli, browser: Callable[..., object]) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth(more={"account_id": "acc-3"}) as server:
        configure(cli, server, scopes="a b")
        assert (await cli("auth", "mine", BROWSER=path)).code == 0
        done = await cli("auth", "status")
        assert done.out.startswith("mine as acc-3: valid, until 2") and "credentials/mine.json" in done.out
        (row,) = [json.loads(line) for line in (await cli("auth", "status", "--json")).out.splitlines()]
        assert row.pop("expires").endswith("Z")
        assert row == {
            "provider": "mine", "state": "valid", "kept": "file", "account_id": "acc-3", "renewable": True,
            "client_id": CLIENT, "scopes": ["a", "b"], "for": server.url,
        }  # fmt: skip
        # Who is logged in needs no key.
        (mine,) = [line for line in (await cli("models")).out.splitlines() if line.startswith("mine")]
        assert mine.split()[1] == "ready"
        assert "mine (login)" in (await cli("doctor")).out
        file = cli.home / "credentials" / "mine.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "expires": 1000}))
        assert "mine as acc-3: renewed when used" in (await cli("auth", "status", "mine")).out
        file.chmod(0o644)
        done = await cli("auth", "status")
        assert done.code == 2 and "others may read it" in done.err


async def test_logging_out_revokes_and_forgets(cli: Cli, browser: Callable[..., object]) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    async with FakeOAuth() as server:
        configure(cli, server, revoke_url=f"{server.url}/revoke")
        await cli("auth", "mine", BROWSER=path)
        done = await cli("auth", "logout", "mine")
        assert done.code == 0 and "tokens are revoked" in done.err
        assert server.revoked == ["refresh-0001", "access-0001"] and os.listdir(cli.home / "credentials") == []
        assert (await cli("run", "-m", "mine", "hi")).code == 2
        # A server that has no address for that, and one that is away.
        await cli("auth", "mine", BROWSER=path)
        (cli.home / "windlass.toml").unlink()
        configure(cli, server)
        done = await cli("auth", "logout", "mine")
        assert done.code == 0 and "stays valid there: no revoke_url is known" in done.err
        await cli("auth", "mine", BROWSER=path)
        (cli.home / "windlass.toml").unlink()
        configure(cli, server, revoke_url="http://127.0.0.1:9/revoke")
        done = await cli("auth", "logout", "mine")
        assert done.code == 5 and "stays valid there" in done.err
        assert os.listdir(cli.home / "credentials") == []


RING = """
import json, os, keyring.backend
class Ring(keyring.backend.KeyringBackend):
    priority = 9
    path = os.environ["RING_FILE"]
    def _all(self):
        return json.load(open(self.path)) if os.path.exists(self.path) else {}
    def _keep(self, kept):
        with open(self.path, "w") as file:
            json.dump(kept, file)
    def get_password(self, service, username):
        return self._all().get(f"{service} {username}")
    def set_password(self, service, username, password):
        self._keep({**self._all(), f"{service} {username}": password})
    def delete_password(self, service, username):
        kept = self._all()
        del kept[f"{service} {username}"]
        self._keep(kept)
"""


async def test_with_a_keyring_the_tokens_are_in_it(cli: Cli, browser: Callable[..., object], tmp_path: Path) -> None:
    path, _ = browser()  # pyright: ignore[reportGeneralTypeIssues]
    (tmp_path / "ring.py").write_text(RING)
    ring = tmp_path / "ring.json"
    async with FakeOAuth() as server:
        configure(cli, server)
        cli.env |= {"PYTHON_KEYRING_BACKEND": "ring.Ring", "PYTHONPATH": str(tmp_path), "RING_FILE": str(ring)}
        cli.env["PYTHONWARNINGS"] = "ignore"  # of the keyring's own making
        done = await cli("auth", "mine", BROWSER=path)
        assert done.code == 0 and "kept in the keyring" in done.err
        assert "access-0001" not in (cli.home / "credentials" / "mine.json").read_text()
        assert json.loads(json.loads(ring.read_text())["windlass mine"]) == {
            "access": "access-0001", "refresh": "refresh-0001",
        }  # fmt: skip
        # Renewed, it stays there.
        server.accesses.clear()
        asked = await cli("run", "-m", "mine", "--tools", "none", "hi")
        assert asked.out.strip() == "Hello 0002", asked.err
        assert "access-0002" in ring.read_text() and "access-000" not in str(
            [file.read_text() for file in (cli.home / "credentials").iterdir()]
        )
        assert "kept in the keyring" in (await cli("auth", "status")).out
        assert (await cli("auth", "logout", "mine")).code == 0 and json.loads(ring.read_text()) == {}
        assert "kept in /" in (await cli("auth", "mine", "--keep", "file", BROWSER=path)).err
