"""Time the CPU engines and eager PyTorch in turn.

    python benchmarks/studies/engine.py --model preset:giant --size 518x392 --json build/engine.json

Every contender lives in a process of its own, loaded once and then called in turn. One call is ``predict``: from
prepared views to metric predictions, without reading files and without masks. The baseline is this project's PyTorch
reference in eager mode with scaled-dot-product attention, on the same number of threads.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import Loader, take_turns

from mapengine.runtime.system.files import write_json
from mapengine.runtime.system.machine import usable_processors
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels

BASELINE = "pytorch-eager"
CONTENDERS = ("onnxruntime", "openvino")
Views = list[dict[str, Any]]


def load_pytorch(model: str, threads: int, views: Views) -> Callable[[], None]:
    """Load the baseline."""
    import torch

    from mapengine.export import load_model

    torch.set_num_threads(threads)
    network = load_model(model)
    return lambda: network.predict(views, use_amp=False) and None


def load_engine(bundle: str, backend: str, threads: int, views: Views) -> Callable[[], None]:
    """Load an engine of the bundle."""
    from mapengine.runtime import Engine

    engine = Engine.load(bundle, backend, threads=threads, verify=False)
    return lambda: engine.predict(views) and None


def measure(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """Call the contenders in turn and return the figures by name."""
    from mapengine.export.bundles.parity_cases import sample_inputs

    views = sample_inputs(args.size, ["kdp" if args.geometry else ""] * args.views, "dinov2")
    contenders: dict[str, Loader] = {BASELINE: functools.partial(load_pytorch, args.model, args.threads, views)}
    for backend in args.backends:
        contenders[backend] = functools.partial(load_engine, bundle, backend, args.threads, views)
    figures = take_turns(contenders, args.rounds)
    return {
        name: {
            "median_s": round(figure.median_s, 3),
            "min_s": round(min(figure.seconds), 3),
            "max_s": round(max(figure.seconds), 3),
            "times_baseline_speed": round(1 / figure.ratio(figures[BASELINE]), 2),
            "load_s": round(figure.load_s, 1),
            "private_memory_gb": round(figure.private_bytes / 1e9, 2),
        }
        for name, figure in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--bundle", help="an existing bundle of the model; built into a temporary folder without it")
    parser.add_argument("--size", default="518x392", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--geometry", action="store_true", help="give camera, depth and pose for every view")
    parser.add_argument("--backends", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", type=Path, default=Path("build/engine.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from mapengine.export import build_engine, load_model

            bundle = os.path.join(folder, "bundle")
            build_engine(load_model(args.model), bundle, progress=print)
        results = measure(args, bundle)
    record = {
        "benchmark": "engine",
        "what": "seconds per call of predict, in turn in one run; ratio = baseline / contender per round",
        "baseline": BASELINE,
        "model": args.model,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "geometry": args.geometry,
        "threads": args.threads,
        "rounds": args.rounds,
        **record_origin("mapengine", "torch", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_json(args.json, record)


if __name__ == "__main__":
    main()
