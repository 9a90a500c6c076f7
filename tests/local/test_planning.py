"""What a model needs is planned before it is loaded, and the plan is near what it then takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import xllamacpp
from msgspec.structs import replace

from windlass.local.embedded import embedded_model
from windlass.local.failures import OutOfMemory
from windlass.local.gguf import read_header
from windlass.local.options import EngineOptions
from windlass.local.planning import free_memory, gpu_devices, plan_memory

PATH = embedded_model().path
INFO = read_header(PATH)
GB = 1 << 30


def gpu(free: int, name: str = "CUDA0") -> dict[str, Any]:
    return {"name": name, "description": "Some GPU", "memory_free": free, "memory_total": 80 * GB, "type": "GPU"}


def test_the_cache_is_exact() -> None:
    plan = plan_memory(INFO, EngineOptions(context=1000, slots=3), devices=[], free=GB)
    # 6 layers, 2 heads of 64, keys and values, 2 bytes each.
    assert plan.cache == 3 * 1000 * 6 * 2 * 64 * 2 * 2
    assert plan.weights == sum(tensor.nbytes for tensor in INFO.tensors)
    assert (plan.device, plan.gpu_layers) == ("cpu", 0)
    double = plan_memory(INFO, EngineOptions(context=1000, slots=3, cache="f32"), devices=[], free=GB)
    assert double.cache == 2 * plan.cache


def test_the_message_tells_all_of_it() -> None:
    plan = plan_memory(INFO, EngineOptions(context=4096, slots=8), devices=[], free=2_000_000_000)
    assert plan.message == (
        "tiny-0 needs about 137 MB: weights 4.96 MB, cache for 8 x 4096 tokens 101 MB, buffers 30.9 MB; 2 GB are free."
    )
    plan.check()
    with pytest.raises(OutOfMemory, match="100 MB are free") as error:
        replace(plan, free=100_000_000).check("x.gguf")
    assert (error.value.needed, error.value.free, error.value.path) == (plan.needed, 100_000_000, "x.gguf")
    replace(plan, free=None).check()  # a system that does not say is believed to have enough


def test_layers_go_to_a_gpu_as_far_as_it_is_free() -> None:
    options = EngineOptions(context=4096)
    whole = plan_memory(INFO, options, devices=[gpu(8 * GB)], free=GB)
    assert (whole.gpu_layers, whole.layers, whole.device) == (7, 7, "Some GPU")
    assert "7 of 7 layers go to Some GPU" in whole.message
    none = plan_memory(INFO, options, devices=[gpu(64 << 20)], free=GB)
    assert (none.gpu_layers, none.device) == (0, "cpu")
    free = 512 << 20
    some = [
        plan_memory(INFO, options, devices=[gpu(free + (step << 20))], free=GB).gpu_layers for step in range(40, 70)
    ]
    assert some == sorted(some)
    assert set(some) > {0, 7}
    assert plan_memory(INFO, replace(options, gpu_layers=3), devices=[gpu(8 * GB)], free=GB).gpu_layers == 3
    assert plan_memory(INFO, replace(options, gpu_layers=0), devices=[gpu(8 * GB)], free=GB).gpu_layers == 0
    assert plan_memory(INFO, options, devices=[gpu(8 * GB)], free=GB, use_gpu=False).gpu_layers == 0
    # What lies on the GPU need not fit into the computer's own memory.
    replace(whole, free=whole.buffers).check()


@pytest.mark.parametrize("free", [[8 * GB], [567 << 20], [565 << 20, 562 << 20]], ids=["all", "some", "two GPUs"])
def test_layers_are_those_that_the_engine_would_estimate(free: list[int]) -> None:
    devices = [gpu(bytes_, f"CUDA{number}") for number, bytes_ in enumerate(free)]
    told = xllamacpp.estimate_gpu_layers(devices, str(PATH), [], 4096, 512, 1, "f16")
    plan = plan_memory(INFO, EngineOptions(context=4096), devices=devices, free=GB)
    assert plan.gpu_layers == told.layers
    assert 0 < plan.gpu_layers <= 7
    assert abs(plan.gpu - told.vram_size) < 20 << 20


def test_the_system_says_what_is_free() -> None:
    free = free_memory()
    assert free is not None
    assert free > 1 << 20
    assert all("GPU" in str(device["type"]) for device in gpu_devices())


_TAKES = """
import sys, threading
from windlass.local.engine import EngineOptions, Native
import xllamacpp
def taken():
    rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    return int(rows["Rss"].split()[0]) * 1024
before, context, slots = taken(), int(sys.argv[2]), int(sys.argv[3])
native = Native(sys.argv[1], EngineOptions(context=context, slots=slots, threads=1, gpu_layers=0))
body = {"prompt": [5] * 100, "n_predict": 4, "stream": True}
threads = [threading.Thread(target=native.answer, args=("completion", body, lambda c: False)) for _ in range(slots)]
[t.start() for t in threads]; [t.join() for t in threads]
print(taken() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("context", "slots"), [(512, 1), (4096, 4)])
def test_the_plan_is_near_what_it_takes(context: int, slots: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TAKES, str(PATH), str(context), str(slots)], capture_output=True, text=True, check=True
    )
    plan = plan_memory(INFO, EngineOptions(context=context, slots=slots), devices=[], free=GB)
    assert 0.4 * plan.needed < int(done.stdout) < 1.1 * plan.needed, (plan.message, done.stdout)
