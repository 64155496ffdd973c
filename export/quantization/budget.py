"""How much accuracy rounding costs, per layer and in all, and which layers to leave in higher precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.runtime.errors import CalibrationError

from ..model.reference import MapAnything
from .fake_quantization import simulate_rounding
from .layers import find_layers, linear
from .quality import Quality


@dataclass(frozen=True)
class Sensitivity:
    """What quantising one layer alone loses (:meth:`Quality.loss`), and its multiplications per token."""

    layer: str
    loss: float
    macs: int


def measure_sensitivity(
    model: MapAnything,
    layers: Sequence[LayerCalibration],
    precision: str,
    quality: Quality,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sensitivity]:
    """Measure the sensitivity of every layer, in running order.

    Args:
        model: with smoothing and rotation folded.
        layers: of the calibration.
    """
    result = []
    for index, layer in enumerate(layers):
        with simulate_rounding(model, [layer], precision):
            result.append(Sensitivity(layer.name, quality.loss(model), linear(model, layer.name).weight.numel()))
        if progress is not None:
            progress(index + 1, len(layers))
    return result


def keep_accuracy(
    model: MapAnything,
    calibration: Calibration,
    accuracy: float,
    quality: Quality,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Calibration, list[Sensitivity]]:
    """Leave the fewest multiplications in higher precision with which ``accuracy`` percent are kept.

    Layers leave INT8 in the order of the power of the error that they cause per multiplication, and a bisection finds
    how many have to: more layers in higher precision are taken to be at least as accurate.

    Args:
        model: with smoothing and rotation folded.
        accuracy: percent of float32's, as ``quality`` measures it.

    Returns:
        The calibration with its kept layers and the reached accuracy, and the sensitivities (empty if nothing had to
        be kept).

    Raises:
        CalibrationError: even a single quantised layer loses too much.
    """
    precision, target = calibration.precision, accuracy / 100

    def reached(layers: Sequence[LayerCalibration]) -> float:
        with simulate_rounding(model, layers, precision):
            return quality(model)

    full = reached(calibration.layers)
    report = {**calibration.report, "every layer": max(full, 0.0)}
    if full >= target:
        return _kept(calibration, (), {**report, "kept accuracy": full}), []
    sensitivities = measure_sensitivity(model, calibration.layers, precision, quality, progress)
    order = sorted(sensitivities, key=lambda entry: (-(max(entry.loss, 0.0) ** 2) / entry.macs, entry.layer))

    def without(count: int) -> list[LayerCalibration]:
        dropped = {entry.layer for entry in order[:count]}
        return [layer for layer in calibration.layers if layer.name not in dropped]

    low, high = 0, len(order)  # with low the accuracy is not kept, with high it is
    best = 1.0
    while high - low > 1:
        middle = (low + high) // 2
        found = reached(without(middle))
        if found >= target:
            high, best = middle, found
        else:
            low = middle
    if high == len(order):
        raise CalibrationError(
            f"{calibration.precision} cannot keep {accuracy:g} % of the accuracy in any layer; calibrate with more "
            "data, or lower --accuracy"
        )
    used = {layer.name for layer in without(high)}
    kept = tuple(layer.name for layer in calibration.layers if layer.name not in used)
    return _kept(calibration, kept, {**report, "kept accuracy": best}), sensitivities


def _kept(calibration: Calibration, names: tuple[str, ...], report: dict[str, float]) -> Calibration:
    return replace(calibration, kept_layers=names, report=report)


def quantized_share(model: MapAnything, calibration: Calibration) -> float:
    """Return the share of the multiplications of the blocks' linear layers, and of rotations behind activations, that
    are quantised, per token."""
    known = find_layers(model)
    sizes = {name: linear(model, name).weight.numel() for name in known}
    rotations = sum(
        (known[layer.name].rotation or 0) * linear(model, layer.name).in_features
        for layer in calibration.quantized
        if layer.rotated and known[layer.name].kind != "proj"
    )
    return sum(sizes[layer.name] for layer in calibration.quantized) / (sum(sizes.values()) + rotations)
