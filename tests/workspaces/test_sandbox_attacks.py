"""What a confined command must not get at: each attack is a real command, and the host is looked at after it.

Run as whoever runs the tests, and as an ordinary user when that is root.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from sandbox_host import CANARY, NOBODY, Host, as_user, needs_bwrap

from windlass.workspaces.paths import is_protected
from windlass.workspaces.sandbox import SandboxWorkspace

pytestmark = needs_bwrap

_TRY = """{python} -S -c 'import ctypes, os, socket, sys, struct
S = socket
def call(number, *words):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *words) < 0: raise OSError(ctypes.get_errno(), "")
def connect(family, kind, address, protocol=0):
    s = S.socket(family, kind, protocol); s.settimeout(2); s.connect(address); s.send(b"x")
try:
    WORK
except OSError: print("HELD")
else: print("ESCAPED")'"""


def _python(work: str) -> str:
    return _TRY.replace("WORK", work)


def _shell(work: str) -> str:
    return f"if {{ {work}; }} >/dev/null 2>&1; then echo ESCAPED; else echo HELD; fi"


#: name -> command that prints HELD when it is refused. {outside}, {home}, {pid} ... are the host's.
ATTACKS: dict[str, str] = {
    # S23: writing outside
    "s23 outside": _shell("echo x >{outside}/new"),
    "s23 outside, existing": _shell("echo x >{outside}/file"),
    "s23 through a link": _shell("ln -sfn {outside} l && echo x >l/file"),
    "s23 through ..": _shell("echo x >{root}/../outside/new"),
    "s23 /etc": _shell("echo x >/etc/windlass-canary"),
    "s23 /usr": _shell("echo x >/usr/windlass-canary"),
    "s23 /": _shell("echo x >/windlass-canary"),
    "s23 /dev": _shell("echo x >/dev/windlass-canary"),
    "s23 /proc/sys": _shell("echo x >/proc/sys/kernel/core_pattern"),
    "s23 anything of /proc that is the host's": _shell(
        "find /proc -path '/proc/[0-9]*' -prune -o -type f -writable -print | grep ."
    ),
    "s23 sysrq": _shell("echo h >/proc/sysrq-trigger"),
    "s23 init's root": _shell("echo x >/proc/1/root{outside}/new"),
    "s23 a hard link": _shell("ln {outside}/file hard && echo x >hard"),
    "s23 remount": _shell("mount -o remount,rw /usr"),
    "s23 mount": _python('call(165, b"tmpfs", b"/tmp", b"tmpfs", 0, 0)'),
    "s23 open_tree": _python('call(428, -100, b"/", 1)'),
    "s23 a namespace": _shell("unshare -Ur true"),
    "s23 clone with a namespace": _python("call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
    "s23 clone3": _python('call(435, struct.pack("8Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)'),
    "s23 setns": _python('call(308, os.open("/proc/self/ns/mnt", 0), 0)'),
    "s23 chroot": _python('os.chroot(".")'),
    "s23 device": _python('os.mknod("disk", 0o60666, os.makedev(8, 0))'),
    "s23 chmod of the system": _python('os.chmod("/usr/bin/env", 0o777)'),
    "s23 capabilities": _shell("grep -q 'CapEff:.*[1-9a-f]' /proc/self/status"),
    "s23 privileges come back": _shell("grep -q 'NoNewPrivs:.0' /proc/self/status"),
    # S24: the network
    "s24 tcp to the host": _python('connect(S.AF_INET, S.SOCK_STREAM, ("127.0.0.1", {tcp}))'),
    "s24 tcp": _python('connect(S.AF_INET, S.SOCK_STREAM, ("192.0.2.1", 80))'),
    "s24 tcp over ipv6": _python('connect(S.AF_INET6, S.SOCK_STREAM, ("2001:db8::1", 80))'),
    "s24 udp": _python('connect(S.AF_INET, S.SOCK_DGRAM, ("192.0.2.1", 53))'),
    "s24 names": _python('S.getaddrinfo("example.com", 80)'),
    "s24 icmp": _python('connect(S.AF_INET, S.SOCK_DGRAM, ("127.0.0.1", 0), S.IPPROTO_ICMP)'),
    "s24 raw": _python("S.socket(S.AF_INET, S.SOCK_RAW, S.IPPROTO_ICMP)"),
    "s24 unix path": _python('connect(S.AF_UNIX, S.SOCK_STREAM, "{outside}/sock")'),
    "s24 unix path in the root": _python('connect(S.AF_UNIX, S.SOCK_STREAM, "{root}/sock")'),
    "s24 docker": _python('connect(S.AF_UNIX, S.SOCK_STREAM, "/var/run/docker.sock")'),
    "s24 abstract": _python('connect(S.AF_UNIX, S.SOCK_STREAM, "\\0{abstract}")'),
    "s24 netlink": _python("S.socket(S.AF_NETLINK, S.SOCK_RAW, 0)"),
    "s24 vsock": _python("S.socket(40, S.SOCK_STREAM)"),
    "s24 packet": _python("S.socket(17, S.SOCK_RAW, 0)"),
    "s24 alg": _python("S.socket(38, 5, 0)"),
    "s24 io_uring": _python("call(425, 8, bytes(120))"),
    # S25: other processes, and secrets
    "s25 ssh key": _shell("cat {home}/.ssh/id_rsa"),
    "s25 aws key": _shell("cat {home}/.aws/credentials"),
    "s25 home by ~": _shell("cat ~/.ssh/id_rsa"),
    "s25 a file outside": _shell("cat {outside}/file"),
    "s25 shadow": _shell("cat /etc/shadow"),
    "s25 environ": _shell("cat /proc/{pid}/environ"),
    "s25 any environ": _shell(f"cat /proc/*/environ | grep -a {CANARY}"),
    "s25 kill": _shell("kill -9 {pid}"),
    "s25 ptrace": _python("call(101, 16, {pid}, 0, 0)"),
    "s25 ptrace inside": _python("call(101, 16, os.getppid(), 0, 0)"),
    "s25 process_vm_readv": _python("call(310, os.getppid(), 0, 0, 0, 0, 0)"),
    "s25 keyring": _python("call(250, 0, -3, 0)"),
    "s25 bpf": _python("call(321, 0, bytes(64), 64)"),
    "s25 perf": _python("call(298, bytes(120), 0, -1, -1, 0)"),
    "s25 userfaultfd": _python("call(323, 1)"),
    "s25 typing into a terminal": _python('call(16, 0, 0x5412, b"x")'),
    "s25 descriptors": _shell("ls /proc/self/fd | grep -v '^[0-3]$'"),
    # S30
    "s30 our keys": _shell("env | grep -e OPENAI -e BASH_ENV"),
}
#: What may be written inside and is not there outside.
PRIVATE = ("/tmp/windlass-canary", "/var/tmp/windlass-canary", "/dev/shm/windlass-canary", "~/windlass-canary")
#: S12, S88: what must not come into being, nor change.
MADE = (
    *(".git/hooks/pre-commit", ".git/config", ".windlass/config.toml", "AGENTS.md", "Agents.MD", "CLAUDE.md"),
    *(".mcp.json", ".envrc", ".bashrc", ".zshrc", ".profile", ".vscode/tasks.json", ".VSCODE/tasks.json", ".npmrc"),
    *("windlass.toml", ".claude/settings.json", "x.pth", ".husky/pre-commit", ".gitconfig"),
)
KEPT: dict[str, str] = {
    "a new one in a folder made read-only": "echo evil >.bashrc; chmod 555 .",
    "a new one in a folder nobody may look into": "echo evil >.zshrc; rm -f AGENTS.md; chmod 0 .",
    "a long name": "n=$(printf 'a%.0s' {1..250}); echo evil >$n.pth; echo evil >.profile",
    ".git/config": "echo evil >.git/config",
    ".git/hooks/pre-commit": "echo evil >.git/hooks/pre-commit; mkdir -p .git/hooks",
    "the folder moved": "mv .git .g && mkdir .git && echo evil >.git/config",
    "the folder removed": "rm -rf .git; mkdir -p .git; echo evil >.git/config",
    "CLAUDE.md": "echo evil >CLAUDE.md; rm -f CLAUDE.md; mv a.txt CLAUDE.md",
    "a hard link": "ln CLAUDE.md hard && echo evil >hard",
    "a link's name": "rm -f AGENTS.md; echo evil >AGENTS.md",
    "a link elsewhere": "ln -sfn a.txt AGENTS.md",
    "below the top": "echo evil >sub/.git/config",
    "below, moved": "mv sub sub2 && mkdir -p sub/.git && echo evil >sub/.git/config",
    "its mode": "chmod 777 .git/config CLAUDE.md",
    "a link to the folder": "ln -s .git g && echo evil >g/config",
}


def _snapshot(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            relative = str(path.relative_to(root))
            if is_protected(relative):
                kind = os.readlink(path) if path.is_symlink() else path.read_bytes().decode() if path.is_file() else "/"
                found[relative] = [kind, oct(path.lstat().st_mode)]
    return found


def _fill(root: Path) -> None:
    for folder in (".git/hooks", "sub/.git"):
        (root / folder).mkdir(parents=True)
    for name in (".git/config", "sub/.git/config", "CLAUDE.md", "a.txt"):
        (root / name).write_text("good")
    (root / "AGENTS.md").symlink_to("CLAUDE.md")


async def _attack(host: Host) -> dict[str, Any]:
    """Run all attacks on one workspace each kind; returns what each printed, and what is there afterwards."""
    said: dict[str, Any] = {}
    os.environ |= {"HOME": str(host.home), "OPENAI_API_KEY": CANARY, "BASH_ENV": "/x"}
    space = SandboxWorkspace(host.root)
    for name, command in ATTACKS.items():
        result = await space.exec(host.fill(command))
        said[name] = result.output.decode()
    for path in PRIVATE:
        result = await space.exec(f"echo x >{path} && cat {path}; echo $?")
        said[path] = result.output.decode()
    for path in MADE:
        result = await space.exec(f"mkdir -p $(dirname {path}); echo evil >{path}; rm -rf {path}.d")
        said[path] = _snapshot(host.root)
    await space.close()
    full = host.place / "full"
    full.mkdir()
    _fill(full)
    said["before"] = _snapshot(full)
    space = SandboxWorkspace(full)
    for name, command in KEPT.items():
        await space.exec(command)
        said[f"kept: {name}"] = _snapshot(full)
    await space.close()
    said["left"] = sorted(os.listdir(host.root))
    return said


_IDENTITIES = ["as we are", *(["as an ordinary user"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]


@pytest.fixture(scope="module", params=_IDENTITIES)
def attacked(request: pytest.FixtureRequest) -> Generator[tuple[Host, dict[str, Any]]]:
    place = Path(tempfile.mkdtemp(prefix="windlass-attack-"))
    host, before = Host(place), dict(os.environ)
    try:
        if request.param == "as we are":
            said = asyncio.run(_attack(host))
        else:
            for path in (place, host.root, host.home, host.outside):
                os.chown(path, NOBODY, NOBODY)
            said = as_user(lambda: _attack(host), NOBODY)
        assert "error" not in said, said
        yield host, said
    finally:
        os.environ.clear()
        os.environ.update(before)
        host.close()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("name", ATTACKS)
def test_s23_s24_s25_s30_attack_is_held(attacked: tuple[Host, dict[str, Any]], name: str) -> None:
    assert attacked[1][name] == "HELD\n"


@pytest.mark.parametrize("path", PRIVATE)
def test_s23_private_places_are_not_the_hosts(attacked: tuple[Host, dict[str, Any]], path: str) -> None:
    assert attacked[1][path] == "x\n0\n"


@pytest.mark.parametrize("path", MADE)
def test_s12_s88_protected_file_does_not_come_into_being(attacked: tuple[Host, dict[str, Any]], path: str) -> None:
    assert attacked[1][path] == {}


@pytest.mark.parametrize("name", KEPT)
def test_s12_s88_protected_file_does_not_change(attacked: tuple[Host, dict[str, Any]], name: str) -> None:
    before = attacked[1]["before"]
    assert {"AGENTS.md", "CLAUDE.md", ".git", ".git/config", "sub/.git/config"} <= before.keys()
    assert attacked[1][f"kept: {name}"] == before


def test_s23_s24_s25_the_host_is_unharmed(attacked: tuple[Host, dict[str, Any]]) -> None:
    host, said = attacked
    assert host.damage() == []
    assert [name for name in said["left"] if ".set-aside" not in name] == ["l", "sock"]
