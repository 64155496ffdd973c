"""Measure what the attention kernels cost in geometry: the trained network with each kernel's twin. Writes JSON.

    python benchmarks/studies/attention_accuracy.py --json benchmarks/results/attention-accuracy.json

The twins compute what the kernels compute, with the same rounding, in the global attention layers of the PyTorch
reference; everything else stays float32. At 140x112, the size that the network was trained at, sequences are short (81
tokens a view), so there are few blocks to choose from; at twice the sides there are four times as many. The share that
is kept says how many were dropped at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from mapengine.calibration.evaluation import HELD_OUT_SEED, evaluate
from mapengine.calibration.evaluation.evaluate import rendered_scenes
from mapengine.export import load_model
from mapengine.export.model.reference import MapAnything
from mapengine.kernels import Selection, split_qkv
from mapengine.kernels.dense import dense_attention_reference
from mapengine.kernels.int8 import int8_attention_reference
from mapengine.kernels.selection import select_reference
from mapengine.kernels.sparse import sparse_attention_reference
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

MODEL = "preset:nano"
VIEWS = (2, 4, 8)
THRESHOLDS = (0.5, 0.7, 0.9)
METRICS = ("depth_abs_rel", "rotation_degrees", "metric_scale_abs_rel", "points_abs_rel")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def variants(view_tokens: int, kept: list[float]) -> dict[str, Attend]:
    """Return attention over (B, L, H, D) by name; the shares that sparse ones keep are appended to ``kept``."""

    def sparse(threshold: float, **options: bool) -> Attend:
        choice = Selection(threshold, view_tokens=view_tokens, extra_tokens=1)

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            kept.append(float(select_reference(query, key, choice).float().mean()))
            return sparse_attention_reference(query, key, value, choice, **options)

        return run

    return {
        "dense, FP16": dense_attention_reference,
        "int8": int8_attention_reference,
        "int8, FP8 values": lambda q, k, v: int8_attention_reference(q, k, v, fp8_values=True),
        **{f"sparse {t}": sparse(t) for t in THRESHOLDS},
        "sparse 0.9, int8": sparse(0.9, int8=True),
        "sparse 0.9, int8, FP8 values": sparse(0.9, int8=True, fp8_values=True),
    }


def with_attention(network: MapAnything, attend: Attend) -> Callable[[], None]:
    """Make the global layers use ``attend``; returns what undoes it."""
    layers = [block.attn for block in network.info_sharing.self_attention_blocks[::2]]
    heads = network.config.aggregator.block.num_heads

    def forward(layer: Any) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            out = attend(*split_qkv(layer.qkv(x).half(), heads))
            return layer.proj(out.float().reshape(x.shape))

        return run

    for layer in layers:
        layer.forward = forward(layer)

    def undo() -> None:
        for layer in layers:
            del layer.forward

    return undo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument(
        "--json", type=Path, default=Path("build/attention_accuracy.json"), help="where to write the record"
    )
    args = parser.parse_args()
    network = load_model(MODEL)
    view_tokens = (args.size[0] // 14) * (args.size[1] // 14) + 1
    scenes = list(rendered_scenes(args.scenes, HELD_OUT_SEED, args.size, max(VIEWS)))
    kept: list[float] = []
    results: dict[str, dict[str, dict[str, Any]]] = {str(views): {} for views in VIEWS}
    record = {
        "benchmark": "attention_accuracy",
        "what": f"`{MODEL}` on {args.scenes} held-out scenes from images alone, global attention by the kernels' twins",
        "size": "{}x{}".format(*args.size),
        **record_origin("mapengine", "torch", "numpy"),
        "results": results,
    }

    def measure(name: str) -> None:
        for views in VIEWS:
            kept.clear()
            task = f"image-only-{views}"
            found = evaluate(network, scenes, tasks=[task], size=args.size).tasks[0].metrics
            share = sum(kept) / len(kept) if kept else 1.0
            results[str(views)][name] = {"kept": share, **{metric: found[metric] for metric in METRICS}}
            print(name, views, results[str(views)][name], flush=True)

    measure("dense, FP32")
    for name, attend in variants(view_tokens, kept).items():
        undo = with_attention(network, attend)
        measure(name)
        undo()
    write_record(args.json, record)


if __name__ == "__main__":
    main()
