"""langchain.agents.create_agent (the current LangGraph agent) with a BaseChatModel subclass; no checkpointer."""

import os

os.environ.setdefault("LANGSMITH_TRACING", "false")
os.environ.setdefault("LANGCHAIN_TRACING_V2", "false")
from common import *
from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatResult, ChatGenerationChunk
from langchain_core.tools import tool

NAME, DISTS, IMPORT, CLI, SYNC = (
    "langgraph (create_agent)",
    ["langgraph", "langchain", "langchain-core"],
    "from langchain.agents import create_agent",
    None,
    False,
)


@tool
async def lookup(q: str) -> str:
    "Look up an item."
    return TOOL_RESULT


import contextvars

CUR = contextvars.ContextVar("cur")


class Fake(BaseChatModel):
    @property
    def _llm_type(self):
        return "fake"

    def bind_tools(self, tools, **k):
        return self

    def _generate(self, *a, **k):
        raise NotImplementedError

    async def _agenerate(self, messages, stop=None, run_manager=None, **k):
        st = CUR.get()
        i = st["i"]
        st["i"] += 1
        if st["hook"]:
            await call_hook(st["hook"], i)
        m = (
            AIMessage("", tool_calls=[{"name": "lookup", "args": {"q": "item"}, "id": f"c{i}"}])
            if i < st["n"]
            else AIMessage("done")
        )
        return ChatResult(generations=[ChatGeneration(message=m)])


class FakeStream(Fake):
    async def _astream(self, messages, stop=None, run_manager=None, **k):
        for _ in range(CUR.get()["deltas"]):
            c = ChatGenerationChunk(message=AIMessageChunk("tok "))
            if run_manager:
                await run_manager.on_llm_new_token("tok ", chunk=c)
            yield c


agent = create_agent(Fake(), [lookup], system_prompt=SYSTEM)
plain_agent = create_agent(Fake(), [], system_prompt=SYSTEM)
stream_agent = create_agent(FakeStream(), [], system_prompt=SYSTEM)


async def _run(a, n, hook=None, cfg=None):
    st = {"i": 0, "n": n, "hook": hook}
    tok = CUR.set(st)
    try:
        r = await a.ainvoke(
            {"messages": [{"role": "user", "content": PROMPT}]}, {"recursion_limit": 4 * n + 50, **(cfg or {})}
        )
    finally:
        CUR.reset(tok)
    assert r["messages"][-1].content == "done" and st["i"] == n + 1
    return n


async def loop(n_tools, hook=None):
    return await _run(agent, n_tools, hook)


async def plain():
    await _run(plain_agent, 0)
    return "done"


async def stream(n):
    k = 0
    CUR.set({"deltas": n})
    async for msg, meta in stream_agent.astream(
        {"messages": [{"role": "user", "content": PROMPT}]}, stream_mode="messages"
    ):
        if getattr(msg, "content", "") == "tok ":
            k += 1
    return k


async def loop_persist(n_tools, path):
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(path) as cp:
        a = create_agent(Fake(), [lookup], system_prompt=SYSTEM, checkpointer=cp)
        return await _run(a, n_tools, None, {"configurable": {"thread_id": "t"}})
