"""Measure 16-bit stages with activations beyond float16's range, with and without measured magnitudes.

    python benchmarks/studies/precision_range.py --json benchmarks/results/precision-range-tiny.json

Weights are scaled so that one kind of tensor passes 65504 in float16 while the float32 network computes the same
(``mapengine.export.precision.stress``); the 16-bit graphs run as they say, as in ``precision.py``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from precision import export_float32, geometry, lowered, predict

from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.precision import measure_magnitudes, runnable
from mapengine.export.precision.stress import PLACES, Place, write_stressed
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

PRECISIONS = ("fp16", "bf16")


def measure(exported: Path, folder: Path, place: Place, cases: dict[str, Any]) -> dict[str, Any]:
    """Return the largest magnitude in float32, and per precision the errors without and with ranges."""
    folder.mkdir()
    stages = {name: folder / f"{name}.onnx" for name in STAGES}
    for name, path in stages.items():
        write_stressed(exported / f"{name}.onnx", path, place)
    magnitudes = measure_magnitudes(stages, cases)
    reference = predict(stages, cases)
    result: dict[str, Any] = {"largest": float(f"{max(max(found.values()) for found in magnitudes.values()):.3g}")}
    for precision in PRECISIONS:
        errors = {}
        for title, known in (("without", None), ("with", magnitudes)):
            graphs = lowered(folder, folder / f"{precision}-{title}", precision, (), known)
            paths = {name: runnable(stage.path, stage.path.parent) for name, stage in graphs.items()}
            errors[title] = geometry(predict(paths, cases), reference)
        kept = [module for stage in graphs.values() for module in stage.kept_layers]
        room = min(entry.factor for stage in graphs.values() for entry in stage.headroom)
        result[precision] = {**errors, "kept_layers": len(kept), "least_headroom": float(f"{room:.3g}")}
    print(place, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preset:tiny")
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--cases", nargs="+", default=["mixed", "all inputs"], help="names of parity cases")
    parser.add_argument("--places", nargs="+", default=PLACES, choices=PLACES, help="what passes the range")
    parser.add_argument("--exported", type=Path, help="folder with the float32 stages; exported anew without it")
    parser.add_argument(
        "--json", type=Path, default=Path("build/precision_range.json"), help="where to write the record"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = args.exported or export_float32(args.model, folder / "fp32")
        cases = {name: parity_cases("dinov2", args.size)[name] for name in args.cases}
        results = {place: measure(exported, folder / str(i), place, cases) for i, place in enumerate(args.places)}
    record = {
        "benchmark": "precision_range",
        "model": args.model,
        "size": "{}x{}".format(*args.size),
        "cases": list(cases),
        **record_origin("mapengine", "onnx", "onnx-ir", "onnxruntime", "numpy"),
        "results": results,
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
