"""The `[server]` table: every field is described, and what does not fit is a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.core.errors import ConfigError
from windlass.server.protocol import Limits
from windlass.server.settings import ABOUT, ServerSettings, read_settings
from windlass.server.workspace_settings import WorkspaceSettings


def test_every_setting_is_described_once() -> None:
    fields = [name for name in ServerSettings.__struct_fields__ if name not in ("limits", "workspaces")]
    inner = {"limits": Limits, "workspaces": WorkspaceSettings}
    assert list(ABOUT) == [
        *fields,
        *[f"{name}.{key}" for name, kind in inner.items() for key in kind.__struct_fields__],
    ]


@pytest.mark.parametrize(
    "table",
    [
        {"prot": 1},
        {"port": "x"},
        {"unsupported": "maybe"},
        {"limits": {"head_bytes": "many"}},
        {"limits": {"hed": 1}},
        {"limits": 3},
        {"workspaces": {"allow": ["everything"]}},
        {"workspaces": {"alow": []}},
        {"workspaces": {"per_key": 0}},
        {"workspaces": {"idle_seconds": -1}},
        {"workspaces": []},
    ],
)
def test_what_does_not_fit_is_named(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\[server\]"):
        read_settings(table)
