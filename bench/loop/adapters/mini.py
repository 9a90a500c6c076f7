"""mini-swe-agent DefaultAgent (blocking loop, bash-style action; environment replaced by a trivial function). No streaming."""

import os

os.environ["MSWEA_SILENT_STARTUP"] = "1"
os.environ.setdefault("MSWEA_GLOBAL_CONFIG_DIR", "/tmp/mswea-bench")
import time
from common import *
from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import Submitted
from minisweagent.models.test_models import DeterministicToolcallModel, make_toolcall_output

NAME, DISTS, IMPORT, CLI, SYNC = (
    "mini-swe-agent",
    ["mini-swe-agent"],
    "from minisweagent.agents.default import DefaultAgent",
    ["mini", "--help"],
    True,
)


class Env:
    def execute(self, action, cwd=""):
        if action["command"] == "submit":
            raise Submitted(
                {"role": "exit", "content": "done", "extra": {"exit_status": "Submitted", "submission": "done"}}
            )
        return {"output": TOOL_RESULT, "returncode": 0, "exception_info": None}

    def get_template_vars(self, **k):
        return {}

    def serialize(self):
        return {}


class Fake(DeterministicToolcallModel):
    def __init__(self, n, hook=None):
        super().__init__(outputs=[])
        self.n, self.i, self.hook = n, 0, hook

    def query(self, messages, **k):
        i = self.i
        self.i += 1
        if self.hook:
            self.hook(i)
        cmd = "item" if i < self.n else "submit"
        return make_toolcall_output(
            None,
            [{"id": f"c{i}", "type": "function", "function": {"name": "bash", "arguments": '{"command": "item"}'}}],
            [{"command": cmd, "tool_call_id": f"c{i}"}],
        )


def run_sync(n, hook=None):
    m = Fake(n, hook)
    a = DefaultAgent(m, Env(), system_template=SYSTEM, instance_template="{{task}}", cost_limit=0)
    r = a.run(PROMPT)
    assert r["submission"] == "done" and m.i == n + 1, r
    return n


async def loop(n_tools, hook=None):
    return run_sync(n_tools, hook)


async def plain():
    run_sync(0)
    return "done"


stream = None
