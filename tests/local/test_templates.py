"""Chat templates: what they write, and what they cannot do."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from typing import Any

import pytest

from windlass.core import clock
from windlass.core.errors import ConfigError, LocalModelError
from windlass.local import templates
from windlass.local.embedded import embedded_model
from windlass.local.gguf import read_header
from windlass.local.templates import TemplateLimits, TemplateRenderer, render_chat

HELLO = [{"role": "user", "content": "hi <b> & 'ö'"}]


@pytest.fixture(scope="module")
def renderer() -> Generator[TemplateRenderer]:
    """A renderer with small limits, for templates that do harm."""
    made = TemplateRenderer(TemplateLimits(seconds=1.0, memory=200 << 20, output=100_000, source=50_000))
    yield made
    made.close()


def refused(renderer: TemplateRenderer, template: str, **fields: Any) -> str:
    with pytest.raises(LocalModelError, match="The chat template cannot be rendered") as caught:
        render_chat(template, HELLO, renderer=renderer, **fields)
    return caught.value.message


def test_the_shipped_models_template() -> None:
    template = read_header(embedded_model().path).chat_template
    text = render_chat(template, HELLO, tools=[{"type": "function", "function": {"name": "utc"}}])
    assert text.startswith("<|im_start|>system\n") and '{"type": "function", "function": {"name": "utc"}}' in text
    assert text.endswith("<|im_start|>user\nhi <b> & 'ö'<|im_end|>\n<|im_start|>assistant\n")
    assert not render_chat(template, HELLO, add_generation_prompt=False).endswith("assistant\n")


def test_what_templates_are_given() -> None:
    """The words of transformers' own: tojson without HTML, dates, errors, loops, blocks for the model's own words."""
    assert render_chat("{{ {'b': '<é>', 'a': 1} | tojson }}", HELLO) == '{"b": "<é>", "a": 1}'
    assert render_chat("{{ [1] | tojson(indent=2) }}", HELLO) == "[\n  1\n]"
    assert render_chat(
        "{{ bos_token }}{{ x }}{{ eos_token }}", [], bos_token="<s>", eos_token="</s>", extra={"x": 1}
    ) == ("<s>1</s>")
    assert render_chat("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", []) == "01"
    assert render_chat("a{% generation %}b{% endgeneration %}c", []) == "abc"
    assert render_chat("  {% if true %}\n  x\n  {% endif %}", []) == "  x\n"
    assert render_chat("{{ tools is none }} {{ messages[0].role }}", HELLO) == "True user"
    with clock.use(_Fixed()):
        assert render_chat("{{ strftime_now('%Y-%m-%d') }}", []) == "2001-09-09"


class _Fixed(clock.Clock):
    def now_ns(self) -> int:
        return 1_000_000_000_000_000_000


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "is unsafe"),
        ("{{ strftime_now.__globals__.x }}", "is unsafe"),
        ("{{ raise_exception.__globals__['sys'] }}", "is unsafe"),
        ("{{ (lipsum|attr('__globals__')).os }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1).x.y }}", "'__class__' of 'int' object is unsafe"),
        ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% set _ = messages[0].update({'role': 'x'}) %}", "'update' of 'dict' object is unsafe"),
    ],
)
def test_s107_attributes_of_the_host_are_out_of_reach(renderer: TemplateRenderer, template: str, problem: str) -> None:
    assert problem in refused(renderer, template)


@pytest.mark.parametrize(
    "template",
    ["{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% from 'x' import y %}", "{% extends 'x' %}"],
)
def test_s107_no_other_file(renderer: TemplateRenderer, template: str) -> None:
    assert "takes in another file" in refused(renderer, "ok\n" + template)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [LOOP, "{{ (7 ** (9 ** 9)) % 2 }}"], ids=["loops", "power"])
def test_s107_a_template_without_end_is_ended(template: str) -> None:
    """In Python and inside C alike; the next one is rendered by a new process."""
    renderer = TemplateRenderer(TemplateLimits(seconds=0.3))
    assert render_chat("{{ 1 }}", HELLO, renderer=renderer) == "1"
    first = renderer.pid
    assert first is not None
    assert "takes longer than 0.3 s" in refused(renderer, template)
    assert renderer.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert render_chat("{{ 2 }}", HELLO, renderer=renderer) == "2"
    assert renderer.pid not in (None, first)
    renderer.close()


def test_s107_a_billion_turns(renderer: TemplateRenderer) -> None:
    assert "Range too big" in refused(renderer, "{% for i in range(1000000000) %}{% endfor %}")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(99999) %}xxxxxxxx{% endfor %}", "writes more than 100000 characters"),
        ("{{ 'x' * 200000 }}", "writes more than 100000 characters"),
        ("{{ 'x' * 3000000000 }}", "more than 200 MiB"),
        (
            "{% set ns = namespace(s='x' * 1000) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "MiB",
        ),
        ("x" * 50_001, "50001 characters, more than 50000"),
        ("{{ " + "(" * 8000 + ")" * 8000 + " }}", "nested too deeply"),
    ],
    ids=["pieces", "one", "memory", "doubling", "source", "deep"],
)
def test_s107_size(renderer: TemplateRenderer, template: str, problem: str) -> None:
    assert problem in refused(renderer, template)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% if %}", "(line 1)"),
        ("\n\n{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ raise_exception('Only user and assistant roles') }}", "it says: Only user and assistant roles."),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ '\\ud800' }}", "not Unicode text"),
        ("{% break %}", "'break' outside loop"),
    ],
)
def test_mistakes_are_told(renderer: TemplateRenderer, template: str, problem: str) -> None:
    assert problem in refused(renderer, template)
    assert render_chat("{{ 1 }}", HELLO, renderer=renderer) == "1"


def test_one_template_leaves_nothing_for_the_next(renderer: TemplateRenderer) -> None:
    render_chat("{% set secret = 'x' %}{% macro m() %}y{% endmacro %}", HELLO, renderer=renderer)
    assert render_chat("{{ secret is defined }} {{ m is defined }}", HELLO, renderer=renderer) == "False False"


def test_the_process_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    renderer = TemplateRenderer()
    render_chat("", HELLO, renderer=renderer)
    with open(f"/proc/{renderer.pid}/environ", "rb") as file:
        assert b"sk-secret" not in file.read()
    renderer.close()
    assert renderer.pid is None
    renderer.close()


def test_threads_share_a_renderer(renderer: TemplateRenderer) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        for _ in range(20):
            found[number] = render_chat("{{ n }}", [], extra={"n": number}, renderer=renderer)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(4)}


def test_variables_must_be_data(renderer: TemplateRenderer) -> None:
    with pytest.raises(ConfigError, match="JSON data"):
        render_chat("", [{"role": object()}], renderer=renderer)


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates.importlib.util, "find_spec", {}.get)
    with pytest.raises(ConfigError, match=r"pip install 'windlass\[local\]'"):
        render_chat("", HELLO, renderer=TemplateRenderer())


def test_a_process_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "jinja2.py").write_text("raise ImportError('broken build')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LocalModelError, match=r"ended with status 1.*broken build"):
        render_chat("", HELLO, renderer=TemplateRenderer())
