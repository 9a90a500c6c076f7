"""What the OpenAPI document says of routes besides their rows: the names of their bodies, and the server's own."""

from __future__ import annotations

from msgspec import Struct

from windlass.server.bodies import BODIES, COUNT, FLAG, ID, TEXT, Schema, array, number, obj, ref, some, word
from windlass.server.workspace_schemas import WORKSPACE_SCHEMAS

__all__ = ["ERRORS", "MODEL_ROWS", "ROWS", "SCHEMAS", "About"]

EVENTS, NDJSON, FRAMES = "text/event-stream", "application/x-ndjson", "application/vnd.amazon.eventstream"
_KEY = obj(
    "id name tenant role models created",
    id=TEXT,
    name=TEXT,
    tenant=TEXT,
    role=word("client", "admin"),
    models=array(TEXT),
    created=COUNT,
)
_ANY: Schema = {"type": "object"}
_LIMIT = some({"type": "integer", "minimum": 1, "maximum": 10**15})
_NAME: Schema = {"type": "string", "pattern": "^[!-~]([ -~]{0,100}[!-~])?$"}
_NEW_KEY = {
    **obj(
        "name",
        name=_NAME,
        tenant=some(_NAME),
        role=word("client", "admin"),
        models=array(_NAME, maxItems=20),
        rpm=_LIMIT,
        tpm=_LIMIT,
        budget=_LIMIT,
        token_budget=_LIMIT,
        period=word("total", "day", "month"),
        expires=some({"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}),
    ),
    "additionalProperties": False,
}
_ROTATION = {**obj(grace=number(0, 315_360_000)), "additionalProperties": False}
_COUNTS = obj(
    "instance_id total_requests successful_requests failed_requests",
    instance_id=TEXT,
    total_requests=COUNT,
    successful_requests=COUNT,
    failed_requests=COUNT,
)
_CLIENTS = obj(
    "instance_id active_connections known_clients",
    instance_id=TEXT,
    active_connections=COUNT,
    known_clients=array(obj("address key requests last_seen", address=TEXT, key=TEXT, requests=COUNT, last_seen=TEXT)),
)

_NUMBER64: Schema = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
_POS: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}
_BASE64: Schema = {"type": "string", "pattern": "^([A-Za-z0-9+/]{4}){0,20}$"}
_SESSION: Schema = {"type": "string", "maxLength": 200}
_ROW = obj(
    "pos kind run time data", pos=_POS, kind=_SESSION, run=_NUMBER64, time=_NUMBER64, version=_NUMBER64, data=_BASE64
)
_STORED = obj(
    "id rows created updated",
    id=TEXT, rows=COUNT, created=_NUMBER64, updated=_NUMBER64, title=TEXT, parent=some(TEXT), parent_pos=some(_POS),
)  # fmt: skip
#: The bodies and answers of a remote store; bodies take no further fields.
_ASKED: dict[str, Schema] = {
    "StoreAppendRequest": obj(
        "session expected_pos", session=_SESSION, expected_pos=_POS, rows=array(ref("StoreRow")), token=TEXT
    ),
    "StoreReadRequest": obj("session", session=_SESSION, start=_POS, end=some(_POS)),
    "StoreListRequest": obj(limit={"type": "integer", "minimum": 0, "maximum": 10_000}),
    "StoreDeleteRequest": obj("session", session=_SESSION),
    "StoreBlobRequest": obj("session data", session=_SESSION, data=_BASE64),
    "StoreBlobQuery": obj("session sha256", session=_SESSION, sha256=_SESSION),
}
_STORE: dict[str, Schema] = {
    "StoreRow": {**_ROW, "additionalProperties": False},
    **{name: {**schema, "additionalProperties": False} for name, schema in _ASKED.items()},
    "StoreAppended": obj("object rows", object=word("store.appended"), rows=COUNT),
    "StoreRows": obj("object rows more", object=word("store.rows"), rows=array(obj("pos kind data")), more=FLAG),
    "StoreList": obj("object sessions", object=word("list"), sessions=array(_STORED)),
    "StoreDeleted": obj("object deleted", object=word("store.deleted"), deleted=FLAG),
    "StoreBlobKept": obj("object sha256", object=word("store.blob"), sha256=TEXT),
    "StoreBlob": obj("object data", object=word("store.blob"), data=some(TEXT)),
}

#: Every schema that the document names.
SCHEMAS: dict[str, Schema] = {
    **BODIES,
    **_STORE,
    **WORKSPACE_SCHEMAS,
    "Key": _KEY,
    "Keys": obj("object data", object=word("list"), data=array(ref("Key"))),
    "NewKeyRequest": _NEW_KEY,
    "NewKey": {"allOf": [ref("Key"), obj("secret", secret=TEXT)]},
    "RotationRequest": _ROTATION,
    "Revoked": obj("id revoked", id=TEXT, revoked=FLAG),
    "Health": obj("status instance_id", status=TEXT, instance_id=TEXT),
    "Session": obj("id object status messages", id=TEXT, object=word("session"), status=TEXT, messages=array(_ANY)),
    "Document": obj("openapi info paths", openapi=TEXT, info=_ANY, paths=_ANY),
    "Counts": _COUNTS,
    "Clients": _CLIENTS,
    "Providers": obj(
        "instance_id providers",
        instance_id=TEXT,
        providers=obj("default_provider ollama openrouter bedrock", default_provider=TEXT),
    ),
}


class About(Struct, frozen=True):
    """What the document says of one row, besides what the row says.

    `request` and `answer` name schemas, `kinds` further content types of the answer, `success` its status, `statuses`
    further ones, `query` the parameters behind the path, `optional` that the body may be left out.
    """

    request: str = ""
    answer: str = ""
    kinds: tuple[str, ...] = ()
    success: int = 200
    statuses: tuple[int, ...] = ()
    query: dict[str, Schema] = {}
    errors: tuple[str, ...] = ()
    optional: bool = False


#: By a dialect's name, the schema of its errors; all others have OpenAI's.
ERRORS = {
    "anthropic": "AnthropicError",
    "ollama": "OllamaError",
    "ollama_generate": "OllamaError",
    "bedrock": "BedrockError",
    "gemini": "GeminiError",
}
#: By the name of an `Ingress`, what is said of routes that ask a model in it.
MODEL_ROWS = {
    "openai-chat": About("ChatRequest", "ChatAnswer", (EVENTS,)),
    "openai-completions": About("CompletionRequest", "CompletionAnswer", (EVENTS,)),
    "openai-responses": About("ResponsesRequest", "Response", (EVENTS,)),
    "openai-embeddings": About("EmbeddingsRequest", "EmbeddingsAnswer"),
    "anthropic": About("MessagesRequest", "MessagesAnswer", (EVENTS,)),
    "anthropic-count": About("CountRequest", "CountAnswer"),
    "ollama": About("OllamaChatRequest", "OllamaAnswer", (NDJSON,)),
    "ollama-generate": About("OllamaGenerateRequest", "OllamaAnswer", (NDJSON,)),
    "gemini": About("GeminiRequest", "GeminiAnswer"),
    "bedrock": About("ConverseRequest", "ConverseAnswer"),
}
_LISTED: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
_PAGE: dict[str, Schema] = {"limit": _LISTED, "after_id": TEXT, "before_id": TEXT}
_BOTH = ("Error", "AnthropicError")
#: By method and path, where the row alone says too little.
ROWS: dict[tuple[str, str], About] = {
    ("POST", "/model/{model}/converse-stream"): About("ConverseRequest", kinds=(FRAMES,)),
    ("POST", "/v1beta/models/{model}:streamGenerateContent"): About(
        "GeminiRequest", kinds=(EVENTS,), query={"alt": word("sse", "json")}
    ),
    ("GET", "/v1/models"): About(answer="List", query=_PAGE, errors=_BOTH, statuses=(400,)),
    ("GET", "/v1/models/{model}"): About(answer="Model", errors=_BOTH),
    ("GET", "/v1/responses/{response}"): About(answer="Response", query={"stream": word("false")}),
    ("GET", "/v1/responses/{response}/input_items"): About(
        answer="List",
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 100}, "order": word("asc", "desc"), "after": TEXT},
    ),
    ("DELETE", "/v1/responses/{response}"): About(answer="Deleted"),
    ("POST", "/api/embed"): About("OllamaEmbedRequest", "OllamaEmbedAnswer"),
    ("POST", "/api/embeddings"): About("OllamaEmbeddingsRequest", "OllamaEmbeddingsAnswer"),
    ("POST", "/api/show"): About("OllamaShowRequest", statuses=(404,)),
    ("GET", "/api/tags"): About(answer="OllamaModels"),
    ("GET", "/api/ps"): About(answer="OllamaModels"),
    ("GET", "/api/version"): About(answer="OllamaVersion"),
    ("GET", "/v1/keys"): About(answer="Keys"),
    ("POST", "/v1/keys"): About("NewKeyRequest", "NewKey", success=201),
    ("DELETE", "/v1/keys/{key}"): About(answer="Revoked"),
    ("POST", "/v1/keys/{key}/rotate"): About("RotationRequest", "NewKey", optional=True),
    ("GET", "/v1/usage"): About(answer="List", query={"by": word("key", "tenant", "model", "day")}),
    ("GET", "/v1/sessions"): About(answer="List", query={"limit": _LISTED, "tenant_id": ID}),
    ("GET", "/v1/sessions/{session}"): About(answer="Session", query={"tenant_id": ID}),
    ("DELETE", "/v1/sessions/{session}"): About(answer="Deleted", query={"tenant_id": ID}, statuses=(409,)),
    ("POST", "/windlass/v1/store/append"): About("StoreAppendRequest", "StoreAppended", statuses=(404, 409)),
    ("POST", "/windlass/v1/store/read"): About("StoreReadRequest", "StoreRows"),
    ("POST", "/windlass/v1/store/list"): About("StoreListRequest", "StoreList"),
    ("POST", "/windlass/v1/store/delete"): About("StoreDeleteRequest", "StoreDeleted", statuses=(409,)),
    ("POST", "/windlass/v1/store/blobs/put"): About("StoreBlobRequest", "StoreBlobKept", statuses=(404,)),
    ("POST", "/windlass/v1/store/blobs/get"): About("StoreBlobQuery", "StoreBlob", statuses=(404,)),
    ("POST", "/windlass/v1/workspaces"): About("WorkspaceRequest", "Workspace", success=201),
    ("DELETE", "/windlass/v1/workspaces/{workspace}"): About(answer="WorkspaceDeleted"),
    ("POST", "/windlass/v1/workspaces/{workspace}/files/read"): About("WorkspaceRead", "WorkspaceFile"),
    ("POST", "/windlass/v1/workspaces/{workspace}/files/write"): About(
        "WorkspaceWrite", "WorkspaceWritten", statuses=(412,)
    ),
    ("POST", "/windlass/v1/workspaces/{workspace}/files/delete"): About("WorkspacePath", "WorkspaceFileDeleted"),
    ("POST", "/windlass/v1/workspaces/{workspace}/files/stat"): About("WorkspacePath", "WorkspaceStat"),
    ("POST", "/windlass/v1/workspaces/{workspace}/files/list"): About("WorkspaceList", "WorkspaceEntries"),
    ("POST", "/windlass/v1/workspaces/{workspace}/exec"): About("WorkspaceCommand", kinds=(NDJSON,)),
    ("GET", "/openapi.json"): About(answer="Document"),
    ("GET", "/health"): About(answer="Health"),
    ("GET", "/ready"): About(answer="Health", statuses=(503,)),
    ("GET", "/metrics"): About(answer="Counts", kinds=("text/plain",)),
    ("GET", "/diagnostics/clients"): About(answer="Clients"),
    ("GET", "/diagnostics/requests"): About(answer="Counts"),
    ("GET", "/diagnostics/providers"): About(answer="Providers"),
}
