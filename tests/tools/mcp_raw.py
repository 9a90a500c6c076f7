"""A small MCP server over stdio, without the SDK, that misbehaves on request: `python mcp_raw.py '{"…"}'`.

Options: `tools` (a list of MCP tools), `delay` (seconds before it answers anything), `die` (ends before it answers),
`dies` (a file: while it exists, the server ends at once), `instructions`. Tools by name do what their name says.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
OPTIONS: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}}
NAMES = (
    "echo fail image mixed structured link garbage big wrong_id silent late die environ child change progress deaf "
    "crash_once"
)
MANY = [f"tool_{number}" for number in range(OPTIONS.get("many", 0))]
TOOLS: list[dict[str, Any]] = OPTIONS.get("tools") or [
    {"name": name, "description": f"Do {name}.", "inputSchema": SCHEMA} for name in MANY or NAMES.split()
]


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def result(id: Any, *content: dict[str, Any], **more: Any) -> None:
    send({"id": id, "result": {"content": list(content), **more}})


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def call(id: Any, name: str, args: dict[str, Any], meta: dict[str, Any]) -> None:
    said = text(str(args.get("text", "")))
    if name == "fail":
        result(id, text("it went wrong"), isError=True)
    elif name == "image":
        result(id, {"type": "image", "data": PNG, "mimeType": "image/png"})
    elif name == "mixed":
        blob = {"uri": "test://b", "blob": PNG, "mimeType": "application/pdf"}
        result(
            id, text("a\x1b[31mb\U000e0041c"), {"type": "audio", "data": PNG, "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "test://t", "text": "inside"}},
            {"type": "resource", "resource": blob},
        )  # fmt: skip
    elif name == "structured":
        result(id, text('{"a": 1}'), structuredContent={"a": 1})
    elif name == "link":
        result(
            id, {"type": "resource_link", "uri": "file:///etc/passwd", "name": "secrets"}, structuredContent={"b": [1]}
        )
    elif name == "garbage":
        sys.stdout.write("npm warn old\n\n{not json\n[1, 2]\n" + "[" * 5000 + "\n")
        result(id, said)
    elif name == "big":
        head = f'"jsonrpc": "2.0", "id": {json.dumps(id)}'
        sys.stdout.write("{" + head + ', "result": {"content": [{"type": "text", "text": "')
        for _ in range(int(args.get("text") or 100)):
            sys.stdout.write("x" * 1_000_000)
        sys.stdout.write('"}]}}\n')
        sys.stdout.flush()
    elif name == "wrong_id":
        send({"id": 999_999, "result": {"content": [text("not yours")]}})
        send({"id": f"{id}-x", "result": {"content": [text("nor this")]}})
        result(id, said)
    elif name == "late":
        LATE.append(id)
    elif name == "die":
        os._exit(3)
    elif name == "crash_once":
        flag = Path(str(args["text"]))
        if not flag.exists():
            flag.write_text("x")
            os._exit(3)
        result(id, text("mended"))
    elif name == "environ":
        result(id, text(json.dumps({"env": dict(os.environ), "cwd": str(Path.cwd()), "argv": sys.argv})))
    elif name == "child":
        child = subprocess.Popen(["sleep", "1000"], start_new_session=bool(args.get("text")))
        result(id, text(str(child.pid)))
    elif name == "change":
        for tool in TOOLS:
            if tool["name"] == "echo":
                tool["description"] = str(args.get("text", "Changed."))
        send({"method": "notifications/tools/list_changed"})
        result(id, text("changed"))
    elif name == "progress":
        for step in (1, 2):
            token = meta.get("progressToken")
            send(
                {
                    "method": "notifications/progress",
                    "params": {"progressToken": token, "progress": step, "total": 2, "message": f"step {step}"},
                }
            )
        result(id, said)
    elif name == "deaf":
        time.sleep(1000)
    elif name != "silent":
        result(id, said)


LATE: list[Any] = []


def answer(message: dict[str, Any]) -> None:
    id, method, params = message.get("id"), message.get("method"), message.get("params") or {}
    if method == "initialize":
        capabilities: dict[str, Any] = {"tools": {"listChanged": True}}
        if OPTIONS.get("resources"):
            capabilities["resources"] = {}
        info = {"name": "raw", "version": "1"}
        said = {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
        send({"id": id, "result": {**said, "instructions": OPTIONS.get("instructions", "")}})
    elif method == "tools/list":
        send({"id": id, "result": {"tools": TOOLS}})
    elif method == "resources/list":
        send({"id": id, "result": {"resources": [{"uri": "test://one", "name": "one"}]}})
    elif method == "resources/templates/list":
        send({"id": id, "result": {"resourceTemplates": []}})
    elif method == "resources/read":
        send({"id": id, "result": {"contents": [{"uri": params["uri"], "text": "the text of one"}]}})
    elif method == "tools/call":
        call(id, params["name"], params.get("arguments") or {}, params.get("_meta") or {})
    elif method == "notifications/cancelled" and params.get("requestId") in LATE:
        result(params["requestId"], text("too late"))
    elif id is not None and method is not None:
        send({"id": id, "error": {"code": -32601, "message": "Method not found"}})


def main() -> None:
    if OPTIONS.get("die") or Path(str(OPTIONS.get("dies", "/nowhere"))).exists():
        sys.stderr.write("cannot start: no licence\n")
        sys.exit(7)
    time.sleep(float(OPTIONS.get("delay", 0)))
    for line in sys.stdin:
        answer(json.loads(line))


if __name__ == "__main__":
    main()
