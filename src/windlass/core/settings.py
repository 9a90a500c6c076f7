"""Every setting as data: its type, its default, the variables that set it, and where the reference documents disagree.

`windlass config --defaults` prints this table; docs/configuration.md is made from it.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

__all__ = ["ALIASES", "OWN_AUTO", "PROVIDERS", "SAME_ACCOUNT", "SETTINGS", "ProviderEnv", "Setting"]


class Setting(Struct, frozen=True):
    """One setting. `env` lists its variables, ours first; `project` says whether a project's file may set it.

    `note` says which defaults the reference documents name, where they differ from each other or from ours.
    """

    key: str
    kind: Literal["str", "int", "float", "bool", "path"]
    default: Any
    env: tuple[str, ...]
    doc: str
    project: bool = True
    note: str = ""


def _s(key: str, kind: Any, default: Any, env: str, doc: str, *, project: bool = True, note: str = "") -> Setting:
    return Setting(key, kind, default, tuple(env.split()), doc, project, note)


SETTINGS: dict[str, Setting] = {
    row.key: row
    for row in (
        _s(
            "model", "str", None, "WINDLASS_MODEL", "provider:model-id, or the name of a route",
            note="A starts with ollama, E with echo; ours is the embedded model, one setting away from either",
        ),
        _s(
            "provider", "str", "local", "WINDLASS_PROVIDER LLM_ROUTER_PROVIDER",
            "the provider of a model without one; its own default model where no model is named",
        ),
        _s(
            "max_tokens", "int", 16384, "WINDLASS_MAX_TOKENS", "output tokens per request, capped by the model",
            note="A 128 (OLLAMA_NUM_PREDICT, Ollama only) and 1024 (Claude), C 16384, E 256 and 1024: ours is C's; "
            "A's 128 cuts answers, so it counts only when its variable is set",
        ),
        _s(
            "max_turns", "int", 50, "WINDLASS_MAX_TURNS", "model requests per run",
            note="C 50; D 10 in its example; A's 8 counts iterations of a loop mode: loop_max_turns",
        ),
        _s("loop_max_turns", "int", 8, "WINDLASS_LOOP_MAX_TURNS", "iterations of a loop mode"),
        _s("max_cost", "float", None, "WINDLASS_MAX_COST", "dollars that one run may use, sub-agents included",
            project=False),
        _s("max_total_tokens", "int", None, "WINDLASS_MAX_TOTAL_TOKENS", "tokens that one run may use, sub-agents "
            "included", project=False),
        _s("run_seconds", "float", None, "WINDLASS_RUN_SECONDS", "seconds that one run may take", project=False),
        _s(
            "temperature", "float", None, "WINDLASS_TEMPERATURE", "0 to 2; unset leaves it to the provider",
            note="A 0.7 for Ollama only, E 0.7: ours is unset, and 0.7 in the chat agent of E",
        ),
        _s("top_p", "float", None, "WINDLASS_TOP_P", "0 to 1", note="E 0.9 (its chat agent keeps it)"),
        _s("thinking", "str", None, "WINDLASS_THINKING", "off, minimal, low, medium, high, adaptive"),
        _s(
            "request_timeout", "float", 600.0, "WINDLASS_REQUEST_TIMEOUT", "seconds for one whole model request",
            note="A 60 s (LLM_ROUTER_PROVIDER_TIMEOUT_MS, milliseconds), B 30 s: long answers need more, and idle "
            "streams are bounded by idle_timeout",
        ),
        _s("idle_timeout", "float", 120.0, "WINDLASS_IDLE_TIMEOUT", "seconds without progress in a stream"),
        _s("connect_timeout", "float", 10.0, "WINDLASS_CONNECT_TIMEOUT", "seconds to connect"),
        _s("max_attempts", "int", 3, "WINDLASS_MAX_ATTEMPTS", "attempts per request, the first included", note="B 3"),
        _s("max_wait", "float", 60.0, "WINDLASS_MAX_WAIT", "longest wait between attempts in seconds", note="B 60"),
        _s(
            "tool_timeout", "float", 300.0, "WINDLASS_TOOL_TIMEOUT", "seconds per tool call",
            note="A 15 s (named, never enforced), C 30 s for the shell: ours is 300 s, and 120 s for one shell command",
        ),
        _s("tools", "str", None, "WINDLASS_TOOLS", "tools of the command line, by name or set, with commas"),
        _s("memory", "bool", False, "WINDLASS_MEMORY", "whether the coding agent remembers across conversations",
            project=False),
        _s("memory_embedder", "str", "hashing", "WINDLASS_MEMORY_EMBEDDER", "what finds memories by likeness: hashing, "
            "or provider:model", project=False),
        _s("sandbox", "str", "auto", "WINDLASS_SANDBOX", "how commands are held: auto, bubblewrap, landlock, "
            "docker:IMAGE or none", project=False, note="C runs them unconfined: ours is a sandbox where there is one"),
        _s("sandbox_network", "str", "none", "WINDLASS_SANDBOX_NETWORK", "what commands reach: none, host, or hosts "
            "with commas (`pypi.org:443,*.example.com`)", project=False),
        _s("searxng", "str", None, "WINDLASS_SEARXNG", "address of a SearXNG of yours, for the tool web_search",
            project=False),
        _s("store", "str", None, "WINDLASS_STORE", "where sessions are kept: sqlite:PATH, or memory to keep "
            "nothing; unset is sessions.db in the data folder", project=False),
        _s("accounts", "str", None, "WINDLASS_ACCOUNTS", "where keys, budgets and request records are kept: "
            "sqlite:PATH or postgresql://…; unset is accounts.db in the data folder", project=False),
        _s("home", "path", None, "WINDLASS_HOME", "folder of everything Windlass keeps", project=False),
    )
}  # fmt: skip


class ProviderEnv(Struct, frozen=True):
    """The variables of one vendor, ours first, then the vendor's own, then those of the reference documents."""

    api_key: tuple[str, ...] = ()
    base_url: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = {}


def _vendor(name: str, key: str = "", url: str = "", model: str = "", **extra: str) -> ProviderEnv:
    upper = name.upper()
    own = {field: f"WINDLASS_{upper}_{field.upper()}" for field in ("api_key", "base_url", "model", *extra)}
    return ProviderEnv(
        (own["api_key"], *key.split()),
        (own["base_url"], *url.split()),
        (own["model"], *model.split()),
        {field: (own[field], *names.split()) for field, names in extra.items()},
    )


PROVIDERS: dict[str, ProviderEnv] = {
    "openai": _vendor(
        "openai", "OPENAI_API_KEY ABI_OPENAI_API_KEY", "OPENAI_BASE_URL ABI_OPENAI_BASE_URL", "OPENAI_MODEL",
        organization="OPENAI_ORG_ID OPENAI_ORGANIZATION",
    ),
    "anthropic": _vendor(
        "anthropic", "ANTHROPIC_API_KEY CLAUDE_API_KEY", "ANTHROPIC_BASE_URL CLAUDE_BASE_URL",
        "ANTHROPIC_MODEL CLAUDE_MODEL",
    ),
    "openrouter": _vendor(
        "openrouter", "OPENROUTER_API_KEY", "OPENROUTER_BASE_URL", "OPENROUTER_MODEL",
        http_referer="OPENROUTER_HTTP_REFERER", app_name="OPENROUTER_APP_NAME",
    ),
    "ollama": _vendor(
        "ollama", "OLLAMA_API_KEY", "OLLAMA_BASE_URL OLLAMA_HOST ABI_OLLAMA_HOST", "OLLAMA_MODEL ABI_OLLAMA_MODEL",
        think="OLLAMA_THINK", num_predict="OLLAMA_NUM_PREDICT", temperature="OLLAMA_TEMPERATURE",
        repeat_penalty="OLLAMA_REPEAT_PENALTY",
    ),
    "llama_cpp": _vendor("llama_cpp", "LLAMA_CPP_API_KEY", "LLAMA_CPP_BASE_URL", "LLAMA_CPP_MODEL"),
    "huggingface": _vendor("huggingface", "HF_TOKEN HF_API_TOKEN ABI_HF_API_TOKEN"),
    "codex": _vendor(
        "codex", "CODEX_ACCESS_TOKEN OPENAI_CODEX_API_KEY", "CODEX_BASE_URL", "CODEX_MODEL",
        account_id="CHATGPT_ACCOUNT_ID", home="CODEX_HOME", refresh_url="CODEX_REFRESH_TOKEN_URL_OVERRIDE",
    ),
    "gemini": _vendor("gemini", "GEMINI_API_KEY GOOGLE_API_KEY", "GEMINI_BASE_URL", "GEMINI_MODEL"),
    "cerebras": _vendor("cerebras", "CEREBRAS_API_KEY"),
    "groq": _vendor("groq", "GROQ_API_KEY"),
    "deepseek": _vendor("deepseek", "DEEPSEEK_API_KEY"),
    "mistral": _vendor("mistral", "MISTRAL_API_KEY"),
    "together": _vendor("together", "TOGETHER_API_KEY"),
    "fireworks": _vendor("fireworks", "FIREWORKS_API_KEY"),
    "baseten": _vendor("baseten", "BASETEN_API_KEY"),
    "cohere": _vendor("cohere", "COHERE_API_KEY CO_API_KEY"),
    "vllm": _vendor("vllm", "VLLM_API_KEY", "VLLM_BASE_URL"),
    "lmstudio": _vendor("lmstudio", "LMSTUDIO_API_KEY", "LMSTUDIO_BASE_URL"),
    "bedrock": _vendor(
        "bedrock", "AWS_BEARER_TOKEN_BEDROCK",
        "BEDROCK_BASE_URL BEDROCK_RUNTIME_BASE_URL AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "BEDROCK_MODEL",
        region="BEDROCK_REGION AWS_REGION AWS_DEFAULT_REGION", profile="AWS_PROFILE",
        access_key_id="BEDROCK_ACCESS_KEY_ID AWS_ACCESS_KEY_ID",
        secret_access_key="BEDROCK_SECRET_ACCESS_KEY AWS_SECRET_ACCESS_KEY",  # noqa: S106 - names of variables
        session_token="BEDROCK_SESSION_TOKEN AWS_SESSION_TOKEN",  # noqa: S106 - names of variables
    ),
}  # fmt: skip

#: Vendors that are another one's further endpoint: they have its variables and its key.
SAME_ACCOUNT: dict[str, str] = {"openai-responses": "openai"}
#: Other names of providers, in lower case: those of reference A and of habit.
ALIASES: dict[str, str] = {
    "ollama_qwen": "ollama",
    "qwen": "ollama",
    "claude": "anthropic",
    "llama.cpp": "llama_cpp",
    "hf": "huggingface",
    "google": "gemini",
    "aws": "bedrock",
}
#: Vendors with a model of their own behind "auto"; everywhere else it is the provider's default model.
OWN_AUTO: dict[str, str] = {"openrouter": "openrouter/auto"}
