"""How near a stage comes to what the machine can do: its work over measured ceilings (Williams et al., 2009)."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mapengine.runtime.bundle.requests import PATCH_SIZE

from ..model.config_json import parse_config
from .costs import CallShape, stage_costs

_SIDE = 2048
_COPY_BYTES = 256 * 2**20
_ROUNDS = 5
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


def measure_ceilings() -> dict[str, Any]:
    """Measure what this processor reaches: ``gemm_gflops`` by precision (None where no library here multiplies in it),
    and ``copy_gbytes`` per second, bytes read and written both counted."""
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    flops = 2 * _SIDE**3
    gemm: dict[str, float | None] = dict.fromkeys(_BYTES)
    plain = flops / _best(lambda: left @ right) / 1e9
    gemm["fp32"] = plain
    if importlib.util.find_spec("torch") is not None:
        import torch

        wide = [torch.from_numpy(x) for x in (left, right)]
        gemm["fp32"] = max(plain, flops / _best(lambda: wide[0] @ wide[1]) / 1e9)
        half = [x.bfloat16() for x in wide]
        gemm["bf16"] = flops / _best(lambda: half[0] @ half[1]) / 1e9
        byte = [(20 * x).to(torch.int8) for x in wide]
        gemm["int8"] = flops / _best(lambda: torch._int_mm(*byte)) / 1e9
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.zeros_like(source)
    copy = 2 * _COPY_BYTES / _best(lambda: np.copyto(target, source)) / 1e9
    return {"gemm_gflops": gemm, "copy_gbytes": copy}


def _best(run: Callable[[], object]) -> float:
    """Return the median seconds of several runs after one that is not counted."""
    run()
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def add_rooflines(results: Sequence[dict[str, Any]], ceilings: dict[str, Any]) -> None:
    """Put ``roofline`` into the results of a profile, and take the configurations out that it needs.

    Per stage: operations, least bytes, achieved rate, what limits it, and the share of the limit; ``share`` is None
    where the ceiling of the precision was not measured, as on a GPU. The precision of a bundle is taken for all its
    products, also for those that it keeps in a wider one: the share is then at most as high as shown.
    """
    for result in results:
        config = result.pop("config", None)
        if config is None:
            continue
        width, height = result["size"]
        precision = str(result["precision"])
        size = _BYTES.get(precision, 4)
        request = CallShape(result["views"], height // PATCH_SIZE, width // PATCH_SIZE, 0, result.get("chunk", 1))
        peak = None if "CPU" not in str(result["device"]) else ceilings["gemm_gflops"].get(precision)
        result["roofline"] = {}
        network = parse_config(config).with_key_shares(result.get("key_shares", {}))
        for stage, cost in stage_costs(network, request, size).items():
            seconds = result["phases_s"].get(stage, {}).get("p50", 0.0)
            if not seconds or not cost.flops:
                continue
            compute = None if peak is None else cost.flops / peak / 1e9
            memory = cost.bytes / ceilings["copy_gbytes"] / 1e9
            bound = None if compute is None else max(compute, memory)
            result["roofline"][stage] = {
                "gflop": cost.flops / 1e9,
                "gbyte": cost.bytes / 1e9,
                "gflops": cost.flops / seconds / 1e9,
                "limit": None if compute is None else "products" if compute >= memory else "memory",
                "share": None if bound is None else bound / seconds,
            }
