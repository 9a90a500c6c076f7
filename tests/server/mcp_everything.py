"""A server made with `windlass.server.mcp` that offers what the official conformance suite asks for, on a free port.

Prints the port on stdout.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

from windlass.core.errors import ToolError
from windlass.core.messages import Blob, Text
from windlass.core.request import ToolSpec
from windlass.server.mcp import Offer, Prompt, Resource, make_server, serve_http
from windlass.tools.function import SpecTool

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
WAV = base64.b64decode("UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=")
NONE: dict[str, Any] = {"type": "object", "properties": {}}


def document(uri: str, mime: str, text: str) -> Blob:
    return Blob(text.encode(), mime, "document", provider_metadata={"uri": uri})


async def simple(args: dict[str, Any]) -> Any:
    return "This is a simple text response for testing."


async def image(args: dict[str, Any]) -> Any:
    return Blob(PNG, "image/png")


async def audio(args: dict[str, Any]) -> Any:
    return Blob(WAV, "audio/wav", "audio")


async def embedded(args: dict[str, Any]) -> Any:
    return document("test://embedded-resource", "text/plain", "This is an embedded resource content.")


async def mixed(args: dict[str, Any]) -> Any:
    data = document("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return [Text("Multiple content types test:"), Blob(PNG, "image/png"), data]


async def logging(args: dict[str, Any], ctx: Any) -> Any:
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.log("info", line)
        await asyncio.sleep(0.05)
    return "done"


async def failing(args: dict[str, Any]) -> Any:
    raise ToolError("This tool intentionally returns an error for testing")


async def progress(args: dict[str, Any], ctx: Any) -> Any:
    for done in (0, 50, 100):
        ctx.progress(data={"progress": done, "total": 100})
        await asyncio.sleep(0.05)
    return "done"


async def sampling(args: dict[str, Any], ctx: Any) -> Any:
    return f"LLM response: {await ctx.sample(args['prompt'], max_tokens=100)}"


async def elicitation(args: dict[str, Any], ctx: Any) -> Any:
    return await asked(ctx, args["message"], {"username": {"type": "string"}, "email": {"type": "string"}}, True)


async def defaults(args: dict[str, Any], ctx: Any) -> Any:
    fields = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return await asked(ctx, "Defaults", fields, False)


async def enums(args: dict[str, Any], ctx: Any) -> Any:
    plain = ["option1", "option2", "option3"]
    titled = [
        {"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"), 1)
    ]
    fields = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"],
                       "enumNames": ["Option One", "Option Two", "Option Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }  # fmt: skip
    return await asked(ctx, "Enums", fields, False)


async def asked(ctx: Any, message: str, fields: dict[str, Any], required: bool) -> str:
    schema = {"type": "object", "properties": fields, "required": list(fields) if required else []}
    answer = await ctx.elicit(message, schema)
    action = "decline" if answer is None else "accept"
    return f"Elicitation completed: action={action}, content={json.dumps(answer)}"


def tool(name: str, handler: Any, schema: dict[str, Any] = NONE) -> SpecTool:
    return SpecTool(ToolSpec(name, f"Test: {name}.", schema), handler)


def text_argument(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}


TOOLS = [
    tool("test_simple_text", simple), tool("test_image_content", image), tool("test_audio_content", audio),
    tool("test_embedded_resource", embedded), tool("test_multiple_content_types", mixed),
    tool("test_tool_with_logging", logging), tool("test_error_handling", failing),
    tool("test_tool_with_progress", progress), tool("test_sampling", sampling, text_argument("prompt")),
    tool("test_elicitation", elicitation, text_argument("message")),
    tool("test_elicitation_sep1034_defaults", defaults), tool("test_elicitation_sep1330_enums", enums),
    tool("json_schema_2020_12_tool", simple, {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
        "$defs": {"address": {"type": "object",
                              "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
        "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
        "additionalProperties": False,
    }),
]  # fmt: skip


def with_arguments(given: Mapping[str, str]) -> Any:
    return [("user", f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]


def with_resource(given: Mapping[str, str]) -> Any:
    blob = document(given["resourceUri"], "text/plain", "Embedded resource content for testing.")
    return [("user", blob), ("user", "Please process the embedded resource above.")]


def with_image(given: Mapping[str, str]) -> Any:
    return [("user", Blob(PNG, "image/png")), ("user", "Please analyze the image above.")]


PROMPTS = [
    Prompt("test_simple_prompt", "Simple.", lambda _: [("user", "This is a simple prompt for testing.")]),
    Prompt("test_prompt_with_arguments", "Two arguments.", with_arguments, {"arg1": "first", "arg2": "second"},
           ("arg1", "arg2"), lambda _, begun: [word for word in ("paris", "park") if word.startswith(begun)]),
    Prompt("test_prompt_with_embedded_resource", "A resource.", with_resource, {"resourceUri": "which"},
           ("resourceUri",)),
    Prompt("test_prompt_with_image", "An image.", with_image),
]  # fmt: skip


def template(uri: str) -> str:
    id = uri.split("/")[3]
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


RESOURCES = [
    Resource("test://static-text", "text", lambda _: "This is the content of the static text resource.", "Text."),
    Resource("test://static-binary", "binary", lambda _: PNG, "Binary.", "image/png"),
    Resource("test://watched-resource", "watched", lambda _: "watched", "Watched."),
    Resource("test://template/{id}/data", "template", template, "Template.", "application/json"),
]


async def main() -> None:
    server = make_server(Offer(tools=TOOLS, prompts=PROMPTS, resources=RESOURCES, name="everything"))
    await serve_http(server, "127.0.0.1", 0, token=None, started=lambda port: print(port, flush=True))


if __name__ == "__main__":
    asyncio.run(main())
