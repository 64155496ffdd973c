"""Measure the peak memory of loading a bundle, and of its first call, against the size of its weights. Writes JSON.

    python benchmarks/load.py --model preset:giant --size 518x392 --json benchmarks/results/load-giant.json

Each backend loads in a process of its own, which then makes one call of ``--views`` views: the first call is where
libraries lay weights out anew. Peaks are of resident memory: pages of mapped files, Python and the library included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.profiling.memory import probe
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record


def weights_bytes(bundle: Bundle) -> int:
    """Return the bytes of all files of a bundle's stages."""
    return sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.suffix in (".onnx", ".data"))


def loaded(bundle: Bundle, weights: int, backend: str, views: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the peaks of loading and of the first call, in bytes and as multiples of the weights."""
    start = time.perf_counter()
    peaks = probe(bundle, backend, views, *size, geometry=True, collect=True)
    seconds = time.perf_counter() - start
    call = max(value for stage, value in peaks.items() if stage != "load")
    figures = {
        "load_mb": peaks["load"] / 1e6,
        "load_times_weights": peaks["load"] / weights,
        "first_call_mb": call / 1e6,
        "first_call_times_weights": call / weights,
        "seconds": seconds,
    }
    print(f"{backend}: {figures}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:nano")
    parser.add_argument("--bundle", type=Path, help="an engine that is built already, of --model")
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--views", type=int, default=2, help="of the first call")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--json", type=Path, default=Path("build/load.json"), help="where to write the record")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            from mapengine.export import build_engine, load_model

            build_engine(load_model(args.model), folder, views=(1, args.views, args.views), resolutions=[args.size])
        bundle = Bundle.open(args.bundle or folder)
        weights = weights_bytes(bundle)
        results = {backend: loaded(bundle, weights, backend, args.views, args.size) for backend in args.backends}
    record = {
        "benchmark": "load",
        "what": "peak resident memory of a process that loads a bundle, and of its first call",
        "model": args.model,
        "size": "{}x{}".format(*args.size),
        "views": args.views,
        "weights_mb": weights / 1e6,
        **record_origin("mapengine", "onnxruntime", "openvino", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
