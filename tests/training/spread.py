"""What every process of a spread run does in `test_distributed`: run with torchrun, or alone for comparison.

`python -m tests.training.spread OUT`: each of SCENARIOS trains the small model over `Rows`, with whole and with divided
models, and the first process writes what it saw to OUT/ddp and OUT/fsdp: SCENARIO.json and SCENARIO.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from tests.training.rows import Rows, config, llama, steps
from tests.training.small_llama import tokenizer
from windlass.core.events import CheckpointSaved
from windlass.training.distributed import Several, Sharded, joined
from windlass.training.finetune import adapt
from windlass.training.team import Alone
from windlass.training.trainer import Trainer

torch.set_num_threads(1)

SCENARIOS = ("plain", "accumulated", "muon", "lora", "saved", "resumed", "exported")


def options(scenario: str, size: int, out: Path) -> dict[str, Any]:
    """Return a scenario's options such that all of a team together read 8 rows per pass."""
    scenarios: dict[str, dict[str, Any]] = {
        "plain": {},
        "accumulated": {"grad_accum": 2},
        "muon": {"optimizer": "muon"},
        "lora": {"lora_rank": 2},
        "saved": {"checkpoint_path": str(out / "saved"), "checkpoint_interval": 3, "max_steps": 6},
        "resumed": {},
        "exported": {"max_steps": 2, "export_gguf_path": str(out / "m.gguf"), "lora_rank": 2},
    }
    return {"batch_size": 8 // size, "gradient_clip": 0.1, "eval_interval": 5, **scenarios[scenario]}


def run(scenario: str, team: Alone, out: Path, parallel: str, resume: Path) -> None:
    """Train, and tell from the first process; scenario `resumed` goes on from the checkpoints at `resume`."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = config(parallel=parallel, **options(scenario, team.size, out))
    exported = scenario == "exported"
    model = llama(vocab_size=300) if exported else llama()
    adapt(model, chosen)
    chosen = msgspec.structs.replace(chosen, lora_rank=0)
    # 27 rows: an epoch's last batch has 3 for the whole team.
    trainer = Trainer(
        chosen, model=model, source=Rows(27), eval_source=Rows(7, shift=1), team=team,
        tokenizer=tokenizer() if exported else None,
    )  # fmt: skip
    if scenario == "resumed":
        trainer.resume(resume)
    events = list(trainer.run())
    weights = trainer.updates.weights()
    if team.rank == 0:
        saved = [event.path for event in events if isinstance(event, CheckpointSaved)]
        kept = sum([weight.numel() for weight in trainer.updates.learned()])
        local = sum([getattr(weight, "_local_tensor", weight).numel() for weight in trainer.updates.learned()])
        told = {"steps": steps(events), "saved": saved, "size": team.size, "kept": kept, "local": local}
        (out / f"{scenario}.json").write_bytes(msgspec.json.encode(told))
        save_file(weights, out / f"{scenario}.safetensors")


def main() -> None:
    """Run all scenarios in both ways. A process joins once: Gloo's addresses of a group before would be in the way."""
    out = Path(sys.argv[1])
    with joined(config(parallel="fsdp")) as team:
        assert isinstance(team, Sharded)
        for parallel, way in (("ddp", Several(team.device)), ("fsdp", team)):
            for scenario in SCENARIOS:
                run(scenario, way, out / parallel, parallel, out / "one" / "saved")


if __name__ == "__main__":
    main()
