"""The stages of a bundle in INT8 or FP8, and the tolerance that the calibrated network itself shows."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mapengine.calibration.ranges import Calibration
from mapengine.runtime.bundle.manifest import Quantization
from mapengine.runtime.checks.parity import Predictions

from ..bundles.tolerances import rounding_tolerance
from ..graphs.tracing import ExportedStage
from ..model.reference import MapAnything
from ..precision import LoweredStage
from .fake_quantization import emulated
from .fold import folded, with_corrected_biases
from .layers import Roundable
from .qdq import quantise_stage
from .weights_only import WeightsOnly

Stages = Sequence[ExportedStage | LoweredStage]
Stage = TypeVar("Stage", ExportedStage, LoweredStage)
Views = Sequence[Mapping[str, Any]]


def write_quantised(
    model: MapAnything,
    folder: Path,
    calibration: Calibration | WeightsOnly,
    export: Callable[[MapAnything, Path], Stages],
    lower: Callable[[Stages, Path], Stages] | None,
    report: Callable[[str], None],
) -> tuple[tuple[ExportedStage | LoweredStage, ...], Quantization, Stages]:
    """Write the stages with the layers of a calibration in 8 bits.

    Args:
        model: that was calibrated.
        calibration: or, for the weights alone, the layers.
        folder: to write into.
        export: writes the stages of a network in float32 into a folder.
        lower: writes such stages in 16 bit into another folder; None to leave the rest in float32.

    Returns:
        The stages, what the manifest says of them, and the stages before quantisation (their files are gone).
    """
    network = model
    if isinstance(calibration, Calibration):
        network = with_corrected_biases(folded(model, calibration.layers, calibration.kept_layers), calibration)
    written = []
    products: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        full_folder, low_folder = Path(scratch) / "full", Path(scratch) / "low"
        full_folder.mkdir()
        low_folder.mkdir()
        full = export(network, full_folder)
        del network
        sources = full if lower is None else lower(full, low_folder)
        for exact, source in zip(full, sources, strict=True):
            layers: list[Roundable] = [layer for layer in calibration.quantised if layer.stage == source.name]
            target = folder / source.path.name
            if not layers:
                written.append(_moved(source, folder))
                continue
            what = "with weights " if isinstance(calibration, WeightsOnly) else ""
            report(f"writing {source.name} {what}in {calibration.precision}")
            result = quantise_stage(
                source.path,
                target,
                stage=source.name,
                layers=layers,
                precision=calibration.precision,
                weights=None if lower is None else exact.path,
            )
            if isinstance(calibration, Calibration):  # else the products are in the type of the activations
                products[source.name] = len(result.quantised)
            written.append(replace(source, path=result.path, data_path=result.data_path, opset=result.opset))
    names = tuple(calibration.kept_layers)
    record = Quantization(calibration.described(), calibration.data_sha256, names, dict(products))
    return tuple(written), record, sources


def _moved(stage: ExportedStage | LoweredStage, folder: Path) -> ExportedStage | LoweredStage:
    data = None if stage.data_path is None else Path(shutil.move(stage.data_path, folder / stage.data_path.name))
    return replace(stage, path=Path(shutil.move(stage.path, folder / stage.path.name)), data_path=data)


def measured_tolerance(
    model: MapAnything,
    calibration: Calibration | WeightsOnly,
    cases: Mapping[str, Views],
    wanted: Mapping[str, Predictions],
) -> dict[str, float]:
    """Allowed difference per output, relative to its largest value, see :func:`..tolerance.rounding_tolerance`.

    Args:
        model: float32 reference.
        cases: that the difference is measured over. wanted: the reference's predictions for them.
    """
    network = model
    if isinstance(calibration, Calibration):
        network = folded(model, calibration.layers, calibration.kept_layers)
    with emulated(network, calibration.quantised, calibration.precision):
        found = {name: network.predict(views, use_amp=False) for name, views in cases.items()}
    return rounding_tolerance(found, wanted, "PyTorch, rounding")
