"""Measure INT8 and FP8 of a network with outlier channels, by the signal-to-noise ratio of its outputs.

    python benchmarks/studies/outliers.py preset:giant --cases 2 --json benchmarks/results/outliers-giant.json

Trained vision transformers have a few channels that are 50 to 100 times larger than the others. The given network gets
such channels and computes the same; it is calibrated on rendered scenes and judged on others, as PyTorch with the
rounding of the format (:mod:`mapengine.export.quantization.fake_quantization`). Every layer of the blocks is rounded,
but for the rows with a budget: there calibration leaves layers in higher precision until its own cases have that many
decibels.
"without outliers" is the given network as it is: what rounding costs when there is nothing to recover.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prediction_noise import prediction_decibels

from mapengine.calibration.data.cases import Cases, make_cases, rendered_cases
from mapengine.export.model.reference import MapAnything, load_model
from mapengine.export.quantization import (
    CalibrationOptions,
    OutputQuality,
    calibrate,
    fold_calibration,
    simulate_rounding,
)
from mapengine.export.quantization.budget import quantized_share
from mapengine.export.quantization.outliers import CHANNELS, FACTOR, VALUE_FACTOR, with_outlier_channels
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record

PREDICTIONS = (
    "ray_directions", "depth_along_ray", "conf", "non_ambiguous_mask_logits", "cam_trans", "cam_quats",
    "metric_scaling_factor",
)  # fmt: skip
BUDGET = 25.0
"""Decibels."""
_NONE = {"smooth": False, "rotate": False, "correct_bias": False}
_KEPT = 100 * (1 - 10 ** (-BUDGET / 20))  # percent, as --accuracy says it
METHODS: dict[str, dict[str, Any]] = {
    "naive": {**_NONE, "method": "max"},
    "MSE ranges": _NONE,
    "smoothing": {**_NONE, "smooth": True},
    "smoothing and rotation": {"correct_bias": False},
    "all recoveries": {},
    f"all recoveries, budget of {BUDGET:g} dB": {"accuracy": _KEPT},
    f"no rotation, budget of {BUDGET:g} dB": {"rotate": False, "accuracy": _KEPT},
    "without outliers, MSE ranges": _NONE,
}


def measure(
    network: MapAnything,
    quality: OutputQuality,
    predictions: Callable[[MapAnything], dict[str, float]],
    options: CalibrationOptions,
    cases: Cases,
) -> dict[str, Any]:
    """Return the signal-to-noise ratio of every output and prediction, and the share of multiplications in 8 bits."""
    calibration = calibrate(network, cases, options)
    rounding = fold_calibration(network, calibration.layers, calibration.kept_layers)
    with simulate_rounding(rounding, calibration.quantized, calibration.precision):
        quality(rounding)
        made = predictions(rounding)
    return {
        "decibels": {name: round(value, 1) for name, value in quality.decibels.items()},
        "predictions": made,
        "quantised_share": round(quantized_share(network, calibration), 4),
        "kept_layers": list(calibration.kept_layers),
        "rotated": sum(layer.rotated for layer in calibration.layers),
        "smoothed": sum(layer.exponents is not None for layer in calibration.layers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `mapengine build` takes")
    parser.add_argument("--formats", nargs="+", default=["int8", "fp8"], choices=("int8", "fp8"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--cases", type=int, default=4, help="to calibrate with, and as many to judge")
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--json", type=Path, default=Path("build/outliers.json"), help="where to write the record")
    args = parser.parse_args()
    plain = load_model(args.model)
    network = with_outlier_channels(plain)
    views = list(rendered_cases(2 * args.cases, args.size, network.data_norm_type).views.items())
    given = make_cases(dict(views[: args.cases]), f"{args.cases} rendered scenes")
    held_out = dict(views[args.cases :])
    quality = OutputQuality(network, held_out)
    wanted = [network.predict(case, use_amp=False) for case in held_out.values()]

    def predictions(model: MapAnything) -> dict[str, float]:
        found = (model.predict(case, use_amp=False) for case in held_out.values())
        return prediction_decibels(found, wanted, PREDICTIONS)

    results: dict[str, dict[str, dict[str, Any]]] = {}
    record = {
        "benchmark": "outliers",
        "model": network.model_id,
        "channels": {
            "layer norms": f"{len(CHANNELS)} of them {FACTOR:g} times",
            "values": f"1, {VALUE_FACTOR:g} times",
        },
        "cases": args.cases,
        "size": "{}x{}".format(*args.size),
        **record_origin("mapengine", "torch", "numpy"),
        "results": results,
    }
    for precision in args.formats:
        for name in args.methods:
            subject = plain if name.startswith("without") else network
            found = measure(subject, quality, predictions, CalibrationOptions(precision, **METHODS[name]), given)
            results.setdefault(precision, {})[name] = found
            print(f"{precision} {name}: {found}", file=sys.stderr, flush=True)
            write_record(args.json, record)  # a full-size network takes minutes per row


if __name__ == "__main__":
    main()
