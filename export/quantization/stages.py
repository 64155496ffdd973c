"""The stages of a bundle in INT8 or FP8."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mapengine.calibration.ranges import Calibration
from mapengine.runtime.bundle.manifest import Quantization

from ..graphs.tracing import ExportedStage
from ..model.reference import MapAnything
from ..precision import LoweredStage
from .layers import Roundable
from .network import QuantizedNetwork
from .qdq import quantize_stage
from .weights_only import WeightsOnly

Stages = Sequence[ExportedStage | LoweredStage]


def write_quantized(
    quantized: QuantizedNetwork,
    folder: Path,
    export: Callable[[MapAnything, Path], Stages],
    lower: Callable[[Stages, Path], Stages] | None,
    report: Callable[[str], None],
) -> tuple[tuple[ExportedStage | LoweredStage, ...], Quantization, Stages]:
    """Write the stages with the layers of a calibration in 8 bits.

    Args:
        quantized: the network, and how it rounds.
        folder: to write into.
        export: writes the stages of a network in float32 into a folder.
        lower: writes such stages in 16 bit into another folder; None to leave the rest in float32.
        report: called with a line per step.

    Returns:
        The stages, what the manifest says of them, and the stages before quantisation (their files are gone).
    """
    calibration = quantized.calibration
    written = []
    products: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        full_folder, low_folder = Path(scratch) / "full", Path(scratch) / "low"
        full_folder.mkdir()
        low_folder.mkdir()
        full = export(quantized.exported, full_folder)
        sources = full if lower is None else lower(full, low_folder)
        for exact, source in zip(full, sources, strict=True):
            layers: list[Roundable] = [layer for layer in calibration.quantized if layer.stage == source.name]
            if not layers:
                written.append(_moved(source, folder))
                continue
            what = "with weights " if isinstance(calibration, WeightsOnly) else ""
            report(f"writing {source.name} {what}in {calibration.precision}")
            result = quantize_stage(
                source.path,
                folder / source.path.name,
                stage=source.name,
                layers=layers,
                precision=calibration.precision,
                weights=None if lower is None else exact.path,
            )
            if isinstance(calibration, Calibration):  # else the products are in the type of the activations
                products[source.name] = len(result.quantized)
            written.append(replace(source, path=result.path, data_path=result.data_path, opset=result.opset))
    names = tuple(calibration.kept_layers)
    record = Quantization(calibration.described(), calibration.data_sha256, names, dict(products))
    return tuple(written), record, sources


def _moved(stage: ExportedStage | LoweredStage, folder: Path) -> ExportedStage | LoweredStage:
    data = None if stage.data_path is None else Path(shutil.move(stage.data_path, folder / stage.data_path.name))
    return replace(stage, path=Path(shutil.move(stage.path, folder / stage.path.name)), data_path=data)
