"""Render a model's chat template: the text that the model reads for a list of messages.

The engine renders templates itself, in C++ and in its worker process, whenever it answers a chat request. This is for
everybody else: the torch backend and the trainer, which need the text and have the template from a model file or from
`tokenizer_config.json`. It runs in a process of its own (`template_worker`) that is ended when it takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from windlass.core import clock
from windlass.core.errors import ConfigError, LocalModelError

__all__ = ["Answer", "Render", "TemplateLimits", "TemplateRenderer", "render_chat"]

# The worker needs nothing of the environment but where Python is; above all no keys of the user's.
_ENVIRONMENT: Final = ("PATH", "LANG", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "TEMP")
_START: Final = 60.0


class TemplateLimits(Struct, frozen=True, kw_only=True):
    """What rendering may cost: `source` and `output` in characters, `memory` of the process in bytes, `seconds` each.

    Real templates have up to 100 000 characters and take some milliseconds.
    """

    source: int = 256 << 10
    output: int = 8 << 20
    memory: int = 512 << 20
    seconds: float = 5.0


class Render(Struct, frozen=True):
    """A request: the template's source, its variables, and what time it is for `strftime_now`, in Unix seconds."""

    template: str
    variables: dict[str, Any] = field(default_factory=dict[str, Any])
    now: float = 0.0


class Answer(Struct, frozen=True, omit_defaults=True):
    """A reply: the text, or why there is none."""

    text: str = ""
    error: str = ""


class TemplateRenderer:
    """A process that renders templates within `limits`, one at a time.

    The first call starts it, and the call after one that had to be ended. Any number of threads may call it. `close`
    ends it.
    """

    def __init__(self, limits: TemplateLimits | None = None) -> None:
        self._limits = limits or TemplateLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        _renderers.add(self)

    @property
    def pid(self) -> int | None:
        """The process's id, None while none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """Return what a template writes with these variables (JSON data). Blocking, at most `limits.seconds`.

        Raises LocalModelError that says why it cannot be rendered; ConfigError when jinja2 is not installed or the
        variables are not JSON data.
        """
        request = Render(template, dict(variables), clock.now_ns() / 1e9)
        try:
            line = msgspec.json.encode(request) + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"The variables of a chat template must be JSON data: {error}.") from error
        with self._lock:
            if self.pid is None:
                self._start()
            reply = self._ask(line, self._limits.seconds)
        if reply.error:
            raise LocalModelError(f"The chat template cannot be rendered: {reply.error.rstrip('.')}.")
        return reply.text

    def close(self) -> None:
        """End the process; a later call starts another one."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        if importlib.util.find_spec("jinja2") is None:
            raise ConfigError(
                "Chat templates need jinja2, which is not installed.", hint="pip install 'windlass[local]'"
            )
        self._end()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "windlass.local.template_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={key: value for key, value in os.environ.items() if key in _ENVIRONMENT or key.startswith("LC_")},
                start_new_session=True,
            )
        except OSError as error:
            raise LocalModelError(f"No process could be started for chat templates: {error}.") from error
        # Loading Python and jinja2 is not the template's time.
        self._ask(msgspec.json.encode(self._limits) + b"\n", _START)

    def _ask(self, line: bytes, seconds: float) -> Answer:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()
        watch = threading.Timer(seconds, lambda: (late.set(), process.kill()))
        watch.daemon = True
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the end of its output says so too
                process.stdin.write(line)
                process.stdin.flush()
            reply = process.stdout.readline()
        finally:
            watch.cancel()
        if reply.endswith(b"\n"):
            return msgspec.json.decode(reply, type=Answer)
        why = f"it takes longer than {seconds:g} s" if late.is_set() else self._last_words(process)
        self._end()
        raise LocalModelError(f"The chat template cannot be rendered: {why}.")

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stderr is not None
        process.kill()
        said = " ".join(process.stderr.read().decode("utf-8", "replace").split())[-300:]
        return f"its process ended with status {process.wait()}" + (f": {said}" if said else "")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # what could not be written is of no use now
                process.communicate()


_renderers: weakref.WeakSet[TemplateRenderer] = weakref.WeakSet()
_shared = TemplateRenderer()


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    extra: Mapping[str, Any] | None = None,
    renderer: TemplateRenderer | None = None,
) -> str:
    """Return the text that a chat template makes of OpenAI-style `messages` and `tools`, as transformers does.

    `add_generation_prompt` ends it where the model's answer begins; the special tokens are texts; `extra` holds more
    variables for the template. `renderer` None: one that the process shares, with the limits of `TemplateLimits`.
    Blocking; about a millisecond, the first call some 200. Raises LocalModelError when the template is not usable:
    wrong, too long, too slow, too much text, out of its sandbox, or refusing these messages.
    """
    variables = {
        **(extra or {}),
        "messages": list(messages),
        "tools": list(tools) if tools else None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token,
        "eos_token": eos_token,
    }
    return (renderer or _shared).render(template, variables)


@atexit.register
def _close_all() -> None:  # pyright: ignore[reportUnusedFunction]
    for renderer in list(_renderers):
        renderer.close()
