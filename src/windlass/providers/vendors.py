"""The vendors, as rows: a dialect, an address, a key, and how the vendor wants to be spoken to.

A new OpenAI-compatible vendor is a row here (and its name in `core/registry`), or a `[providers.NAME]` table in the
user's own config file, which has the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from windlass.core.config import Config, ProviderSettings
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.models import Capabilities
from windlass.core.ports import Provider
from windlass.core.settings import PROVIDERS
from windlass.providers.bedrock import BedrockProvider
from windlass.providers.codex import CodexProvider
from windlass.providers.gemini import GeminiProvider
from windlass.providers.huggingface import HuggingFaceProvider
from windlass.providers.oauth import AccountProvider, account_of
from windlass.providers.oauth_account import Account
from windlass.providers.ollama import OllamaProvider
from windlass.providers.remote import RemoteProvider
from windlass.providers.retry import Retrying
from windlass.wire import (
    anthropic,
    bedrock,
    gemini,
    ollama,
    ollama_generate,
    openai_chat,
    openai_completions,
    openai_responses,
)
from windlass.wire.base import Dialect

__all__ = ["DIALECTS", "VENDORS", "Endpoint", "Vendor", "make", "vendor_of"]


class Endpoint(Struct, frozen=True):
    """A dialect and where it is spoken: `path` for streams, `whole_path` for whole answers where that differs."""

    dialect: Dialect
    path: str
    whole_path: str = ""


#: Dialect name -> its endpoint.
DIALECTS: dict[str, Endpoint] = {
    "openai-chat": Endpoint(openai_chat.DIALECT, "/v1/chat/completions"),
    "anthropic": Endpoint(anthropic.DIALECT, "/v1/messages"),
    "ollama": Endpoint(ollama.DIALECT, "/api/chat"),
    "openai-completions": Endpoint(openai_completions.DIALECT, "/v1/completions"),
    "ollama-generate": Endpoint(ollama_generate.DIALECT, "/api/generate"),
    "gemini": Endpoint(
        gemini.DIALECT, "/v1beta/models/{model}:streamGenerateContent?alt=sse", "/v1beta/models/{model}:generateContent"
    ),
    "tgi": Endpoint(openai_chat.TGI, "/v1/chat/completions"),
    "openai-responses": Endpoint(openai_responses.DIALECT, "/v1/responses"),
    "codex": Endpoint(openai_responses.CODEX, "/responses"),
    "bedrock": Endpoint(bedrock.DIALECT, "/model/{model}/converse-stream", "/model/{model}/converse"),
}


class Vendor(Struct, frozen=True):
    """One row. `key` says whether a key is needed: always, or only if one is configured (`optional`).

    `reasoning` is how thinking is asked for where the model is known to reason. `spoken` replaces the dialect object
    where a vendor wants it slightly otherwise. `headers` maps header names to one of the vendor's own settings. `oauth`
    is how people log in there, as fields of OAuthSettings; the client id is always the user's own.
    """

    base_url: str
    default_model: str = ""
    dialect: str = "openai-chat"
    auth_header: str = "authorization"
    auth_scheme: str = "Bearer"
    key: Literal["required", "optional"] = "required"
    reasoning: Literal["none", "effort", "budget", "switch", "adaptive"] = "none"
    capabilities: Capabilities = Capabilities()
    spoken: Any = None
    headers: Mapping[str, str] = {}
    static_headers: Mapping[str, str] = {}
    oauth: Mapping[str, Any] = {}


#: Dialects whose vendors need more than an address.
_KINDS: dict[str, type[RemoteProvider]] = {
    "ollama": OllamaProvider,
    "ollama-generate": OllamaProvider,
    "gemini": GeminiProvider,
    "bedrock": BedrockProvider,
    "codex": CodexProvider,
}


class _GeminiAccount(AccountProvider, GeminiProvider):
    """Gemini with a login."""


class _OllamaAccount(AccountProvider, OllamaProvider):
    """A server that speaks Ollama's dialect, with a login."""


#: Vendors of a common dialect that need more than it.
_BY_NAME: dict[str, type[RemoteProvider]] = {"huggingface": HuggingFaceProvider}


class _HuggingFaceAccount(AccountProvider, HuggingFaceProvider):
    """Hugging Face with a login."""


#: The same with a login; a kind that is not here takes none.
_WITH_ACCOUNT: dict[type[RemoteProvider], type[AccountProvider]] = {
    RemoteProvider: AccountProvider,
    GeminiProvider: _GeminiAccount,
    HuggingFaceProvider: _HuggingFaceAccount,
    OllamaProvider: _OllamaAccount,
    CodexProvider: CodexProvider,
}
#: auth.openai.com/.well-known/openid-configuration
_OPENAI = {
    "authorize_url": "https://auth.openai.com/oauth/authorize",
    "token_url": "https://auth.openai.com/oauth/token",
    "scopes": "openid profile email offline_access",
}
#: What Anthropic's own SDK sends with the tokens of a login (`anthropic/lib/credentials`); it states no page for it.
_ANTHROPIC = {
    "token_url": "https://api.anthropic.com/v1/oauth/token",
    "body": "json",
    "headers": {"anthropic-beta": "oauth-2025-04-20"},
}
#: huggingface.co/docs/hub/oauth
_HUGGINGFACE = {
    "authorize_url": "https://huggingface.co/oauth/authorize",
    "token_url": "https://huggingface.co/oauth/token",
    "device_url": "https://huggingface.co/oauth/device",
    "scopes": "openid profile inference-api",
}
#: ai.google.dev/gemini-api/docs/oauth, accounts.google.com/.well-known/openid-configuration
_GOOGLE = {
    "authorize_url": "https://accounts.google.com/o/oauth2/v2/auth",
    "token_url": "https://oauth2.googleapis.com/token",
    "revoke_url": "https://oauth2.googleapis.com/revoke",
    "scopes": (
        "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/generative-language.retriever"
    ),
    "parameters": {"access_type": "offline", "prompt": "consent"},
}
_CHAT = openai_chat.DIALECT
_PLAIN = Capabilities(vision=True, documents=False)
VENDORS: dict[str, Vendor] = {
    "openai": Vendor(
        "https://api.openai.com/v1", "gpt-4.1-mini", reasoning="effort",
        capabilities=Capabilities(max_tokens_field="max_completion_tokens"),
        headers={"openai-organization": "organization"}, oauth=_OPENAI,
    ),
    "openai-responses": Vendor(
        "https://api.openai.com/v1", "gpt-4.1-mini", "openai-responses", reasoning="effort",
        capabilities=Capabilities(image_in_tool_result=True),
        headers={"openai-organization": "organization"}, oauth=_OPENAI,
    ),
    # The key is a login: without one of ours, that of the Codex CLI.
    "codex": Vendor(
        "https://chatgpt.com/backend-api/codex", "gpt-5.5", "codex", key="optional", reasoning="effort",
        capabilities=Capabilities(image_in_tool_result=True, reasoning="effort"),
        static_headers={"openai-beta": "responses=experimental", "originator": "windlass"},
        oauth=_OPENAI,
    ),
    "openrouter": Vendor(
        "https://openrouter.ai/api/v1", "openrouter/auto", reasoning="effort",
        capabilities=Capabilities(cache_breakpoints=True),
        spoken=openai_chat.OPENROUTER,
        headers={"http-referer": "http_referer", "x-openrouter-title": "app_name", "x-title": "app_name"},
    ),
    "anthropic": Vendor(
        "https://api.anthropic.com", "claude-sonnet-4-5", "anthropic", "x-api-key", "", reasoning="budget",
        # Models from Claude 4.6 on refuse a prefill with 400.
        capabilities=Capabilities(
            cache_breakpoints=True, image_in_tool_result=True, structured_output=False, prefill=True
        ),
        static_headers={"anthropic-version": "2023-06-01"}, oauth=_ANTHROPIC,
    ),
    "ollama": Vendor(
        "http://127.0.0.1:11434", "qwen3.5:9b", "ollama", key="optional", reasoning="switch",
        capabilities=Capabilities(documents=False, prefill=True),
    ),
    "cerebras": Vendor("https://api.cerebras.ai/v1", "zai-glm-4.7", capabilities=_PLAIN),
    "groq": Vendor("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile", capabilities=_PLAIN),
    "deepseek": Vendor(
        "https://api.deepseek.com/v1", "deepseek-chat",
        capabilities=Capabilities(vision=False, documents=False, structured_output=False),
    ),
    "mistral": Vendor(
        "https://api.mistral.ai/v1", "mistral-small-latest", capabilities=_PLAIN,
        spoken=openai_chat.MISTRAL,
    ),
    "together": Vendor(
        "https://api.together.xyz/v1", "meta-llama/Llama-3.3-70B-Instruct-Turbo", capabilities=_PLAIN
    ),
    "fireworks": Vendor(
        "https://api.fireworks.ai/inference/v1", "accounts/fireworks/models/llama-v3p3-70b-instruct",
        capabilities=_PLAIN,
    ),
    "baseten": Vendor(
        "https://inference.baseten.co/v1", "deepseek-ai/DeepSeek-V3.1", auth_scheme="Api-Key", capabilities=_PLAIN
    ),
    "cohere": Vendor("https://api.cohere.ai/compatibility/v1", "command-a-03-2025", capabilities=_PLAIN),
    "huggingface": Vendor(
        "https://router.huggingface.co/v1", "openai/gpt-oss-120b", reasoning="effort", capabilities=_PLAIN,
        spoken=replace(_CHAT, valid_arguments=True), oauth=_HUGGINGFACE,
    ),
    "gemini": Vendor(
        "https://generativelanguage.googleapis.com", "gemini-2.5-flash", "gemini", "x-goog-api-key", "",
        oauth=_GOOGLE,
    ),
    "llama_cpp": Vendor(
        "http://127.0.0.1:8080", "local-model", key="optional", capabilities=replace(_PLAIN, prefill=True),
        spoken=replace(_CHAT, valid_arguments=True),
    ),
    "vllm": Vendor(
        "http://127.0.0.1:8000/v1", key="optional", capabilities=_PLAIN, spoken=replace(_CHAT, valid_arguments=True)
    ),
    "lmstudio": Vendor("http://127.0.0.1:1234/v1", key="optional", capabilities=_PLAIN),
    # Keyless here: without a bearer token, requests are signed.
    "bedrock": Vendor(
        "https://bedrock-runtime.{region}.amazonaws.com", "amazon.nova-micro-v1:0", "bedrock", key="optional",
        reasoning="budget", capabilities=Capabilities(structured_output=False),
    ),
}  # fmt: skip


def vendor_of(settings: ProviderSettings) -> Vendor:
    """Return the row of a vendor with what the user's table changes. Raises ConfigError naming the field."""
    name, table = settings.name, settings.table
    row = VENDORS.get(name)
    if row is None:
        if not settings.base_url:
            raise ConfigError(f"[providers.{name}] needs a base_url.")
        row = Vendor(settings.base_url, key="optional")
    changes: dict[str, Any] = {}
    if settings.base_url:
        changes["base_url"] = settings.base_url
    if settings.model:
        changes["default_model"] = settings.model
    if (dialect := table.get("dialect")) is not None:
        if dialect not in DIALECTS:
            raise UnknownNameError(f"dialect in [providers.{name}]:", str(dialect), DIALECTS)
        changes["dialect"] = dialect
    if (auth := table.get("auth_header")) is not None:
        if not isinstance(auth, dict) or not isinstance(auth.get("name"), str):
            raise ConfigError(f"[providers.{name}] auth_header must be a table with name and scheme.")
        changes["auth_header"], changes["auth_scheme"] = auth["name"], str(auth.get("scheme", ""))
    if (headers := table.get("headers")) is not None:
        changes["static_headers"] = {**row.static_headers, **_strings(name, "headers", headers)}
    if (stated := table.get("capabilities")) is not None:
        try:
            known = msgspec.structs.asdict(row.capabilities)
            if unknown := set(stated) - set(known):
                raise UnknownNameError(f"capability in [providers.{name}]:", min(unknown), known)
            changes["capabilities"] = msgspec.convert({**known, **stated}, Capabilities)
        except (msgspec.ValidationError, TypeError) as error:
            raise ConfigError(f"[providers.{name}] capabilities: {error}.") from None
    return replace(row, **changes) if changes else row


def _strings(name: str, field: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ConfigError(f"[providers.{name}] {field} must be a table of texts.")
    return value


def _own(name: str, dialect: str, table: Mapping[str, Any]) -> dict[str, str]:
    """Return the vendor's own settings that the user's table states."""
    known = PROVIDERS.get(name) or PROVIDERS.get(dialect)
    fields = known.extra if known is not None else {}
    return {field: value for field in fields if isinstance(value := table.get(field), str)}


def make(name: str, config: Config) -> Provider:
    """Make the provider of a vendor. Raises MissingKeyError, ConfigError and UnknownNameError."""
    settings = config.provider_settings(name)
    vendor = vendor_of(settings)
    account = account_of(settings, config, vendor.oauth, vendor.base_url)
    if vendor.key == "required" and account is None:
        settings.require_key()
    extra_body = settings.table.get("extra_body", {})
    headers = {header: settings.extra[key] for header, key in vendor.headers.items() if key in settings.extra}
    if settings.api_key:
        scheme = f"{vendor.auth_scheme} " if vendor.auth_scheme else ""
        headers[vendor.auth_header.lower()] = f"{scheme}{settings.api_key}"
    spoken = DIALECTS[vendor.dialect]
    kind, more = _kind(name, vendor.dialect, account)
    if account is not None:
        headers = _joined({**vendor.static_headers, **headers}, account.headers)
    provider = kind(
        name,
        vendor.spoken if vendor.spoken is not None and vendor.dialect == "openai-chat" else spoken.dialect,
        vendor.base_url,
        spoken.path,
        whole_path=spoken.whole_path,
        headers={**vendor.static_headers, **headers},
        default_model=vendor.default_model,
        capabilities=vendor.capabilities,
        reasoning=vendor.reasoning,
        extra_body=extra_body,
        own_settings={**_own(name, vendor.dialect, settings.table), **settings.extra},
        request_timeout=float(settings.table.get("timeout", config.get("request_timeout"))),
        idle_timeout=config.get("idle_timeout"),
        connect_timeout=config.get("connect_timeout"),
        environ=config.environ,
        **more,
    )
    return Retrying(provider, max_wait=config.get("max_wait"))


def _kind(name: str, dialect: str, account: Account | None) -> tuple[type[RemoteProvider], dict[str, Any]]:
    own = _BY_NAME.get(name) if dialect == "openai-chat" else None
    kind = own or _KINDS.get(dialect, RemoteProvider)
    if account is None:
        return kind, {}
    if kind not in _WITH_ACCOUNT:
        raise ConfigError(
            f"{name} takes no login.", hint=f"Remove access, credentials and oauth of [providers.{name}]."
        )
    return _WITH_ACCOUNT[kind], {"account": account}


def _joined(headers: dict[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return headers with those of a login; where both have one (betas), it holds the words of both."""
    out = {name.lower(): value for name, value in headers.items()}
    for name, value in more.items():
        words = [*out.get(name.lower(), "").split(","), *value.split(",")]
        out[name.lower()] = ",".join(dict.fromkeys([word.strip() for word in words if word.strip()]))
    return out
