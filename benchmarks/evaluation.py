"""How right the reconstructions of a model are, as a record with the commit: `mapengine eval` with its origin.

    python benchmarks/evaluation.py build/engine --json benchmarks/results/eval-nano-fp32.json

Tasks, metrics and scenes are described in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from record import origin, write_record

from mapengine.calibration.evaluation import DEFAULT_SCENES, DEFAULT_SIZE, HELD_OUT_SEED, evaluate
from mapengine.cli.eval_command import load_predictor


def show_progress(done: int, total: int, task: str) -> None:
    """A line at every tenth of the way."""
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"{done / total:.0%}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle, or what `mapengine build` takes")
    parser.add_argument("--backend", default="auto", help="what runs a bundle")
    parser.add_argument("--scenes", type=int, default=DEFAULT_SCENES)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--size", default=DEFAULT_SIZE, type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--tasks", nargs="+", help="names of tasks; all of them if not given")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    predictor, facts = load_predictor(args.model, args.backend, threads=args.threads)
    evaluation = evaluate(
        predictor, args.scenes, tasks=args.tasks, seed=args.seed, size=args.size, progress=show_progress
    )
    record = {
        "benchmark": "evaluation",
        **facts,
        "data": "rendered",
        **origin("mapengine", "numpy", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"),
        **evaluation.to_json(),
    }
    print(json.dumps(record, indent=2))
    write_record(record, args.json)


if __name__ == "__main__":
    main()
