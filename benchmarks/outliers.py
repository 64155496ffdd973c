"""INT8 and FP8 of a network with outlier channels: signal-to-noise ratio of what the stages give, naive rounding first.

    python benchmarks/outliers.py preset:giant --json benchmarks/results/outliers-giant.json

Trained vision transformers have a few channels that are 50 to 100 times larger than the others. The given network gets
such channels and computes the same; it is calibrated on rendered scenes and judged on others, as PyTorch with the
rounding of the format (:mod:`mapengine.export.quantization.emulate`), with every layer of the blocks rounded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from record import origin, write_record

from mapengine.calibration.quantization.cases import Cases, make_cases, rendered_cases
from mapengine.export.quantization import CalibrationOptions, OutputQuality, calibrate, emulated, folded
from mapengine.export.quantization.outliers import CHANNELS, FACTOR, VALUE_FACTOR, with_outlier_channels
from mapengine.export.reference import MapAnything, load_model

METHODS: dict[str, dict[str, Any]] = {
    "naive": {"method": "max", "smooth": False, "rotate": False, "correct_bias": False},
    "MSE ranges": {"smooth": False, "rotate": False, "correct_bias": False},
    "smoothing": {"rotate": False, "correct_bias": False},
    "all recoveries": {},
}


def decibels(
    network: MapAnything, quality: OutputQuality, options: CalibrationOptions, cases: Cases
) -> dict[str, float]:
    """Signal-to-noise ratio by output of the stages."""
    calibration = calibrate(network, cases, options)
    rounding = folded(network, calibration.layers)
    with emulated(rounding, calibration.layers, calibration.precision):
        quality(rounding)
    return {name: round(value, 1) for name, value in quality.decibels.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `mapengine build` takes")
    parser.add_argument("--formats", nargs="+", default=["int8", "fp8"], choices=("int8", "fp8"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--cases", type=int, default=4, help="to calibrate with, and as many to judge")
    parser.add_argument("--size", default="140x112", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    network = with_outlier_channels(load_model(args.model))
    views = list(rendered_cases(2 * args.cases, args.size, network.data_norm_type).views.items())
    given = make_cases(dict(views[: args.cases]), f"{args.cases} rendered scenes")
    quality = OutputQuality(network, dict(views[args.cases :]))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for precision in args.formats:
        for name in args.methods:
            found = decibels(network, quality, CalibrationOptions(precision, **METHODS[name]), given)
            results.setdefault(precision, {})[name] = found
            print(f"{precision} {name}: {found}", file=sys.stderr, flush=True)
    record = {
        "benchmark": "outliers",
        "model": network.model_id,
        "channels": {
            "layer norms": f"{len(CHANNELS)} of them {FACTOR:g} times",
            "values": f"1, {VALUE_FACTOR:g} times",
        },
        "cases": args.cases,
        "size": "{}x{}".format(*args.size),
        **origin("mapengine", "torch", "numpy"),
        "results": results,
    }
    print(json.dumps(record, indent=1))
    write_record(record, args.json)


if __name__ == "__main__":
    main()
