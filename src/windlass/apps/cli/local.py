"""`windlass local` (and `llm`, reference E's name): models that run on this machine, from their files."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windlass import local
from windlass.apps.cli import chat
from windlass.apps.cli.common import OK, Parser, plain, read_text, say
from windlass.core import json
from windlass.core.config_files import data_home
from windlass.core.errors import ConfigError, LocalModelError
from windlass.core.text import strip_escapes
from windlass.local.sse import sse

__all__ = ["main", "parser"]

_SAMPLING = (
    ("--max-tokens", int, "max_tokens", "tokens of the answer at most (256)"),
    ("--temperature", float, "temperature", "0 is greedy (0.7)"),
    ("--top-p", float, "top_p", "nucleus (0.9)"),
    ("--top-k", int, "top_k", "0 is off (40)"),
    ("--min-p", float, "min_p", "0 is off"),
    ("--repetition-penalty", float, "repetition_penalty", "1 is none (1.1)"),
    ("--seed", int, "seed", "the same answer each time"),
)


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    run: Callable[[argparse.Namespace], int] = _VERBS[options.verb]
    return run(options)


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Use models on this machine: GGUF files and the built-in one.", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")

    def verb(name: str, text: str, arguments: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", arguments=arguments)
        if name != "list":
            made.add_argument("model", metavar="MODEL", type=plain, help="a .gguf file, or `tiny`, the built-in one")
        return made

    made = verb("info", "what a model file holds, and the memory it will need; nothing is loaded", "MODEL")
    made.add_argument("--tensors", action="store_true", help="list the tensors")
    made.add_argument("--json", action="store_true", help="one JSON object")
    made.add_argument("--context", type=int, default=2048, metavar="N", help="tokens of context to plan for (2048)")
    made.add_argument("--slots", type=int, default=1, metavar="N", help="answers at a time to plan for (1)")

    made = verb("list", "the model files in a folder", "[FOLDER]")
    made.add_argument("folder", nargs="?", metavar="FOLDER", help="default: `models` in the data folder")
    made.add_argument("--json", action="store_true", help="one JSON object a line")

    made = verb("generate", "go on with a text", "MODEL [PROMPT]")
    made.add_argument("prompt", nargs="*", metavar="PROMPT", help="default: standard input")
    _sampling(made)
    made.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    made.add_argument("--grammar", metavar="FILE", help="a GBNF grammar that holds the answer")
    made.add_argument("--schema", metavar="FILE", help="a JSON Schema that holds the answer")
    made.add_argument("--sse", action="store_true", help="write reference E's server-sent events")
    made.add_argument("--stats", action="store_true", help="say on stderr how fast it was")
    _loading(made)

    made = verb("chat", "talk to a model, line by line; --message says one thing and ends", "MODEL")
    made.add_argument("-m", "--message", metavar="TEXT", help="say this and end")

    made = verb("bench", "how many tokens a second it reads and writes", "MODEL")
    made.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="tokens to read (512)")
    made.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens to write (128)")
    made.add_argument("--repeat", type=int, default=3, metavar="N", help="times, of which the median is told (3)")
    made.add_argument("--json", action="store_true", help="one JSON object")
    _loading(made)

    made = verb("quantize", "write a model with smaller numbers", "MODEL OUTPUT TYPE")
    made.add_argument("output", metavar="OUTPUT", help="the file to write")
    made.add_argument("type", metavar="TYPE", help="f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, q4_k, ...")
    made.add_argument("--output-type", metavar="TYPE", help="of the embedding and the output matrix")
    made.add_argument("--again", action="store_true", help="also when the model has small numbers already")
    made.add_argument("--force", action="store_true", help="overwrite what is there")

    made = verb("embed", "the vectors of texts, one JSON array a line", "MODEL TEXT ...")
    made.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    made.add_argument("--pooling", default="", choices=("", "mean", "cls", "last"), metavar="HOW",
                      help="mean, cls or last; default: the model's own")  # fmt: skip
    made.add_argument("--similarity", action="store_true", help="print the cosine of each text with the first instead")

    made = verb("tokenize", "the tokens of a text", "MODEL [TEXT]")
    made.add_argument("text", nargs="*", metavar="TEXT", help="default: standard input")
    made.add_argument("--special", action="store_true", help="read control tokens as such")
    made.add_argument("--ids", action="store_true", help="the numbers alone, in one line")
    return parser


def _sampling(parser: argparse.ArgumentParser) -> None:
    for flag, kind, name, text in _SAMPLING:
        parser.add_argument(flag, type=kind, dest=name, metavar=name.rsplit("_", 1)[-1].upper(), help=text)


def _loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", type=int, dest="context_length", metavar="N", help="tokens of context (2048)")
    parser.add_argument("--threads", type=int, metavar="N", help="of computation; default: the processors there are")
    parser.add_argument("--gpu-layers", type=int, metavar="N", help="layers on a GPU; default: as many as fit")
    parser.add_argument("--lora", action="append", default=[], metavar="FILE", help="a LoRA adapter; repeatable")
    parser.add_argument("--backend", default="auto", choices=("auto", "native", "server", "torch"), metavar="NAME",
                        help="native, server (a llama-server is started) or torch")  # fmt: skip
    parser.add_argument("--ignore-memory", action="store_true", help="load what needs more memory than is free")


def _load(options: argparse.Namespace, **more: Any) -> local.Model:
    given = {name: getattr(options, name, None) for name in ("context_length", "threads", "gpu_layers")}
    known = {name: value for name, value in given.items() if value is not None}
    return local.Model.load(
        options.model,
        backend=getattr(options, "backend", "auto"),
        adapters=tuple(getattr(options, "lora", ())),
        ignore_memory=getattr(options, "ignore_memory", False),
        **{**known, **more},
    )


def _path(model: str) -> Path:
    shipped = local.embedded_model()
    return shipped.path if model in ("tiny", "default", shipped.profile.name) else Path(model).expanduser()


def _out(text: str) -> None:
    sys.stdout.write(strip_escapes(text) + "\n")


def _prompt(words: list[str]) -> str:
    text = " ".join(words) if words else sys.stdin.read()
    if not text:
        raise ConfigError("There is no text.", hint="Give one as an argument or on standard input.")
    return text


# -- the verbs -----------------------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    path = _path(options.model)
    if not path.is_file():
        raise LocalModelError(f"There is no model {str(path)!r}.", path=str(path))
    info = local.read_header(path)
    config = local.InferenceConfig(context_length=options.context, slots=options.slots)
    planned = local.plan_memory(info, config.engine_options(), use_gpu=True)
    kinds: dict[str, int] = {}
    for tensor in info.tensors:
        kinds[tensor.type] = kinds.get(tensor.type, 0) + 1
    row: dict[str, Any] = {
        "path": str(path), "name": info.text("general.name"), "architecture": info.architecture, "size": info.size,
        "parameters": info.parameters, "context": info.context_length, "tensors": kinds,
        "chat_template": bool(info.chat_template), "memory": planned.needed, "memory_free": planned.free,
    }  # fmt: skip
    if options.json:
        listed = [{"name": t.name, "type": t.type, "shape": t.dims, "bytes": t.nbytes} for t in info.tensors]
        _out(json.dumps({**row, **({"tensor_list": listed} if options.tensors else {})}).decode())
        return OK
    for name in ("path", "name", "architecture", "parameters", "size", "context"):
        _out(f"{name:<14} {row[name]}")
    _out(f"{'tensors':<14} {', '.join([f'{count} {kind}' for kind, count in kinds.items()])}")
    _out(f"{'chat template':<14} {'yes' if info.chat_template else 'no'}")
    _out(f"{'memory':<14} {planned.message}")
    if options.tensors:
        for tensor in info.tensors:
            _out(f"{tensor.name:<40} {tensor.type:<6} {'x'.join(map(str, tensor.dims)):<16} {tensor.nbytes}")
    return OK


def _list(options: argparse.Namespace) -> int:
    folder = Path(options.folder).expanduser() if options.folder else data_home() / "models"
    shipped = local.embedded_model()
    paths = [shipped.path, *sorted(folder.rglob("*.gguf"))] if folder.is_dir() else [shipped.path]
    if options.folder and not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}.")
    for path in paths:
        name = "tiny" if path == shipped.path else str(path)
        try:
            info = local.read_header(path)
            row = {"model": name, "architecture": info.architecture, "parameters": info.parameters, "size": info.size}
        except LocalModelError as error:
            row = {"model": name, "error": str(error)}
        if options.json:
            _out(json.dumps(row).decode())
        elif "error" in row:
            _out(f"{name}  {row['error']}")
        else:
            _out(f"{name}  {row['architecture']}, {row['parameters']} parameters, {row['size']} bytes")
    return OK


def _generate(options: argparse.Namespace) -> int:
    prompt = _prompt(options.prompt)
    answer: dict[str, Any] = {name: getattr(options, name) for _, _, name, _ in _SAMPLING}
    answer = {name: value for name, value in answer.items() if value is not None}
    if options.grammar:
        answer["grammar"] = read_text(options.grammar, "the grammar")
    if options.schema:
        answer["json_schema"] = _schema(options.schema)
    with _load(options) as model, model.respond(prompt, stop=tuple(options.stop), **answer) as response:
        if options.sse:
            for line in sse(response):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        else:
            for event in response:
                if event.text:
                    sys.stdout.write(strip_escapes(event.text))
                    sys.stdout.flush()
            sys.stdout.write("\n")
        stats = response.stats
    if options.stats:
        say(
            f"{stats.prompt_tokens} tokens read, {stats.tokens_generated} written, "
            f"{stats.tokens_per_second:.1f} tokens/s, first after {stats.time_to_first_token_ms:.1f} ms"
        )
    return OK


def _schema(path: str) -> dict[str, Any]:
    try:
        schema = json.loads(read_text(path, "the schema").encode())
    except json.JsonError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"{path} holds no JSON Schema: an object is expected.")
    return schema


def _chat(options: argparse.Namespace) -> int:
    # A model file is a model like any other: the agent talks to it.
    model = options.model if options.model in ("tiny", "default") else str(Path(options.model).expanduser())
    args = ["-m", f"local:{model}", "--tools", "none"]
    if options.message is not None:
        args += ["--message", options.message]
    return chat.main("agent", args)


def _bench(options: argparse.Namespace) -> int:
    for name in ("prompt_tokens", "tokens", "repeat"):
        if getattr(options, name) < 1:
            raise ConfigError(f"{name} is {getattr(options, name)}; it must be at least 1.")
    context = options.prompt_tokens + options.tokens + 8
    options.context_length = max(options.context_length or 0, context)
    read: list[float] = []
    wrote: list[float] = []
    with _load(options) as model:
        size = model.info.vocabulary
        for turn in range(options.repeat + 1):
            # Other tokens each time: what was read before would not be read again.
            prompt = [(7919 * (turn + 1) + 31 * at) % max(size - 1, 1) for at in range(options.prompt_tokens)]
            with model.respond(prompt, max_tokens=options.tokens, temperature=0.0, ignore_end=True) as response:
                for _ in response:
                    pass
                stats = response.stats
            if turn:  # the first one fills caches
                read.append(stats.prompt_tokens * 1e9 / max(stats.prefill_time_ns, 1))
                wrote.append(stats.tokens_per_second)
        row = {
            "model": model.info.name, "device": model.info.device, "parameters": model.info.parameters,
            "quantization": model.info.quantization, "prompt_tokens": options.prompt_tokens,
            "prefill_tokens_per_second": round(statistics.median(read), 1),
            "decode_tokens_per_second": round(statistics.median(wrote), 1),
        }  # fmt: skip
    if options.json:
        _out(json.dumps(row).decode())
    else:
        for name, value in row.items():
            _out(f"{name.replace('_', ' '):<26} {value}")
    return OK


def _quantize(options: argparse.Namespace) -> int:
    target = Path(options.output)
    if target.exists() and not options.force:
        raise ConfigError(f"{target} is there already; nothing was written.", hint="--force overwrites it.")
    done = local.quantize_model(
        _path(options.model), target, options.type, again=options.again, output_kind=options.output_type
    )
    kinds = ", ".join([f"{count} {kind}" for kind, count in done.types.items()])
    _out(f"{target}: {done.before} bytes became {done.after} ({kinds})")
    for name, kind in done.instead.items():
        say(f"{name} is {kind}: its rows cannot be cut into blocks of {options.type}")
    return OK


def _embed(options: argparse.Namespace) -> int:
    texts = options.texts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise ConfigError("There is no text.", hint="Give texts as arguments, or lines on standard input.")
    with local.Encoder(_path(options.model), **({"pooling": options.pooling} if options.pooling else {})) as encoder:
        vectors = encoder.embed_batch(texts)
        for text, vector in zip(texts, vectors, strict=True):
            if options.similarity:
                _out(f"{encoder.cosine_similarity(vectors[0], vector):.4f} {text}")
            else:
                _out(json.dumps(vector).decode())
    return OK


def _tokenize(options: argparse.Namespace) -> int:
    with _load(options) as model:
        tokens = model.tokenize(_prompt(options.text), special=options.special)
        if options.ids:
            _out(" ".join(map(str, tokens)))
        else:
            for token in tokens:
                _out(f"{token:>8} {model.detokenize([token])!r}")
            say(f"{len(tokens)} tokens")
    return OK


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "info": _info,
    "list": _list,
    "generate": _generate,
    "chat": _chat,
    "bench": _bench,
    "quantize": _quantize,
    "embed": _embed,
    "tokenize": _tokenize,
}
