"""The gateway beside its peers: CPU per request, per token, per body; memory; streams. Read the ratios of one run.

A fake upstream and a load generator, both in C, run on CPU 0, the gateway's process tree on CPU 1. CPU time of the
whole tree per request hardly moves on a noisy machine; requests per second and latencies do. nginx, a plain proxy, is
the floor.

    python bench/gateway/run.py                      # nginx and windlass
    python bench/gateway/run.py -g nginx,windlass,litellm,portkey --secs 2
    python bench/gateway/run.py -g windlass --requests 200000     # does memory grow?

Peers are installed with pinned versions under `.build/bench`; nginx is the system's (Debian: `apt install nginx`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / ".build" / "bench"
UP, PORT = 9100, 9200
GATEWAY_CPU, LOAD_CPU = os.environ.get("GWCPU", "1"), os.environ.get("LGCPU", "0")
KEY = "sk-" + secrets.token_hex(24)
BEARER = {"Authorization": f"Bearer {KEY}"}
TESTS = ("sat", "c1", "fix", "agent", "burst", "pace", "maxs")
LITELLM, PORTKEY = "litellm[proxy]==1.92.0", "@portkey-ai/gateway@1.15.2"
WINDLASS_TOML = """
[server]
port = {port}
[providers.up]
base_url = "http://127.0.0.1:{up}/v1"
api_key = "sk-up"
[routes]
fake = ["up:fake"]
"""
NGINX = """
daemon off; master_process on; worker_processes 1; pid {tmp}/nginx.pid; error_log {tmp}/nginx.err warn;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {tmp}/cb; proxy_temp_path {tmp}/pt; fastcgi_temp_path {tmp}/f;
  uwsgi_temp_path {tmp}/u; scgi_temp_path {tmp}/s; client_max_body_size 64m; client_body_buffer_size 1m;
  keepalive_requests 10000000; keepalive_timeout 300s; tcp_nodelay on;
  upstream up {{ server 127.0.0.1:{up}; keepalive 1024; keepalive_requests 10000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://up; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering on; }} }}
}}
"""
LITELLM_YAML = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "http://127.0.0.1:{up}/v1", api_key: sk-up}}
litellm_settings: {{num_retries: 0, request_timeout: 60, telemetry: false, drop_params: true}}
general_settings: {{master_key: os.environ/LITELLM_MASTER_KEY}}
"""


def build() -> None:
    """Compile the upstream and the load generator."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("upstream", "loadgen"):
        source, made = HERE / f"{name}.c", BUILD / name
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-o", str(made), str(source)], check=True)


def start_of(name: str, tmp: Path) -> tuple[str | None, dict[str, str], dict[str, str], float]:
    """Return (command, environment, client headers, seconds to wait) of a gateway, installing a peer first."""

    def write(file: str, text: str) -> str:
        (tmp / file).write_text(text.format(tmp=tmp, up=UP, port=PORT))
        return str(tmp / file)

    if name == "direct":
        return None, {}, BEARER, 5
    if name == "nginx":
        return f"nginx -c {write('nginx.conf', NGINX)}", {}, BEARER, 10
    if name == "windlass":
        make = [sys.executable, "-m", "windlass", "keys", "create", "bench", "--rpm", "1000000000", "--tpm",
                "1000000000", "--budget", "1000000"]  # fmt: skip
        home = {"WINDLASS_HOME": str(tmp)}
        key = subprocess.run(
            make, env={**os.environ, **home}, check=True, capture_output=True, text=True
        ).stdout.strip()
        command = f"{Path(sys.executable).parent}/windlass serve --config {write('windlass.toml', WINDLASS_TOML)}"
        return command, home, {"Authorization": f"Bearer {key}"}, 20
    if name == "litellm":
        folder = BUILD / "litellm"
        if not (folder / ".done").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(folder / "bin/pip"), "install", "-q", LITELLM], check=True)
            (folder / ".done").touch()
        config = write("litellm.yaml", LITELLM_YAML)
        environ = {"LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                   "DISABLE_ADMIN_UI": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_MASTER_KEY": KEY}  # fmt: skip
        command = f"{folder}/bin/litellm --config {config} --host 127.0.0.1 --port {PORT} --num_workers 1"
        return command, environ, BEARER, 120
    if name == "portkey":
        folder = BUILD / "portkey"
        if not (folder / "node_modules").exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Without the newer server package its streams are answered with 500.
            package = {"overrides": {"@hono/node-server": "1.11.1"}}
            (folder / "package.json").write_text(json.dumps(package))
            subprocess.run(["npm", "install", "--silent", PORTKEY], check=True, cwd=folder)
        server = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
        environ = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
        headers = {"Authorization": "Bearer sk-up", "x-portkey-provider": "openai",
                   "x-portkey-custom-host": f"http://127.0.0.1:{UP}/v1"}  # fmt: skip
        return f"node {server} --headless --port={PORT}", environ, headers, 30
    raise SystemExit(f"There is no gateway {name!r} here.")


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    out, at = [pid], 0
    while at < len(out):
        try:
            for task in os.listdir(f"/proc/{out[at]}/task"):
                out += [int(x) for x in Path(f"/proc/{out[at]}/task/{task}/children").read_text().split()]
        except OSError:
            pass
        at += 1
    return out


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process tree, to the nanosecond (schedstat of every thread)."""
    total = 0
    for process in tree(pid):
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                total += int(Path(f"/proc/{process}/task/{task}/schedstat").read_text().split()[0])
        except (OSError, IndexError):
            pass
    return total / 1e9


def memory_mb(pid: int) -> float:
    """Return the memory of a process tree: its proportional share of all pages, in MB."""
    total = 0
    for process in tree(pid):
        try:
            found = re.search(r"Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text())
            total += int(found[1]) if found else 0
        except OSError:
            pass
    return round(total / 1024, 1)


def control(**values: int) -> None:
    """Set how the upstream behaves."""
    query = "&".join([f"{name}={value}" for name, value in values.items()])
    urllib.request.urlopen(f"http://127.0.0.1:{UP}/ctl?{query}", timeout=5).read()


def load(headers: dict[str, str], body: str, connections: int, seconds: float, *, rate: int = 0, stream: bool = False,
         warm: float = 1.0, port: int = PORT) -> dict[str, Any]:  # fmt: skip
    """Run the load generator once."""
    command = ["taskset", "-c", LOAD_CPU, str(BUILD / "loadgen"), "-p", str(port), "-u", "/v1/chat/completions", "-b",
               str(HERE / "bodies" / f"{body}.json"), "-c", str(connections), "-d", str(seconds), "-w", str(warm), "-r",
               str(rate)]  # fmt: skip
    if stream:
        command.append("-s")
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warm + 60, check=True)
    return json.loads(done.stdout)


class Running:
    """A gateway that answers."""

    def __init__(self, name: str, tmp: Path) -> None:
        command, environ, self.headers, patience = start_of(name, tmp)
        self.process: subprocess.Popen[bytes] | None = None
        self.port, self.cold = UP, 0.0
        if command is None:
            return
        self.port = PORT
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self._log = tmp / "gateway.log"
        begun = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", GATEWAY_CPU, *shlex.split(command)],
                stdout=log, stderr=log, env={**env, **environ}, cwd=tmp, start_new_session=True,
            )  # fmt: skip
        self._wait(begun, patience)
        self.cold = time.monotonic() - begun

    def _wait(self, begun: float, patience: float) -> None:
        data = (HERE / "bodies" / "small.json").read_bytes()
        last = ""
        while time.monotonic() - begun < patience:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", data,
                                             {"Content-Type": "application/json", **self.headers})  # fmt: skip
            try:
                if b"Hello" in urllib.request.urlopen(request, timeout=10).read():
                    return
            except urllib.error.HTTPError as error:
                last = f"{error.code} {error.read()[:300]!r}"
            except OSError as error:
                last = repr(error)
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"it never answered: {last} {self._log.read_text(errors='replace')[-500:]}")

    def stop(self) -> None:
        """End the whole tree."""
        if self.process is None:
            return
        family = tree(self.process.pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in family:
                try:
                    os.kill(process, number)
                except OSError:
                    pass
            try:
                self.process.wait(8)
                break
            except subprocess.TimeoutExpired:
                pass
        time.sleep(0.2)

    def measure(self, body: str, connections: int, seconds: float, **options: Any) -> dict[str, Any]:
        """Run a load and add what the gateway's tree spent for it."""
        pid = self.process.pid if self.process else 0
        before = cpu_seconds(pid) if pid else 0.0
        result = load(self.headers, body, connections, seconds, port=self.port, **options)
        spent = (cpu_seconds(pid) if pid else 0.0) - before
        result["cpu_us"] = round(spent / max(1, result["issued"]) * 1e6, 2)
        result["failed"] = result["bad"] + result["neterr"] + result.get("nodone", 0)
        return result

    def memory(self) -> float:
        """Return the tree's memory in MB."""
        return memory_mb(self.process.pid) if self.process else 0.0


def bench(name: str, tests: list[str], seconds: float, requests: int) -> dict[str, Any]:
    """Measure one gateway."""
    with tempfile.TemporaryDirectory() as folder:
        control(delay_us=0, tokens=16, interval_us=0, err=0, cut=0, err_every=0)
        gateway = Running(name, Path(folder))
        out: dict[str, Any] = {"cold_s": round(gateway.cold, 3)}
        try:
            time.sleep(0.5)
            out["idle_mb"] = gateway.memory()
            if "sat" in tests:
                out["sat"] = gateway.measure("small", 64, seconds)
            if "c1" in tests:
                out["c1"] = gateway.measure("small", 1, min(seconds, 2), warm=0.5)
            if "fix" in tests:
                out["fix"] = gateway.measure("small", 32, seconds + 1, rate=50)
            if "agent" in tests:
                out["agent"] = gateway.measure("agent", 16, seconds)
            if "burst" in tests:
                control(tokens=64, interval_us=0)
                out["burst"] = gateway.measure("small_stream", 32, seconds, stream=True)
            control(tokens=50, interval_us=20_000)
            if "pace" in tests:
                out["pace"] = gateway.measure("small_stream", 50, max(seconds, 4), stream=True, warm=1.2)
            if "maxs" in tests:
                out["maxs"] = gateway.measure("small_stream", 400, max(seconds, 4), stream=True, warm=1.5)
            control(tokens=16, interval_us=0)
            out["end_mb"] = gateway.memory()
            done = 0
            while done < requests:
                done += gateway.measure("small", 64, 5.0)["issued"]
                out["grown_mb"], out["grown_after"] = gateway.memory(), done
        finally:
            gateway.stop()
        return out


ROWS = [
    ("CPU per request, 200 B: µs", "sat.cpu_us", "{:,.1f}"),
    ("requests per second on one core", "sat.rps", "{:,.0f}"),
    ("CPU per request, 115 kB: µs", "agent.cpu_us", "{:,.0f}"),
    ("CPU per stream of 64 tokens: µs", "burst.cpu_us", "{:,.0f}"),
    ("one connection: median µs", "c1.latency.p50", "{:,.0f}"),
    ("50 requests/s: p99 µs", "fix.latency.p99", "{:,.0f}"),
    ("400 paced streams: frames' p99 delay µs", "maxs.transit.p99", "{:,.0f}"),
    ("400 paced streams: CPU per stream of 50 µs", "maxs.cpu_us", "{:,.0f}"),
    ("failed or incomplete answers", "failed", "{:,.0f}"),
    ("cold start: s", "cold_s", "{:.2f}"),
    ("memory idle: MB", "idle_mb", "{:.0f}"),
    ("memory at the end: MB", "end_mb", "{:.0f}"),
]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown, with the ratio to nginx where it was in the run."""
    names = list(results)
    out = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label, path, form in ROWS:
        cells: list[str] = []
        for name in names:
            value: Any = results[name]
            if path == "failed":
                value = sum([part["failed"] for part in value.values() if isinstance(part, dict)])
            else:
                for key in path.split("."):
                    value = value.get(key) if isinstance(value, dict) else None
            base: Any = results.get("nginx", {})
            for key in path.split("."):
                base = base.get(key) if isinstance(base, dict) else None
            cell = "–" if value is None else form.format(value)
            if value is not None and base and "cpu_us" in path and name != "nginx":
                cell += f" ({value / base:,.1f}x)"
            cells.append(cell)
        out.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-g", default="nginx,windlass", help="gateways, with commas: direct, nginx, windlass, litellm, portkey"
    )
    parser.add_argument("-t", default=",".join(TESTS), help="tests, with commas")
    parser.add_argument("--secs", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=0, help="then so many requests more, watching memory")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    build()
    upstream = subprocess.Popen(["taskset", "-c", LOAD_CPU, str(BUILD / "upstream"), str(UP)])
    results: dict[str, dict[str, Any]] = {}
    try:
        time.sleep(0.3)
        for name in options.g.split(","):
            try:
                results[name] = bench(name, options.t.split(","), options.secs, options.requests)
            except (RuntimeError, subprocess.SubprocessError) as error:
                print(f"{name}: {str(error)[:600]}", flush=True)
                continue
            print(f"{name}: {json.dumps(results[name])[:400]}", flush=True)
    finally:
        upstream.kill()
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    print("\n" + table(results))


if __name__ == "__main__":
    main()
