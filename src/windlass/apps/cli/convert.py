"""`windlass convert`: datasets of tokens, models and embeddings from one kind of file into another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

from windlass import local, training
from windlass.apps.cli.common import OK, Parser
from windlass.core import clock
from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.text import strip_escapes
from windlass.local.model_files import kind_of

__all__ = ["main", "parser"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    source, target = Path(options.input), Path(options.output)
    if target.exists() and not options.force:
        raise ConfigError(f"{target} is there already; nothing was written.", hint="--force overwrites it.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError("--input and --output are the same file.", hint="Name another output.")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder {target.absolute().parent}.", hint="Make it first.")
    convert = {"dataset": _dataset, "model": _model, "embeddings": _embeddings}[options.verb]
    sys.stdout.write(strip_escapes(f"{target}: {convert(source, target, options)}").replace("\n", " ") + "\n")
    return OK


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Write data or a model in another format.", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")

    def verb(name: str, text: str, formats: tuple[str, ...]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=f"Convert {text}.", arguments="--input --output --format")
        made.add_argument("--input", metavar="PATH", required=True, help="what is read")
        made.add_argument("--output", metavar="PATH", required=True, help="what is written, exactly there")
        made.add_argument("--format", choices=formats, metavar="FORMAT", required=True, help=" or ".join(formats))
        made.add_argument("--force", action="store_true", help="overwrite what is there")
        return made

    made = verb("dataset", "a TokenBin to a WDBX dataset, or back", ("to-wdbx", "to-tokenbin"))
    made.add_argument("--block-size", type=int, default=2048, metavar="N", help="to-wdbx: tokens in a record (2048)")
    made.add_argument("--no-verify", action="store_true", help="to-tokenbin: read on where sums are wrong")
    text = "a model: a folder of Hugging Face's layout, GGUF, or a checkpoint of reference E"
    made = verb("model", text, ("gguf", "safetensors"))
    made.add_argument(
        "--dtype", metavar="TYPE", help="f32, f16, bf16; gguf also q8_0, q4_0, ... (gguf: f16, else bf16)"
    )
    made = verb("embeddings", "vectors; the ending (.json, .bin, .f32, .csv) says what they are",
                ("json", "binary", "csv"))  # fmt: skip
    made.add_argument("--dimension", type=int, default=0, metavar="N", help="numbers in a vector of a binary file")
    return parser


def _dataset(source: Path, target: Path, options: argparse.Namespace) -> str:
    if options.format == "to-wdbx":
        count = training.tokenbin_to_wdbx(source, target, block_size=options.block_size, overwrite=options.force)
        return f"{count} tokens in {-(-count // options.block_size)} records"
    count = training.wdbx_to_tokenbin(source, target, verify=not options.no_verify, overwrite=options.force)
    return f"{count} tokens"


def _embeddings(source: Path, target: Path, options: argparse.Namespace) -> str:
    count, dimension = training.convert_embeddings(
        source, target, format=options.format, dimension=options.dimension, overwrite=options.force
    )
    return f"{count} vectors of {dimension} numbers"


def _model(source: Path, target: Path, options: argparse.Namespace) -> str:
    if _is_abi(source):
        if options.format == "gguf":
            raise ConfigError(
                f"{source} does not say the sizes of its model.",
                hint="windlass.training.abi_to_checkpoint takes them; windlass train export writes GGUF.",
            )
        training.abi_to_safetensors(source, target, overwrite=options.force)
        return "the weights, in one piece"
    kind = kind_of(source)
    if options.format == "gguf":
        dtype = (options.dtype or "f16").upper()
        if kind == "gguf":
            local.quantize_model(source, target, dtype)
        else:
            local.hf_to_gguf(source if kind == "folder" else source.parent, target, kind=dtype)
        return f"GGUF, {dtype}"
    if kind != "gguf":
        raise ConfigError(f"{source} is in safetensors already.", hint="--format gguf writes GGUF.")
    dtype: str = (options.dtype or "bf16").upper()
    if dtype not in ("F32", "F16", "BF16"):
        raise UnknownNameError("tensor type", dtype, ("F32", "F16", "BF16"))
    _folder(source, target, dtype)
    return f"a folder with config.json and model.safetensors, {dtype}"


def _folder(source: Path, target: Path, dtype: Literal["F32", "F16", "BF16"]) -> None:
    """Write a folder, whole where it is new."""
    if target.exists():
        if not target.is_dir():
            raise ConfigError(f"{target} is a file; a folder is to be written there.", hint="Name another output.")
        local.gguf_to_hf(source, target, kind=dtype)
        return
    made = target.with_name(f".{target.name[:80]}.{clock.new_id()}.part")
    try:
        local.gguf_to_hf(source, made, kind=dtype)
        made.rename(target)
    finally:
        if made.is_dir():
            for file in made.iterdir():
                file.unlink()
            made.rmdir()


def _is_abi(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"ABIC", b"ABLC")
