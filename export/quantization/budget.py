"""How much accuracy rounding costs, per layer and in all, and which layers to leave in higher precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mapengine.calibration.data.cases import Views
from mapengine.calibration.ranges import Calibration, LayerCalibration
from mapengine.runtime.errors import CalibrationError

from ..model.reference import MapAnything
from .fake_quantization import emulated
from .layers import find_layers, linear
from .observe import run_trunk


class Quality(Protocol):
    """Measures a network that may round: 1 is as good as float32, 0.99 keeps 99 % of it.

    Attributes:
        description: what is measured, for the calibration's file.
    """

    description: str

    def __call__(self, model: MapAnything) -> float: ...

    def loss(self, model: MapAnything) -> float:
        """How far the network is from float32, 0 for not at all: what layers are compared by. It has to resolve what a
        single layer costs; its unit does not matter."""
        ...


class OutputQuality:
    """One minus the relative error of the outputs of the stages against float32, over some cases.

    The error of an output is the root mean square of its difference over that of its values, so that 0.99 is a
    signal-to-noise ratio of 40 dB. The output that loses most counts.

    Attributes:
        description: for the calibration's file.
        decibels: signal-to-noise ratio by output, of the last measurement.
    """

    description = "outputs of the stages over the calibration data"

    def __init__(self, reference: MapAnything, cases: Mapping[str, Views]) -> None:
        self._cases = dict(cases)
        self._wanted = {name: run_trunk(reference, views) for name, views in self._cases.items()}
        self.decibels: dict[str, float] = {}

    def __call__(self, model: MapAnything) -> float:
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for name, views in self._cases.items():
            for output, found in run_trunk(model, views).items():
                wanted = self._wanted[name][output].astype(np.float64)
                noise[output] = noise.get(output, 0.0) + float(np.square(found - wanted).sum())
                signal[output] = signal.get(output, 0.0) + float(np.square(wanted).sum())
        ratios = {output: noise[output] / max(signal[output], 1e-30) for output in noise}
        self.decibels = {output: -10 * float(np.log10(max(ratio, 1e-30))) for output, ratio in ratios.items()}
        return 1.0 - float(np.sqrt(max(ratios.values())))

    def loss(self, model: MapAnything) -> float:
        """See :class:`Quality`."""
        return 1.0 - self(model)


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
    """Sensitivity of every layer, in running order.

    Args:
        model: with smoothing and rotation folded.
        layers: of the calibration.
    """
    result = []
    for index, layer in enumerate(layers):
        with emulated(model, [layer], precision):
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
        with emulated(model, layers, precision):
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


def quantised_share(model: MapAnything, calibration: Calibration) -> float:
    """Share of the multiplications of the blocks' linear layers, and of rotations behind activations, that are
    quantised, per token."""
    known = find_layers(model)
    sizes = {name: linear(model, name).weight.numel() for name in known}
    rotations = sum(
        (known[layer.name].rotation or 0) * linear(model, layer.name).in_features
        for layer in calibration.quantised
        if layer.rotated and known[layer.name].kind != "proj"
    )
    return sum(sizes[layer.name] for layer in calibration.quantised) / (sum(sizes.values()) + rotations)
