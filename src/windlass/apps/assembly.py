"""What makes the coding agent out of settings and a folder: the same for the command line, the terminal and editors.

Nothing that comes with the folder runs or connects before it is trusted; what is left out is said in `notices`. Parts
that a folder does not need are not even imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from windlass.agent.layers import permissions_from
from windlass.agent.policy import Mode, Permissions
from windlass.apps.cli.policy import protected_in
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.config_files import config_home, data_home
from windlass.core.errors import ConfigError
from windlass.core.ports import Capability, Workspace

__all__ = ["SANDBOXES", "Assembly", "assemble", "workspace_for"]

#: What the setting `sandbox` may say; `docker:IMAGE` besides.
SANDBOXES = ("auto", "bubblewrap", "landlock", "none")
#: What a project may bring along that would run or connect, or would tell the agent what to do.
_FOLDERS = (".agents", ".zidane", ".windlass")
_SKILLS = ("skills",)


class Assembly(Struct):
    """The parts of the coding agent. `notices` are for the person; `loaded` tells the instruction files' origin."""

    workspace: Workspace
    permissions: Permissions
    capabilities: list[Capability]
    notices: list[str]
    trusted: bool = False

    @property
    def loaded(self) -> tuple[str, ...]:
        """The instruction files that were read, once the agent was warmed up."""
        found = [getattr(each, "loaded", ()) for each in self.capabilities]
        return tuple([str(getattr(one, "path", one)) for row in found for one in row])


def workspace_for(folder: str, kind: str, network: str = "none") -> tuple[Workspace, list[str]]:
    """Return the workspace of a folder, whose commands run as the setting `sandbox` says, and what to say of it.

    Raises ConfigError for a word that is none, and WorkspaceError where the sandbox that was asked for does not work.
    """
    if kind.startswith("docker:"):
        made = registry.resolve("workspaces", "docker")(kind.partition(":")[2])
        return made, ["commands and files are those of a container: this folder is not in it"]
    if kind not in SANDBOXES:
        raise ConfigError(f"sandbox is {kind!r}.", hint=f"It is {', '.join(SANDBOXES)}, or docker:IMAGE.")
    if kind == "none":
        return registry.make("workspaces", f"local:{folder}"), ["commands run without a sandbox (sandbox = none)"]
    if kind == "auto" and not sys.platform.startswith("linux"):
        notice = "commands run without a sandbox: there is none for this platform"
        return registry.make("workspaces", f"local:{folder}"), [notice]
    hosts: Any = [host.strip() for host in network.split(",") if host.strip()]
    if network in ("none", "host", ""):
        hosts = network or "none"
    # Made with the first command: most runs end without one, and files need none of it.
    return registry.resolve("workspaces", "sandbox")(folder, level=kind, network=hosts, lazy=True), []


def assemble(
    config: Config,
    *,
    folder: str,
    shell: bool = True,
    workspace: Workspace | None = None,
    mode: Mode | None = None,
    sandbox: str | None = None,
    yolo: bool = False,
    extras: bool = True,
    mcp_servers: Any = None,
    home: Path | None = None,
) -> Assembly:
    """Return the parts of the coding agent in `folder`.

    `workspace` stands in for the folder itself (a virtual one). `shell` False says that no tool runs commands: then no
    sandbox is made. `extras` False leaves out skills, MCP servers and instruction files. `mcp_servers` are servers that
    whoever starts the agent names, besides the user's. Raises ConfigError, and WorkspaceError as `workspace_for`.
    """
    notices: list[str] = []
    environ, here = config.environ, os.path.realpath(folder)
    trusted = _trusted(here, environ, notices) if extras and workspace is None else False
    capabilities: list[Capability] = []
    if extras and workspace is None:
        capabilities = _capabilities(here, environ, trusted, mcp_servers, home or Path.home(), notices)
    if extras and config.get("memory"):
        made: Any = registry.resolve("capabilities", "memory")
        capabilities.append(made(embedder=str(config.get("memory_embedder"))))
    if workspace is None:
        if shell or capabilities:
            kind, network = sandbox or str(config.get("sandbox")), str(config.get("sandbox_network"))
            workspace, said = workspace_for(folder, kind, network)
            notices += said
        else:
            workspace = registry.make("workspaces", f"local:{folder}")
    place: Any = workspace

    def confined() -> bool:
        return getattr(place, "confinement", "") == "bubblewrap" or type(place).__name__ == "DockerWorkspace"

    permissions = permissions_from(
        config.policies, mode=mode, confined=confined, protected=protected_in(folder), yolo=yolo
    )  # fmt: skip
    notices += permissions.notices
    return Assembly(place, permissions, capabilities, notices, trusted)


def _trusted(here: str, environ: Mapping[str, str], notices: list[str]) -> bool:
    names = (".mcp.json", *_FOLDERS)
    if not any((Path(here) / name).exists() for name in names):
        return False
    status = registry.load("windlass.core.trust:Trust")(data_home(environ)).status(here)
    if status.state == "changed":
        notices.append(f"what this folder would run has changed ({', '.join(status.changes[:5])}): windlass trust show")
    elif not status.trusted and status.files:
        names = ", ".join([each.path for each in status.files[:5]])
        notices.append(f"{names} of this folder: not run before you trust it (windlass trust grant)")
    return bool(status.trusted)


def _capabilities(
    here: str, environ: Mapping[str, str], trusted: bool, mcp_servers: Any, home: Path, notices: list[str]
) -> list[Capability]:
    found: list[Capability] = []
    settings, data = config_home(environ), data_home(environ)
    if _instructs(Path(here), settings):
        make = registry.load("windlass.tools.instructions:Instructions")
        found.append(make(here, settings, record=data / "instructions.json"))
    if any((base / name / _SKILLS[0]).is_dir() for base in (Path(here), home) for name in _FOLDERS):
        by_default: Any = registry.load("windlass.tools.skills:trusted_by_default")

        def runs(skill: Any) -> bool:
            return trusted or by_default(skill)

        found.append(registry.resolve("capabilities", "skills")(True, trusted=runs, cwd=here, home=home))
    if mcp_servers or (settings / "mcp.json").is_file() or (trusted and (Path(here) / ".mcp.json").is_file()):
        read: Any = registry.load("windlass.tools.mcp_config:user_servers")
        own, variables = read(settings, environ)
        projects: Any = () if not trusted else _project_servers(here, variables, notices)
        given: Any = registry.load("windlass.tools.mcp_config:read_servers")(mcp_servers or [])
        rows: dict[str, Any] = {}
        for server in (*given, *own, *projects):
            rows.setdefault(server.name, server)
        found.append(registry.resolve("capabilities", "mcp")(list(rows.values())))
    return found


def _project_servers(here: str, variables: Any, notices: list[str]) -> Any:
    """Return the MCP servers of a trusted folder; a broken file of it is told and does not stop the agent."""
    try:
        return registry.load("windlass.tools.mcp_config:project_servers")(here, trusted=True, variables=variables)
    except ConfigError as error:
        notices.append(str(error))
        return ()


def _instructs(here: Path, settings: Path) -> bool:
    """Tell whether there is an instruction file; those further down are looked for once one of these is there."""
    for folder in (settings, here, *here.parents):
        if any((folder / name).is_file() for name in ("AGENTS.md", "CLAUDE.md")):
            return True
        if folder not in (settings, here) and (folder / ".git").exists():
            return False
        if folder == here and (folder / ".git").exists():
            return False
    return False
