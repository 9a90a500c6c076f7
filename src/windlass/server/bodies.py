"""The bodies of the dialects as JSON Schema 2020-12, for the OpenAPI document: what each takes and answers.

Requests are described as far as this server itself looks at them; vendors' further fields are taken too. A request that
fits is not promised to be taken: names of models, sizes and what refers to other parts of a request are not said here.
"""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = [
    "BODIES",
    "COUNT",
    "FLAG",
    "ID",
    "TEXT",
    "Schema",
    "array",
    "either",
    "number",
    "obj",
    "ref",
    "some",
    "word",
]

Schema: TypeAlias = dict[str, Any]
#: The largest count of tokens that is read.
_MOST = (1 << 31) - 1


def ref(name: str) -> Schema:
    """Return a reference to a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def some(schema: Schema) -> Schema:
    """Return a schema that takes null too, which counts as not given."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def obj(required: str = "", /, **fields: Schema) -> Schema:
    """Return an object with further fields allowed; `required` names those that must be there, with spaces."""
    out: Schema = {"type": "object", "properties": fields}
    return {**out, "required": required.split()} if required else out


def array(items: Schema, **bounds: int) -> Schema:
    """Return an array."""
    return {"type": "array", "items": items, **bounds}


def either(*schemas: Schema) -> Schema:
    """Return what fits any of several schemas."""
    return {"anyOf": list(schemas)}


def word(*words: str) -> Schema:
    """Return one of some words."""
    return {"type": "string", "enum": list(words)}


def number(low: float, high: float) -> Schema:
    """Return a number within bounds, both included."""
    return {"type": "number", "minimum": low, "maximum": high}


def only(name: str, schema: Schema) -> Schema:
    """Return an object of one field and no other."""
    return {**obj(name, **{name: schema}), "additionalProperties": False}


def match(pattern: str) -> Schema:
    """Return a text that fits a pattern (ECMA 262)."""
    return {"type": "string", "pattern": pattern}


TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
#: An id of the client's: it stands in paths, headers and logs.
ID: Schema = match("^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")
URL: Schema = match("^https?://[a-z]+/[A-Za-z0-9._/-]*$")
DATA_URL: Schema = match("^data:[a-z]+/[a-z]+;base64,([A-Za-z0-9+/]{4})*$")
#: PNG, JPEG and GIF by their first bytes.
IMAGE: Schema = match("^(iVBORw0KGgoA|/9j/|R0lGODlh)([A-Za-z0-9+/]{4})*$")
FLAG: Schema = {"type": "boolean"}
TOKENS: Schema = {"type": "integer", "minimum": 1, "maximum": _MOST}
COUNT: Schema = {"type": "integer", "minimum": 0}
WHOLE: Schema = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
ANY_OBJECT: Schema = {"type": "object"}
MODEL: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 512,
    "description": 'A name of [routes], "provider:model", or "auto" for the default.',
    "examples": ["auto"],
}
_TEXTS = either(TEXT, array(TEXT))

# ---------------------------------------------------------------------------------------------------------- OpenAI chat

_CHAT_PART = either(
    obj("type text", type=word("text"), text=TEXT),
    obj("type image_url", type=word("image_url"), image_url=obj("url", url=either(URL, DATA_URL), detail=NAME)),
    obj(
        "type file", type=word("file"), file=either(obj("file_data", file_data=DATA_URL), obj("file_id", file_id=NAME))
    ),
)
_CHAT_CONTENT = either(TEXT, array(_CHAT_PART))
_CHAT_CALL = obj("id function", id=NAME, type=word("function"), function=obj("name", name=NAME, arguments=TEXT))
_CHAT_MESSAGE = either(
    obj("role content", role=word("system", "developer"), content=either(TEXT, array(_CHAT_PART["anyOf"][0]))),
    obj("role content", role=word("user"), content=_CHAT_CONTENT, name=some(TEXT)),
    obj("role content", role=word("assistant"), content=_CHAT_CONTENT, tool_calls=some(array(_CHAT_CALL))),
    obj("role content tool_call_id", role=word("tool"), content=_CHAT_CONTENT, tool_call_id=NAME),
)
_CHAT_TOOL = obj(
    "type function",
    type=word("function"),
    function=obj("name", name=NAME, description=some(TEXT), parameters=some(ANY_OBJECT)),
)
_SAMPLING = {
    "temperature": some(number(0, 2)),
    "top_p": some(number(0, 1)),
    "presence_penalty": some(number(-2, 2)),
    "frequency_penalty": some(number(-2, 2)),
    "stop": some(_TEXTS),
    "seed": some(WHOLE),
    "stream": some(FLAG),
    "stream_options": some(ANY_OBJECT),
    "user": some(TEXT),
}
_CHAT_FIELDS = obj(
    "model",
    model=MODEL,
    tools=some(array(_CHAT_TOOL)),
    tool_choice=some(
        either(
            word("auto", "none", "required"),
            obj("type function", type=word("function"), function=obj("name", name=NAME)),
        )
    ),
    max_tokens=some(TOKENS),
    max_completion_tokens=some(TOKENS),
    n=some({"type": "integer", "minimum": 1, "maximum": 128}),
    parallel_tool_calls=some(FLAG),
    reasoning_effort=some(TEXT),
    response_format=some(obj("type", type=word("text"))),
    metadata=some(ANY_OBJECT),
    provider=some(NAME),
    think=some(FLAG),
    thinking=some(FLAG),
    repeat_penalty=some(number(0, 10)),
    session_id=some(ID),
    tenant_id=some(ID),
    max_context_tokens=some({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
    loop_mode=some(word("basic", "agent")),
    agent_loop=some(FLAG),
    loop_until=some(NAME),
    loop_max_turns=some({"type": "integer", "minimum": 1, "maximum": 128}),
    **_SAMPLING,
)
_NOTHING: Schema = {"type": "null"}
_CHAT: Schema = {
    "allOf": [
        _CHAT_FIELDS,
        either(
            obj("messages", messages=array(_CHAT_MESSAGE, minItems=1), prompt=_NOTHING),
            obj("prompt", prompt=NAME, messages=_NOTHING),
        ),
    ]
}
_COMPLETION = obj(
    "model prompt",
    model=MODEL,
    prompt=either(TEXT, array(TEXT, minItems=1, maxItems=1)),
    max_tokens=some(TOKENS),
    **_SAMPLING,
)
_OPENAI_USAGE = obj(
    "prompt_tokens completion_tokens total_tokens", prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT
)
_CHAT_ANSWER = obj(
    "id object created model choices",
    id=TEXT,
    object=word("chat.completion"),
    created=COUNT,
    model=TEXT,
    choices=array(
        obj(
            "index message finish_reason",
            index=COUNT,
            message=obj("role", role=TEXT, content=some(TEXT)),
            finish_reason=some(TEXT),
        )
    ),
    usage=some(_OPENAI_USAGE),
)
_COMPLETION_ANSWER = obj(
    "id object created model choices",
    id=TEXT,
    object=word("text_completion"),
    created=COUNT,
    model=TEXT,
    choices=array(obj("index text finish_reason", index=COUNT, text=TEXT, finish_reason=some(TEXT))),
    usage=some(_OPENAI_USAGE),
)
_EMBEDDINGS = obj(
    "model input",
    model=MODEL,
    input=either(NAME, array(NAME, minItems=1, maxItems=2048)),
    user=some(TEXT),
    dimensions=some({"type": "integer", "minimum": 1, "maximum": 65_536}),
    encoding_format=some(word("float", "base64")),
)
_EMBEDDINGS_ANSWER = obj(
    "object data model",
    object=word("list"),
    model=TEXT,
    data=array(
        obj(
            "object index embedding",
            object=word("embedding"),
            index=COUNT,
            embedding=either(array({"type": "number"}), TEXT),
        )
    ),
)

# ----------------------------------------------------------------------------------------------------- OpenAI responses

_RESPONSES_PART = either(
    obj("type text", type=word("input_text"), text=TEXT),
    obj("type image_url", type=word("input_image"), image_url=either(URL, DATA_URL)),
)
_RESPONSES_ITEM = either(
    obj("role content", type=word("message"), role=word("user"), content=either(TEXT, array(_RESPONSES_PART))),
    obj("role content", type=word("message"), role=word("system", "developer"), content=TEXT),
    obj("type call_id name arguments", type=word("function_call"), call_id=NAME, name=NAME, arguments=TEXT),
    obj("type call_id output", type=word("function_call_output"), call_id=NAME, output=TEXT),
)
_RESPONSES = obj(
    "model input",
    model=MODEL,
    input=either(TEXT, array(_RESPONSES_ITEM, minItems=1)),
    instructions=some(TEXT),
    max_output_tokens=some(TOKENS),
    temperature=some(number(0, 2)),
    top_p=some(number(0, 1)),
    stream=some(FLAG),
    store=some(FLAG),
    previous_response_id=some(TEXT),
    metadata=some({"type": "object", "additionalProperties": TEXT}),
    parallel_tool_calls=some(FLAG),
    user=some(TEXT),
    tools=some(
        array(obj("type name", type=word("function"), name=NAME, description=some(TEXT), parameters=some(ANY_OBJECT)))
    ),
    tool_choice=some(word("auto", "none", "required")),
)
_RESPONSE = obj(
    "id object status model output", id=TEXT, object=word("response"), status=TEXT, model=TEXT, output=array(ANY_OBJECT)
)

# ------------------------------------------------------------------------------------------------------------ Anthropic

_MESSAGES_TEXT = obj("type text", type=word("text"), text=TEXT)
_MESSAGES_RESULT = obj("type tool_use_id", type=word("tool_result"), tool_use_id=NAME, content=TEXT)
_MESSAGES_USE = obj("type id name input", type=word("tool_use"), id=NAME, name=NAME, input=ANY_OBJECT)
_MESSAGES_MESSAGE = either(
    obj("role content", role=word("user"), content=either(TEXT, array(either(_MESSAGES_TEXT, _MESSAGES_RESULT)))),
    obj("role content", role=word("assistant"), content=either(TEXT, array(either(_MESSAGES_TEXT, _MESSAGES_USE)))),
)
_MESSAGES_FIELDS = {
    "model": MODEL,
    "messages": array(_MESSAGES_MESSAGE, minItems=1),
    "system": some(either(TEXT, array(_MESSAGES_TEXT))),
    "tools": some(array(obj("name input_schema", name=NAME, description=some(TEXT), input_schema=ANY_OBJECT))),
    "tool_choice": some(
        either(obj("type", type=word("auto", "any", "none")), obj("type name", type=word("tool"), name=NAME))
    ),
    "thinking": some(
        either(
            obj("type", type=word("disabled", "adaptive")),
            obj("type budget_tokens", type=word("enabled"), budget_tokens=TOKENS),
        )
    ),
}
_MESSAGES = obj(
    "model messages",
    max_tokens=some(TOKENS),
    temperature=some(number(0, 1)),
    top_p=some(number(0, 1)),
    top_k=some(TOKENS),
    stop_sequences=some(array(TEXT)),
    stream=some(FLAG),
    metadata=some(ANY_OBJECT),
    **_MESSAGES_FIELDS,
)
_MESSAGES_ANSWER = obj(
    "id type role content model usage",
    id=TEXT,
    type=word("message"),
    role=word("assistant"),
    content=array(ANY_OBJECT),
    model=TEXT,
    stop_reason=some(TEXT),
    usage=obj("input_tokens output_tokens", input_tokens=COUNT, output_tokens=COUNT),
)

# --------------------------------------------------------------------------------------------------------------- Ollama

_OPTIONS = obj(
    temperature=some(number(0, 2)),
    top_p=some(number(0, 1)),
    num_predict=some(WHOLE),
    stop=some(_TEXTS),
    seed=some(WHOLE),
    repeat_penalty=some(number(0, 10)),
)
_OLLAMA_FIELDS = {
    "model": MODEL,
    "stream": some(FLAG),
    "options": some(_OPTIONS),
    "keep_alive": some(either(TEXT, {"type": "number"})),
    "think": some(either(FLAG, word("low", "medium", "high"))),
    "format": some(either(word("", "json"), ANY_OBJECT)),
}
_OLLAMA_MESSAGE = either(
    obj("role content", role=word("system", "assistant", "tool"), content=TEXT),
    obj("role content", role=word("user"), content=TEXT, images=some(array(IMAGE))),
)
_OLLAMA_CHAT = obj("model messages", messages=array(_OLLAMA_MESSAGE), tools=some(array(_CHAT_TOOL)), **_OLLAMA_FIELDS)
_OLLAMA_GENERATE = obj("model", prompt=some(TEXT), system=some(TEXT), **_OLLAMA_FIELDS)
_OLLAMA_ANSWER = obj("model created_at done", model=TEXT, created_at=TEXT, done=FLAG)
_OLLAMA_EMBED = obj("model input", model=MODEL, input=_TEXTS, truncate=some(FLAG), options=some(ANY_OBJECT))
_OLLAMA_EMBED_OLD = obj("model prompt", model=MODEL, prompt=TEXT, options=some(ANY_OBJECT))

# ------------------------------------------------------------------------------------------------------ Bedrock, Google

_CONVERSE_RESULT = obj("toolUseId content", toolUseId=NAME, content=array(only("text", TEXT)))
_CONVERSE_CALL = obj("toolUseId name input", toolUseId=NAME, name=NAME, input=ANY_OBJECT)
_CONVERSE_MESSAGE = either(
    obj(
        "role content",
        role=word("user"),
        content=array(either(only("text", NAME), only("toolResult", _CONVERSE_RESULT)), minItems=1),
    ),
    obj(
        "role content",
        role=word("assistant"),
        content=array(either(only("text", NAME), only("toolUse", _CONVERSE_CALL)), minItems=1),
    ),
)
_CONVERSE = obj(
    "messages",
    system=array(only("text", NAME)),
    messages=array(_CONVERSE_MESSAGE, minItems=1),
    inferenceConfig=obj(maxTokens=TOKENS, temperature=number(0, 1), topP=number(0, 1), stopSequences=array(NAME)),
    toolConfig=obj(
        "tools",
        tools=array(
            only(
                "toolSpec",
                obj("name inputSchema", name=NAME, description=NAME, inputSchema=only("json", ANY_OBJECT)),
            ),
            minItems=1,
        ),
    ),
)
_CONVERSE_ANSWER = obj(
    "output stopReason usage",
    output=obj("message", message=obj("role content", role=TEXT, content=array(ANY_OBJECT))),
    stopReason=TEXT,
    usage=obj("inputTokens outputTokens totalTokens", inputTokens=COUNT, outputTokens=COUNT, totalTokens=COUNT),
)
_GEMINI_RESPONSE = obj("name response", name=NAME, response=ANY_OBJECT)
_GEMINI_CONTENT = either(
    obj(
        "parts",
        role=word("user"),
        parts=array(either(only("text", TEXT), only("functionResponse", _GEMINI_RESPONSE)), minItems=1),
    ),
    obj(
        "role parts",
        role=word("model"),
        parts=array(
            either(only("text", TEXT), only("functionCall", obj("name", name=NAME, args=ANY_OBJECT))), minItems=1
        ),
    ),
)
_GEMINI = obj(
    "contents",
    contents=array(_GEMINI_CONTENT, minItems=1),
    systemInstruction=obj("parts", parts=array(obj("text", text=TEXT))),
    generationConfig=obj(
        temperature=number(0, 2),
        topP=number(0, 1),
        topK=TOKENS,
        maxOutputTokens=TOKENS,
        stopSequences=array(TEXT),
        seed={"type": "integer", "minimum": 0, "maximum": _MOST},
    ),
    tools=array(
        obj(
            "functionDeclarations",
            functionDeclarations=array(obj("name", name=NAME, description=TEXT, parameters=ANY_OBJECT)),
        )
    ),
)
_GEMINI_ANSWER = obj("candidates", candidates=array(ANY_OBJECT), usageMetadata=ANY_OBJECT, modelVersion=TEXT)

#: Every schema of a dialect that the document names.
BODIES: dict[str, Schema] = {
    "Error": obj(
        "error", error=obj("message type param code", message=TEXT, type=TEXT, param=some(TEXT), code=some(TEXT))
    ),
    "AnthropicError": obj("type error", type=word("error"), error=obj("type message", type=TEXT, message=TEXT)),
    "OllamaError": obj("error", error=TEXT),
    "BedrockError": obj("message", message=TEXT),
    "GeminiError": obj("error", error=obj("code message status", code=COUNT, message=TEXT, status=TEXT)),
    "ChatRequest": _CHAT,
    "ChatAnswer": _CHAT_ANSWER,
    "CompletionRequest": _COMPLETION,
    "CompletionAnswer": _COMPLETION_ANSWER,
    "EmbeddingsRequest": _EMBEDDINGS,
    "EmbeddingsAnswer": _EMBEDDINGS_ANSWER,
    "ResponsesRequest": _RESPONSES,
    "Response": _RESPONSE,
    "MessagesRequest": _MESSAGES,
    "MessagesAnswer": _MESSAGES_ANSWER,
    "CountRequest": obj("model messages", **_MESSAGES_FIELDS),
    "CountAnswer": obj("input_tokens", input_tokens=COUNT),
    "OllamaChatRequest": _OLLAMA_CHAT,
    "OllamaGenerateRequest": _OLLAMA_GENERATE,
    "OllamaAnswer": _OLLAMA_ANSWER,
    "OllamaEmbedRequest": _OLLAMA_EMBED,
    "OllamaEmbedAnswer": obj("model embeddings", model=TEXT, embeddings=array(array({"type": "number"}))),
    "OllamaEmbeddingsRequest": _OLLAMA_EMBED_OLD,
    "OllamaEmbeddingsAnswer": obj("embedding", embedding=array({"type": "number"})),
    "OllamaShowRequest": either(obj("model", model=MODEL), obj("name", name=MODEL)),
    "OllamaModels": obj("models", models=array(ANY_OBJECT)),
    "OllamaVersion": obj("version", version=TEXT),
    "ConverseRequest": _CONVERSE,
    "ConverseAnswer": _CONVERSE_ANSWER,
    "GeminiRequest": _GEMINI,
    "GeminiAnswer": _GEMINI_ANSWER,
    "List": obj("data", data=array(ANY_OBJECT)),
    "Model": obj("id", id=TEXT),
    "Deleted": obj("id deleted", id=TEXT, deleted=FLAG),
}
