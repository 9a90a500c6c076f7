"""Floor: the smallest hand-written asyncio loop over OpenAI-style dict messages."""

import json
from common import *

NAME, DISTS, IMPORT, CLI, SYNC = "bare loop", [], "import json, asyncio", None, False


async def lookup(q):
    return TOOL_RESULT


TOOLS = {"lookup": lookup}


class Model:
    def __init__(s, n, hook):
        s.n, s.i, s.hook = n, 0, hook

    async def request(s, messages):
        i = s.i
        s.i += 1
        if s.hook:
            await call_hook(s.hook, i)
        if i < s.n:
            return {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": f"c{i}", "type": "function", "function": {"name": "lookup", "arguments": '{"q": "item"}'}}
                ],
            }
        return {"role": "assistant", "content": "done"}

    async def stream(s, messages, n):
        for _ in range(n):
            yield "tok "


async def run(model, prompt):
    msgs = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    c = 0
    while True:
        m = await model.request(msgs)
        msgs.append(m)
        if not m.get("tool_calls"):
            return m["content"], c
        for t in m["tool_calls"]:
            out = await TOOLS[t["function"]["name"]](**json.loads(t["function"]["arguments"]))
            c += 1
            msgs.append({"role": "tool", "tool_call_id": t["id"], "content": out})


async def loop(n_tools, hook=None):
    text, c = await run(Model(n_tools, hook), PROMPT)
    assert text == "done" and c == n_tools
    return c


async def plain():
    return (await run(Model(0, None), PROMPT))[0]


async def stream(n):
    k = 0
    buf = []
    async for d in Model(0, None).stream([], n):
        buf.append(d)
        k += 1
    return k
