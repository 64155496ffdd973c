"""Evaluate the reconstructions of a model: `mapengine eval`, as a record with the commit.

    python benchmarks/evaluation.py build/engine --json benchmarks/results/eval-nano-fp32.json
    python benchmarks/evaluation.py preset:nano --emulate fp8 --calibration build/fp8.json

``--scores`` keeps what was found scene by scene. With those of the float32 network (``--against``) a record of reduced
precision says how far chance moves what is kept of each figure. ``--emulate`` judges what only GPUs run: the graphs
that a plan is compiled from, rounding where they say. Tasks, metrics and scenes are described in
docs/guide/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.calibration.evaluation import (
    DEFAULT_SCENES,
    DEFAULT_SIZE,
    HELD_OUT_SEED,
    METRICS,
    SceneScore,
    evaluate,
    retention_errors,
)
from mapengine.cli.commands.measurements.eval import load_predictor
from mapengine.runtime.backend_table import PACKAGES
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_npz, write_record


def show_progress(done: int, total: int, task: str) -> None:
    """Print a line at every tenth of the way."""
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"{done / total:.0%}", file=sys.stderr, flush=True)


def emulated(model: str, precision: str, calibration: Path | None, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return an engine that runs the graphs of a plan on the CPU, and what a record says of it."""
    from mapengine.calibration.ranges import load_calibration
    from mapengine.export.bundles.onnx import open_graphs, write_onnx_bundle
    from mapengine.export.bundles.recipe import decide_graphs
    from mapengine.export.model.reference import load_model
    from mapengine.export.options import served_requests
    from mapengine.export.quantization import QuantizedNetwork
    from mapengine.runtime.backends.contract import ChunkSizes
    from mapengine.runtime.bundle.store import Bundle, write_bundle

    network = load_model(model)
    weights, quantized = network.weights_hash(), None
    if calibration is not None:
        ranges = load_calibration(calibration)
        ranges.check_model(weights, network.model_id, precision)
        quantized = QuantizedNetwork.of(network, ranges)
    recipe = decide_graphs(
        network,
        precision=precision,
        attention="mha",
        requests=served_requests((1, 4, 8), "all", ChunkSizes().to_json()),
        weights_sha256=weights,
        quantized=quantized,
    )
    with write_bundle(folder) as writer:
        write_onnx_bundle(recipe, writer, lambda line: print(line, file=sys.stderr))
    engine = open_graphs(Bundle.open(folder, verify=False))
    manifest = engine.manifest
    facts = {"model": manifest.model.id, "weights_sha256": manifest.model.weights_sha256, "precision": precision}
    return engine, facts | {"where": engine.where}


def save_scores(scores: Mapping[str, Sequence[SceneScore]], path: Path) -> None:
    """Write the metrics of every scene (scenes, metrics) and its rotation errors (scenes, pairs), by task."""
    arrays = {}
    for task, entries in scores.items():
        values = [[entry.values[metric.key] for metric in METRICS] for entry in entries]
        arrays[f"{task}/values"] = np.array(values, np.float64)  # None becomes NaN
        arrays[f"{task}/rotation"] = np.stack([entry.rotation_errors for entry in entries])
    write_npz(path, "scores", arrays)


def load_scores(path: Path) -> dict[str, list[SceneScore]]:
    """Read what :func:`save_scores` wrote."""
    scores: dict[str, list[SceneScore]] = {}
    with np.load(path) as arrays:
        for task in (name.removesuffix("/values") for name in arrays if name.endswith("/values")):
            scores[task] = [
                SceneScore(
                    {m.key: None if np.isnan(v) else float(v) for m, v in zip(METRICS, values, strict=True)}, errors
                )
                for values, errors in zip(arrays[f"{task}/values"], arrays[f"{task}/rotation"], strict=True)
            ]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle, or what `mapengine build` takes")
    parser.add_argument("--backend", default="auto", help="what runs a bundle")
    parser.add_argument("--scenes", type=int, default=DEFAULT_SCENES)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--size", default=DEFAULT_SIZE, type=parse_pixels)
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all of them if not given")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--emulate", choices=("fp16", "bf16", "int8", "fp8"), help="format of a plan's graphs")
    parser.add_argument("--calibration", type=Path, help="for --emulate int8 and fp8")
    parser.add_argument("--scores", type=Path, help="write the figures of every scene there, as .npz")
    parser.add_argument("--against", type=Path, help="scores of the float32 network")
    parser.add_argument("--json", type=Path, default=Path("build/evaluation.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.emulate:
            predictor, facts = emulated(args.model, args.emulate, args.calibration, Path(folder) / "graphs")
        else:
            predictor, facts = load_predictor(args.model, args.backend, threads=args.threads)
        evaluation = evaluate(
            predictor, args.scenes, tasks=args.tasks, seed=args.seed, size=args.size, progress=show_progress
        )
    record = {
        "benchmark": "evaluation",
        **facts,
        "data": "rendered",
        **record_origin(*PACKAGES),
        **evaluation.to_json(),
    }
    if args.scores:
        save_scores(evaluation.scores, args.scores)
    if args.against:
        errors: dict[str, dict[str, float]] = {}
        for (task, metric), error in retention_errors(evaluation.scores, load_scores(args.against)).items():
            errors.setdefault(task, {})[metric] = float(f"{error:.2g}")
        record["kept_errors"] = errors
    write_record(args.json, record)


if __name__ == "__main__":
    main()
