TOOL_RESULT = ("result " * 29)[:200]
PROMPT = "Look things up, one after another, then say done."
SYSTEM = "You are a careful assistant."
assert len(TOOL_RESULT) == 200


async def call_hook(hook, turn):
    if hook is not None:
        r = hook(turn)
        if r is not None:
            await r
