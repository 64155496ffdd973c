"""How fast the CPU engines are against PyTorch eager, as a ratio measured in one run.

    python benchmarks/engine.py --model preset:giant --size 518x392 --views 2 --json benchmarks/results/engine.json

Every contender lives in a process of its own, loaded once and then called in turn, so that a machine whose speed drifts
is slow for all of them alike. One call is ``predict``: from prepared views to metric predictions, without reading files
and without masks. The baseline is this project's PyTorch reference in eager mode with scaled-dot-product attention, on
the same number of threads. Reported: median seconds per call, the median over rounds of baseline / contender, and the
memory that the process holds privately.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BASELINE = "pytorch-eager"
CONTENDERS = ("onnxruntime", "openvino")


def _views(count: int, width: int, height: int, geometry: bool) -> list[dict[str, Any]]:
    from mapengine.runtime import preprocess_inputs
    from mapengine.runtime.samples import sample_views

    raw: list[dict[str, Any]] = []
    for sample in sample_views(count, width=width, height=height):
        view: dict[str, Any] = {"img": sample.image}
        if geometry:
            view |= {"intrinsics": sample.intrinsics.astype("float32"), "depth_z": sample.depth_z}
            view["camera_poses"] = sample.pose.astype("float32")
        raw.append(view)
    return preprocess_inputs(raw, resize_mode="fixed_size", size=(width, height))


def _load(name: str, model: str, bundle: str, threads: int) -> Callable[[list[dict[str, Any]]], Any]:
    if name == BASELINE:
        import torch

        torch.set_num_threads(threads)
        from mapengine.export import load_model

        network = load_model(model)
        return lambda views: network.predict(views, use_amp=False)
    from mapengine.runtime import Engine

    engine = Engine.load(bundle, name, threads=threads, verify=False)
    return engine.predict


def _private_bytes() -> int:
    """Anonymous memory of this process: weights that are mapped from a file are shared and can be dropped."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    return 0


def _worker(connection: Connection, name: str, args: argparse.Namespace, bundle: str) -> None:
    width, height = args.size
    views = _views(args.views, width, height, args.geometry)
    start = time.perf_counter()
    run = _load(name, args.model, bundle, args.threads)
    connection.send({"load_s": time.perf_counter() - start})
    while connection.recv():
        start = time.perf_counter()
        run(views)
        connection.send({"seconds": time.perf_counter() - start, "private_bytes": _private_bytes()})


def measure(args: argparse.Namespace, bundle: str) -> dict[str, Any]:
    """Load every contender, call them in turn, and return the figures."""
    names = (BASELINE, *args.backends)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    loads: dict[str, float] = {}
    processes = []
    for name in names:
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, name, args, bundle), daemon=True)
        process.start()
        processes.append(process)
        loads[name] = here.recv()["load_s"]  # one after the other: loading is heavy
        pipes[name] = here
        print(f"{name}: loaded in {loads[name]:.1f} s", flush=True)
    rounds: list[dict[str, float]] = []
    memory: dict[str, int] = {}
    for index in range(args.rounds + 1):
        figures = {}
        for name in names:
            pipes[name].send(True)
            answer = pipes[name].recv()
            figures[name], memory[name] = answer["seconds"], answer["private_bytes"]
        if index:  # the first round warms up
            rounds.append(figures)
            print("  ".join(f"{name} {seconds:.2f} s" for name, seconds in figures.items()), flush=True)
    for name in names:
        pipes[name].send(False)
    for process in processes:
        process.join()
    results = {}
    for name in names:
        seconds = [figures[name] for figures in rounds]
        ratios = [figures[BASELINE] / figures[name] for figures in rounds]
        results[name] = {
            "median_s": round(statistics.median(seconds), 3),
            "min_s": round(min(seconds), 3),
            "max_s": round(max(seconds), 3),
            "times_baseline_speed": round(statistics.median(ratios), 2),
            "load_s": round(loads[name], 1),
            "private_memory_gb": round(memory[name] / 1e9, 2),
        }
    return results


def _packages() -> dict[str, str]:
    versions = {}
    for name in ("mapengine", "torch", "onnxruntime", "openvino", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def main() -> None:
    from mapengine.runtime.backends.base import cpu_name, default_threads

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:giant")
    parser.add_argument("--bundle", help="an existing bundle of the model; built into a temporary folder without it")
    parser.add_argument("--size", default="518x392", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--geometry", action="store_true", help="give camera, depth and pose for every view")
    parser.add_argument("--backends", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", type=Path, help="write the figures there")
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
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **_packages()},
        "results": results,
    }
    print(json.dumps(record, indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
