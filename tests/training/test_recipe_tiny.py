"""The embedded model's recipe: its phrases and splits, its rows, its tokenizer, its rendering, its cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from windlass.core.errors import ConfigError
from windlass.core.events import TrainStep
from windlass.local.embedded import load_profile
from windlass.local.engine import EngineOptions, Native
from windlass.local.gguf import read_header
from windlass.local.llama import Llama, LlamaConfig
from windlass.training.config import TrainConfig
from windlass.training.data import collate
from windlass.training.export import export_gguf
from windlass.training.recipes import RECIPES, with_defaults
from windlass.training.recipes.tiny import card, evaluate, grammar
from windlass.training.recipes.tiny.chat import END, HONEST, SYSTEM, block, call, parameters, response
from windlass.training.recipes.tiny.finish import finish
from windlass.training.recipes.tiny.grammar import PARAMETERS, Split, Step
from windlass.training.recipes.tiny.recipe import STAGES, make
from windlass.training.recipes.tiny.results import ERROR, Folder, answer, told
from windlass.training.recipes.tiny.rows import Mix, Rows, offered, talk
from windlass.training.recipes.tiny.vocabulary import Encoder, make_tokenizer, twins
from windlass.training.recipes.tiny.wild import WILD
from windlass.training.tokenizer import Tokenizer
from windlass.training.trainer import Trainer

TOOLS = tuple(PARAMETERS)
SMALL: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(tasks=400, pieces=200)


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> Rows:
    return Rows(tokenizer, 200, ((50, STAGES[0][1]), (0, Mix())), seq_len=320)


def tasks(split: Split, count: int, seed: int = 0) -> list[grammar.Task]:
    rng = Random(seed)
    return [grammar.asked(rng, TOOLS, split, 1 + number % 3) for number in range(count)]


# -- phrases and splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_no_phrase_is_in_both_splits_but_its_words_are(tool: str) -> None:
    both: list[set[str]] = []
    known: list[set[str]] = []
    for held in (False, True):
        groups = [
            *grammar.skeletons(tool, held),
            *(grammar.skeletons(tool, held, True) if tool in grammar.AFTER else ()),
        ]
        found = [text for group, _ in groups for text in group]
        both.append({re.sub(r"[^a-z{}]", "", text.lower()) for text in found})
        known.append({word for text in found for word in re.findall(r"[a-z']+", text.lower())})
    strange = known[1] - known[0]
    assert len(strange) <= 0.02 * len(known[1]), strange
    trained, unseen = both
    assert not trained & unseen
    assert len(trained) > 200
    assert 0.05 < len(unseen) / (len(trained) + len(unseen)) < 0.25


def test_no_argument_is_in_both_splits() -> None:
    def values(split: Split) -> set[str]:
        made = tasks(split, 4000)
        return {value for task in made for step in task.steps for value in step.arguments.values()} - {"."}

    trained, held = values(Split(False, False)), values(Split(False, True))
    assert len(trained) > 5000
    assert len(held) > 4000
    assert trained & held == set()


def test_every_argument_stands_in_the_prompt_or_is_a_dot() -> None:
    for task in tasks(Split(), 1500) + tasks(Split(True, True), 500):
        for step in task.steps:
            assert list(step.arguments) == list(PARAMETERS[step.tool])
            for value in step.arguments.values():
                assert value == "." or value in task.prompt, task
        assert not task.marker or task.marker in task.prompt


def test_only_offered_tools_are_asked_for() -> None:
    rng = Random(1)
    for number in range(500):
        names = offered(rng)
        task = grammar.asked(rng, names, Split(), 1 + number % 3)
        assert {step.tool for step in task.steps} <= set(names)


def test_there_are_very_many_ways_to_ask() -> None:
    asked = {task.prompt for task in tasks(Split(), 3000)}
    assert len(asked) > 2990
    assert sum([len(group) for tool in TOOLS for group, _ in grammar.skeletons(tool, False)]) > 15000


def test_requests_written_by_hand_are_well_formed() -> None:
    for prompt, *steps in WILD:
        for name, arguments in steps:
            assert list(arguments) == list(PARAMETERS[name]), prompt
            assert all(value == "." or value in prompt for value in arguments.values()), prompt


# -- results and answers -----------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again_and_edited() -> None:
    folder = Folder(Random(0), False, errors=0.0)
    steps = [
        Step("write_file", {"path": "a.txt", "content": "milk and tea"}),
        Step("edit", {"path": "a.txt", "old_string": "tea", "new_string": "eggs"}),
        Step("read_file", {"path": "a.txt"}),
    ]
    done = [(step, folder.run(step)) for step in steps]
    assert done[2][1] == "milk and eggs"
    closing = told(done, "DONE")
    assert closing.endswith(" a.txt.\nEdited a.txt.\na.txt contains:\nmilk and eggs\nDONE")
    again = Step("edit", {"path": "a.txt", "old_string": "tea", "new_string": "x"})
    assert folder.run(again) == f"{ERROR}old_string not found in a.txt."


def test_after_a_failure_nothing_is_claimed() -> None:
    step = Step("read_file", {"path": "a.txt"})
    assert told([(step, f"{ERROR}File not found: a.txt")], "DONE") == "That failed: File not found: a.txt"


def test_every_answer_has_one_of_the_forms_of_the_card() -> None:
    forms = [re.compile(re.escape(form).replace(r"\{\}", "(?s:.+)")) for form in card.FORMS if form != "{}"]
    rng = Random(2)
    for task in tasks(Split(), 800):
        folder = Folder(rng, False, errors=0.2)
        for step in task.steps:
            said = answer(step, folder.run(step))
            assert step.tool == "echo" or any(form.fullmatch(said) for form in forms), said


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_row_is_always_the_same(tokenizer: Tokenizer, rows: Rows) -> None:
    again = Rows(tokenizer, 200, ((50, STAGES[0][1]), (0, Mix())), seq_len=320)
    for number in (7, 120, 7):
        for one, other in zip(rows.row(number), again.row(number), strict=True):
            assert isinstance(one, np.ndarray)
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(rows.row(8).tokens[:50], rows.row(9).tokens[:50])


def test_a_row_is_one_block_and_conversations_that_do_not_see_each_other(tokenizer: Tokenizer, rows: Rows) -> None:
    held = 0
    for number in range(60, 100):
        row = rows.row(number)
        assert row.weights is not None
        assert row.segments is not None
        assert len(row.tokens) <= 321
        assert row.segments[0] == 0
        assert (np.diff(row.segments) >= 0).all()
        for segment in range(1, row.segments.max() + 1):
            ids = row.tokens[row.segments == segment]
            text = tokenizer.decode(ids.tolist())
            assert text.startswith("<|im_start|>user\n")
            assert text.endswith(f"{END}\n")
            weighed = tokenizer.decode(ids[row.weights[row.segments == segment] > 0].tolist())
            assert weighed.endswith(END)
            assert "<|im_start|>" not in weighed
            held += 1
        assert row.weights[row.segments == 0].sum() == 0
    assert held > 60


def test_rows_make_a_batch_with_a_mask(rows: Rows) -> None:
    batch = collate([rows.row(number) for number in range(60, 64)])
    assert batch.mask is not None
    assert batch.positions is not None
    assert int(batch.positions.max()) < 2048
    assert 0.15 < float(batch.weights.sum()) / batch.tokens < 0.6


def test_some_early_rows_say_random_words_three_times(tokenizer: Tokenizer) -> None:
    row = Rows(tokenizer, 10, ((0, Mix(repeats=1.0)),), seq_len=320).row(3)
    assert row.weights is not None
    assert row.segments is not None
    plain = {spaced: plain for plain, spaced in twins(tokenizer)}
    for segment in range(1, row.segments.max() + 1):
        own = row.segments == segment
        ids, weights = row.tokens[own].tolist(), row.weights[own]
        third = len(ids) // 3
        assert ids[third : 2 * third] == ids[2 * third :]
        assert [plain[ids[0]], *ids[1:third]] == ids[third : 2 * third]
        assert weights.tolist() == [0.0] * third + [1.0] * 2 * third


def test_the_curriculum_begins_with_copying(rows: Rows) -> None:
    assert rows.ordered
    assert rows.mix(0).copying > 0.5
    assert rows.mix(50) == rows.mix(199) == Mix()


def test_the_rows_are_made_fast_enough(rows: Rows) -> None:
    """No clock: what is looked up instead of computed is counted."""
    encode = Encoder(rows._tokenizer)  # pyright: ignore[reportPrivateUsage]
    texts = [text for number in range(300) for text, _ in talk(Random(number), TOOLS, Mix(), Split()).pieces]
    for text in texts:
        encode(text)
    assert encode.looked_up > 5 * encode.computed


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def test_the_fast_way_to_tokens_is_the_tokenizers(tokenizer: Tokenizer) -> None:
    encode = Encoder(tokenizer)
    rng = Random(3)
    for number in range(150):
        text = "".join([piece for piece, _ in talk(rng, TOOLS, Mix(), Split(number % 2 == 0, True)).pieces])
        assert encode(text) == tokenizer.encode(text), text
        assert tokenizer.decode(encode(text)) == text
    for text in (
        "  a  b\n\n c",
        "don't 'tis 'street",
        "é 日本 🎉 “x” ½",
        "a\tb\r\n",
        "<|im_end|>x</tool_call>",
        "x_y-1.2",
    ):
        assert encode(text) == tokenizer.encode(text), text


def test_a_word_has_the_same_pieces_after_a_space_and_a_quote(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.tokens()
    pairs = dict(twins(tokenizer))
    for word in ("hello", "zorblatt", "notes", "README", "x", "Qux9"):
        plain, spaced = tokenizer.encode(word), tokenizer.encode(f" {word}")
        assert spaced[1:] == plain[1:], word
        assert pairs[plain[0]] == spaced[0]
        assert tokens[spaced[0]] == "Ġ" + tokens[plain[0]]


def test_what_never_varies_is_one_token(tokenizer: Tokenizer) -> None:
    tools = [(name, "") for name in TOOLS]
    assert len(tokenizer.encode(block(SYSTEM, tools))) < 40
    assert len(tokenizer.encode(call("utc", {}))) == 3
    assert len(tokenizer.encode(call("write_file", {"path": "a", "content": "b"}))) == 7
    assert len(tokenizer.encode(HONEST)) == 1


# -- the engine's rendering and tokens ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Native:
    path = tmp_path_factory.mktemp("tiny") / "small.gguf"
    export_gguf(
        Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, context=512, **SMALL)), tokenizer, path, dtype="q8_0"
    )
    return Native(str(path), EngineOptions(context=512, threads=1, gpu_layers=0, memory_map=False))


def asked_of(native: Native, target: str, body: dict[str, Any]) -> Any:
    door = native._door  # pyright: ignore[reportPrivateUsage]
    assert door is not None
    return msgspec.json.decode(door.ask(target, body))


def test_the_engine_renders_what_the_rows_hold_and_cuts_it_the_same_way(native: Native, tokenizer: Tokenizer) -> None:
    rng = Random(5)
    for number in range(25):
        names = offered(rng)
        system = SYSTEM if number % 3 else 'Be brief, "please" é.'
        made = talk(rng, names, Mix(follow=0.3), Split())
        rendered = block(system, [(name, 'A "tool".' if number % 5 == 0 else "") for name in names])
        rendered += "".join([text for text, _ in made.pieces])
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if number % 3 == 0 else []
        # After the assistant's own text the engine would go on with it.
        messages += [*_messages(made.pieces), {"role": "user", "content": "x"}]
        rendered += f"<|im_start|>user\nx{END}\n"
        functions = [
            {
                "name": name,
                "description": 'A "tool".' if number % 5 == 0 else "",
                "parameters": parameters(PARAMETERS[name]),
            }
            for name in names
        ]
        body = {"messages": messages, "tools": [{"type": "function", "function": each} for each in functions]}
        theirs = asked_of(native, "/apply-template", {**body, "add_generation_prompt": False})["prompt"]
        assert theirs == rendered
        tokens = asked_of(native, "/tokenize", {"content": rendered, "parse_special": True})["tokens"]
        assert tokens == tokenizer.encode(rendered) == Encoder(tokenizer)(rendered)


def _messages(pieces: tuple[tuple[str, bool], ...]) -> list[dict[str, Any]]:
    """Read a rendered conversation back into messages."""
    messages: list[dict[str, Any]] = []
    for role, text in re.findall(
        r"<\|im_start\|>(user|assistant)\n(.*?)<\|im_end\|>", "".join([p for p, _ in pieces]), re.DOTALL
    ):
        if text.startswith("<tool_call>"):
            inner = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            function = {"name": inner["name"], "arguments": json.dumps(inner["arguments"])}
            messages.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": function}],
                }
            )
        elif text.startswith("<tool_response>"):
            result = text.removeprefix("<tool_response>\n").removesuffix("\n</tool_response>")
            messages.append({"role": "tool", "tool_call_id": "1", "content": result})
        else:
            messages.append({"role": role, "content": text})
    return messages


# -- the recipe, the evaluation and the cards --------------------------------------------------------------------------


def test_the_recipe_gives_a_model_rows_and_a_tokenizer() -> None:
    assert RECIPES["tiny"] == make.__module__
    model, source, held, tokenizer = make(TrainConfig(epochs=1, sample_count=1000, seq_len=448))
    assert len(source) == 1000
    assert len(held) == 64
    assert source.vocab_size == held.vocab_size == tokenizer.vocab_size == model.config.vocab_size
    assert 4_000_000 < model.config.parameters < 7_000_000
    plain, spaced = zip(*twins(tokenizer), strict=True)
    table = model.token_embd.weight.detach()
    shift = table[list(spaced)] - table[list(plain)]
    assert float(shift.std(0).max()) < 1e-6
    assert source.mix(0) == STAGES[0][1]
    with pytest.raises(ConfigError, match="read once"):
        make(TrainConfig(epochs=2))


def test_options_of_a_run_come_from_the_recipe_where_nothing_was_said() -> None:
    options = TrainConfig(**with_defaults({"recipe": "tiny", "sample_count": 800, "lr": 0.001}))
    assert (options.epochs, options.decay_steps, options.lr, options.optimizer) == (1, 100, 0.001, "muon")
    assert options.checkpoint_interval == 0
    kept = TrainConfig(**with_defaults({"recipe": "tiny", "checkpoint_path": "x"}))
    assert (kept.checkpoint_interval, kept.decay_steps) == (250, 12500)
    assert with_defaults({"lr": 1.0}) == {"lr": 1.0}


def test_a_run_is_stopped_wound_down_and_written(tmp_path: Path) -> None:
    folder, file = tmp_path / "checkpoints", tmp_path / "tiny-9.gguf"
    said = {"recipe": "tiny", "sample_count": 40, "seq_len": 128, "batch_size": 2, "max_steps": 3, "shape": SMALL}
    first = Trainer(TrainConfig(**with_defaults({**said, "checkpoint_path": str(folder), "precision": "fp32"})))
    rates = [event.metrics["lr"] for event in first.run() if isinstance(event, TrainStep)]
    assert len(rates) == 3
    ended = finish(folder, file, 2)
    assert ended.step == 5
    assert read_header(file).text("general.name") == "tiny-9"
    assert finish(folder, file, 0).step == 5


async def test_an_untrained_model_is_measured_and_gets_its_cards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tiny-9.gguf"
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, context=512, **SMALL))
    export_gguf(model, tokenizer, path, dtype="q8_0", name="tiny-9")
    only = (evaluate.ONE_SEEN, evaluate.ONE_UNSEEN)
    measured = await evaluate.measure(path, 2, 7, only=only)
    assert tuple(measured["sets"]) == only
    assert [row["n"] for row in measured["sets"].values()] == [2, 2]
    # It knows nothing, yet the grammar lets it call no tool that is not there and invent no argument.
    assert measured["sets"][evaluate.ONE_SEEN]["calls_exact"] <= 2
    programs, people = card.write(path, measured, {"tokens": "0"})
    profile = load_profile(path)
    assert profile is not None
    assert profile.name == "tiny-9"
    assert profile.copy_arguments
    assert not profile.descriptions
    assert profile.answer_forms == card.FORMS
    assert programs.suffix == ".json"
    text = people.read_text()
    assert "| one call, unseen phrasings | 2 |" in text
    assert "- tokens: 0" in text
    assert "Known limits" in text


def test_the_held_out_sets_are_always_the_same_and_of_the_right_kind() -> None:
    made, again = evaluate.sets(20, 7), evaluate.sets(20, 7)
    assert made == again
    assert evaluate.sets(20, 8) != made
    assert len(made.pop(evaluate.BY_HAND)) == len(WILD)
    for name, cases in made.items():
        wanted = {evaluate.ONE_SEEN: 1, evaluate.ONE_UNSEEN: 1, evaluate.TWO_SEEN: 2, evaluate.TWO_UNSEEN: 2}.get(name)
        for names, task, _ in cases:
            assert {step.tool for step in task.steps} <= set(names)
            if wanted is not None:
                assert len(task.steps) == wanted
    assert all(not task.steps for _, task, _ in made[evaluate.OUTSIDE])


def test_a_call_and_a_result_look_as_models_are_trained_on() -> None:
    assert call("write_file", {"path": "a", "content": 'é "x"\n'}) == (
        '<tool_call>\n{"name": "write_file", "arguments": {"path": "a", "content": "é \\"x\\"\\n"}}\n</tool_call>'
    )
    assert response("a") == "\n<tool_response>\na\n</tool_response><|im_end|>\n"
