"""One system for people who build with language models: gateway, agent loop, coding agent, local models.

This is the lazy face (PEP 562): a name is imported when it is first used. What is not in `__all__` here or in a room
is private.
"""

from __future__ import annotations

import importlib

_FACE = {
    "windlass.agent.agent": "Agent",
    "windlass.agent.chat": "ChatAgent",
    "windlass.agent.ledger": "output_bytes",
    "windlass.agent.hooks": "HOOKS HookContext",
    "windlass.agent.policy": "Permissions Policy",
    "windlass.agent.rules": "Rule",
    "windlass.agent.presets": "basic coding define_preset",
    "windlass.agent.plan": "AbortSignal RunResult",
    "windlass.agent.run": "Run",
    "windlass.agent.session": "Session",
    "windlass.agent.sessions": "Sessions",
    "windlass.agent.stats": "RunStats flatten_turns stats_by_model",
    "windlass.core.attachments": "blob",
    "windlass.core.config": "Config",
    "windlass.core.config_files": "load_config",
    "windlass.core.error_context": "ErrorContext",
    "windlass.core.errors": (
        "AbortedError AgentAbortedError AgentContextExceededError AgentProviderError AuthError "
        "BadRequestError ConfigError ContextExceededError HookError MissingKeyError ModelNotFoundError "
        "OutputError OverloadedError PathEscape ProviderError RateLimitError SessionBusy SessionNotFound "
        "StoreError StreamInterrupted ToolError UnknownNameError UnsupportedInputError WindlassError "
        "WireError WorkspaceError"
    ),
    "windlass.core.events": (
        "Event FileChanged Log MessageAdded ReasoningDelta Retry RunFinished RunStarted TextDelta "
        "ToolCallDelta ToolFinished ToolProgress ToolStarted TurnFinished TurnStarted"
    ),
    "windlass.core.messages": "Blob Message Reasoning Text ToolCall ToolResponse Uri assistant system user",
    "windlass.core.ports": "ToolContext ToolResult",
    "windlass.core.request": "Request Settings ToolAnnotations ToolSpec",
    "windlass.core.usage": "Usage format_cost",
    "windlass.sinks.console": "Console Ndjson",
    "windlass.sinks.metrics": "Metrics",
    "windlass.sinks.record": "Recorder read_events",
    "windlass.sinks.replay": "ReplayProvider",
    "windlass.stores.filemap": "FileMapStore",
    "windlass.stores.memory": "MemoryStore",
    "windlass.stores.remote": "RemoteStore",
    "windlass.stores.sqlite": "SqliteStore",
    "windlass.tools.function": "tool",
    "windlass.tools.interaction": "create_interaction_tool",
    "windlass.tools.spawn": "create_spawn_tool",
    "windlass.tools.skill_files": "define_skill",
    "windlass.wire.convert": "auto_convert from_anthropic from_openai to_anthropic to_openai",
    "windlass.workspaces.local": "LocalWorkspace",
    "windlass.workspaces.memory": "MemoryWorkspace",
}
_WHERE = {name: module for module, names in _FACE.items() for name in names.split()}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'windlass' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
