"""Measure what fewer bits in the dense head's convolutions keep of float32's accuracy, by resolution.

    python benchmarks/studies/dense_head.py --scenes 80 --json benchmarks/results/dense-head-nano.json

Emulated in PyTorch: a convolution rounds its input and its weight and sums in float32. Residuals, upsampling and all
that is not a convolution stay in float32, unless a row says that results are rounded as well. INT8 has one scale per
output channel of a weight, and per input one of its largest value, without the recoveries of a calibration.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mapengine.calibration.evaluation import (
    DEFAULT_SIZE,
    HELD_OUT_SEED,
    METRICS,
    SceneScore,
    aggregate,
    evaluate,
    retention,
    retention_errors,
)
from mapengine.calibration.ranges import FORMATS
from mapengine.export.model.reference import load_model
from mapengine.export.quantization.fake_quantization import fake_quantize
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record

TASKS = ("image-only-2", "image-only-4", "calibrated", "posed", "all")
BARS = (0.99, 0.999)
LAST = "1.conv2.2"
LEVELS = {
    "coarse": ("0.input_process.2", "0.input_process.3", "0.scratch.refinenet3", "0.scratch.refinenet4"),
    "middle": ("0.input_process.1", "0.scratch.refinenet2"),
    "fine": ("0.input_process.0", "0.scratch.refinenet1"),
    "regressor": ("1.",),
}
"""Beginnings of the names of convolutions: up to the patch grid's resolution, twice, four times, and beyond."""
ROWS = {
    "coarse": ("coarse",),
    "coarse, middle": ("coarse", "middle"),
    "coarse, middle, fine": ("coarse", "middle", "fine"),
    "all": tuple(LEVELS),
}
"""Levels that are rounded; the regressor without its last convolution, which gives the outputs."""


def to_bfloat16(values: Tensor, channel: int | None = None) -> Tensor:
    return values.to(torch.bfloat16).float()


def to_int8(values: Tensor, channel: int | None = None) -> Tensor:
    """Round to 8 bits with one scale, or with one per index of the axis ``channel``."""
    axes = [axis for axis in range(values.ndim) if axis != channel]
    scale = values.abs().amax(dim=axes, keepdim=True).clamp(min=1e-30) / FORMATS["int8"].largest
    return fake_quantize(values, scale, FORMATS["int8"])


ROUND: dict[str, Callable[..., Tensor]] = {"bf16": to_bfloat16, "int8": to_int8}


@contextmanager
def rounded(head: nn.Module, levels: tuple[str, ...], precision: str, results: bool) -> Iterator[None]:
    """Round the products of the convolutions of ``levels`` meanwhile, and their results if ``results``."""
    function = ROUND[precision]
    starts = tuple(start for level in levels for start in LEVELS[level])
    hooks, weights = [], {}
    for name, module in head.named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or not name.startswith(starts) or name == LAST:
            continue
        weights[module] = module.weight.data
        module.weight.data = function(module.weight.data, int(isinstance(module, nn.ConvTranspose2d)))
        hooks.append(module.register_forward_pre_hook(lambda _, inputs: (function(inputs[0]),)))
        if results:
            hooks.append(module.register_forward_hook(lambda _, __, result: function(result)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in weights.items():
            module.weight.data = weight


def kept(found: Mapping[str, list[SceneScore]], float32: Mapping[str, list[SceneScore]]) -> dict[str, Any]:
    """Return what a record says of a row: how many figures reach each bar, the least, and the rays' by task."""
    parts = retention(*({task: aggregate(scores) for task, scores in side.items()} for side in (found, float32)))
    errors = retention_errors(found, float32)
    titles = {metric.key: metric.title for metric in METRICS}
    least = min(parts, key=lambda name: parts[name])
    return {
        "figures": len(parts),
        "reached": {str(bar): sum(part >= bar for part in parts.values()) for bar in BARS},
        "below_beyond_chance": {
            str(bar): sum(part + 2 * errors[name] < bar for name, part in parts.items()) for bar in BARS
        },
        "least": {"task": least[0], "metric": titles[least[1]], "part": round(parts[least], 4)},
        "rays": {task: round(part, 4) for (task, key), part in parts.items() if key == "ray_degrees"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:nano")
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--json", type=Path, default=Path("build/dense-head.json"), help="where to write the record")
    args = parser.parse_args()
    model = load_model(args.model)
    float32 = evaluate(model, args.scenes, tasks=args.tasks).scores
    results = []
    for precision, results_too in (("bf16", False), ("bf16", True), ("int8", False)):
        for row, levels in ROWS.items():
            with rounded(model.dense_head, levels, precision, results_too):
                found = evaluate(model, args.scenes, tasks=args.tasks).scores
            entry = {"precision": precision, "levels": row, "results_too": results_too, **kept(found, float32)}
            print(entry, flush=True)
            results.append(entry)
    record = {
        "benchmark": "dense_head",
        "model": args.model,
        "scenes": args.scenes,
        "seed": HELD_OUT_SEED,
        "size": "{}x{}".format(*DEFAULT_SIZE),
        "tasks": list(args.tasks),
        **record_origin("mapengine", "torch", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
