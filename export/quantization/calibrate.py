"""From a model and cases to a calibration: observe, fold, observe again, choose ranges, correct biases."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.calibration.data.cases import Cases
from mapengine.calibration.ranges import (
    FORMATS,
    METHODS,
    Calibration,
    Histogram,
    LayerCalibration,
    NumberFormat,
    TokenStatistics,
    choose_range,
    noise_ratio,
    quantize,
)
from mapengine.calibration.ranges.selection import Method
from mapengine.calibration.ranges.smoothing import ALPHAS, best_choice, rotate
from mapengine.runtime.errors import InputError

from ..model.reference import MapAnything
from .budget import keep_accuracy
from .fake_quantization import scales_of, simulate_rounding
from .fold import fold_calibration
from .layers import LinearLayer, find_layers, linear
from .observe import KINDS, Observation, Observer
from .quality import OutputQuality, Quality

Array = NDArray[np.float32]
Report = Callable[[str], None]
Fraction = Callable[[float, str], None]

MOST_NOISE = 0.01
"""Power of the error of class, scale or reference tokens over their power (20 dB), beyond which the range that suits
the patches is widened for them."""

LEAST_GAIN = 2.0
"""Times that a rotation behind an activation, a product of its own, has to divide the error of the layer by."""

_FOLDS_SMOOTHING = ("qkv", "proj", "w12", "w3", "fc1")


@dataclass(frozen=True)
class CalibrationOptions:
    """What a calibration does.

    Attributes:
        precision: ``int8`` or ``fp8``. method: of :data:`mapengine.calibration.ranges.selection.METHODS`.
        smooth: search a SmoothQuant strength per layer. rotate: try a Hadamard rotation of what proj, w3 and fc2 read.
        correct_bias: add the mean error of a layer's output to its bias.
        accuracy: percent of float32's accuracy to keep; None quantises every layer.
        compare: measure what each recovery buys, one after the other.
    """

    precision: str = "int8"
    method: Method = "mse"
    smooth: bool = True
    rotate: bool = True
    correct_bias: bool = True
    accuracy: float | None = None
    compare: bool = False

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: naming the option.
        """
        if self.precision not in FORMATS:
            raise InputError(f"precision {self.precision!r} is not calibrated; use {' or '.join(FORMATS)}")
        if self.method not in METHODS:
            raise InputError(f"range method {self.method!r} is unknown; use {', '.join(METHODS)}")
        if self.accuracy is not None and not 0 < self.accuracy < 100:
            raise InputError(f"accuracy is {self.accuracy!r}; give percent between 0 and 100, such as 99")


def calibrate(
    model: MapAnything,
    cases: Cases,
    options: CalibrationOptions | None = None,
    *,
    quality: Quality | None = None,
    report: Report | None = None,
    fraction: Fraction | None = None,
    unfinished: Path | None = None,
) -> Calibration:
    """Calibrate a model. The same model, cases and options give the same result.

    Memory beyond the model's: a copy of the folded weights, and per layer a few histograms and some hundred rows.

    Args:
        model: float32 reference on the CPU; it is not changed.
        cases: what is run through it.
        options: see :class:`CalibrationOptions`.
        quality: what the accuracy is measured with; by default :class:`.quality.OutputQuality` over the cases;
            :class:`.quality.GeometryQuality` is another.
        report: called with a line per step. fraction: with how much of a step is done.
        unfinished: file that keeps the observations of an interrupted run, and is removed at the end.

    Raises:
        InputError: options or activations that have no meaning.
        CalibrationError: the accuracy cannot be kept, or the unfinished file is damaged.
        OutputError: the unfinished file could not be written.
    """
    options = options or CalibrationOptions()
    options.check()
    say = report or (lambda line: None)
    run = Calibrator(model, cases, options.precision, report=report, fraction=fraction, unfinished=unfinished)
    network, calibration = run.calibrated(options)
    if options.compare or options.accuracy is not None:
        measure = quality or OutputQuality(model, cases.views)
        if options.compare:
            calibration = replace(calibration, report=run.comparison(measure))
        calibration = replace(calibration, measure=measure.description)
        if options.accuracy is not None:
            say(f"keeping {options.accuracy:g} % of the accuracy")
            calibration, _ = keep_accuracy(network, calibration, options.accuracy, measure, run.counted)
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    return calibration


class Calibrator:
    """Observes a model once, and calibrates it with any options."""

    def __init__(
        self,
        model: MapAnything,
        cases: Cases,
        precision: str,
        *,
        report: Report | None = None,
        fraction: Fraction | None = None,
        unfinished: Path | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        """Run the cases through the model and observe what its layers read.

        Args:
            precision: ``int8`` or ``fp8``.
            weights_sha256: of the model, where it is known.
            model, cases, report, fraction, unfinished: see :func:`calibrate`.
        """
        self._model, self._cases = model, cases
        self._say = report or (lambda line: None)
        self._fraction = fraction or (lambda part, phase: None)
        self._layers = find_layers(model)
        self._form = FORMATS[precision]
        self._hash = weights_sha256 or model.weights_hash()
        self._unfinished = unfinished
        self._original = self._observe(model, "observing activations", True, [])

    def counted(self, done: int, total: int) -> None:
        """Report progress as a fraction."""
        self._fraction(done / total, f"{done} of {total}")

    def calibrated(self, options: CalibrationOptions) -> tuple[MapAnything, Calibration]:
        """Choose smoothing, rotation, ranges and corrections; no layer is left in higher precision yet.

        Args:
            options: of the same precision. ``compare`` is not looked at.

        Returns:
            The network with smoothing and rotation folded into its weights, and the calibration.
        """
        layers = self._choices(options)
        changed = [layer for layer in layers if layer.rotated or layer.exponents is not None]
        network = fold_calibration(self._model, changed)
        found = self._original
        if changed:
            found = self._observe(network, "observing the smoothed network", False, changed)
        self._say("choosing ranges")
        layers = [self._ranged(layer, found[layer.name], options.method) for layer in layers]
        if options.correct_bias:
            layers = [self._corrected(layer, network) for layer in layers]
        return network, Calibration(
            self._model.model_id,
            self._hash,
            self._cases.description,
            self._cases.sha256,
            options.precision,
            options.method,
            options.smooth,
            options.rotate,
            options.correct_bias,
            tuple(layers),
            accuracy=options.accuracy,
        )

    def comparison(self, quality: Quality) -> dict[str, float]:
        """Measure the accuracy without recovery, and with one more of them at a time."""
        naive = CalibrationOptions(self._form.name, "max", False, False, False)
        steps: dict[str, Any] = {
            "naive (max ranges)": {},
            "mse ranges": {"method": "mse"},
            "smoothing": {"smooth": True},
        }
        steps |= {"rotation": {"rotate": True}, "bias correction": {"correct_bias": True}}
        result = {}
        for name, change in steps.items():
            naive = replace(naive, **change)
            network, calibration = self.calibrated(naive)
            with simulate_rounding(network, calibration.layers, calibration.precision):
                result[name] = max(quality(network), 0.0)
        return result

    def _observe(
        self, model: MapAnything, title: str, with_rows: bool, changed: list[LayerCalibration]
    ) -> dict[str, Observation]:
        self._say(title)
        observer = Observer(self._layers, int(model.config.use_class_token), with_rows)
        what = repr([(layer.name, layer.exponents, layer.rotated) for layer in changed])
        digest = hashlib.sha256(what.encode()).hexdigest()
        key = f"{self._hash} {self._cases.sha256} {with_rows} {digest}"
        # The second pass is as long as the first, so each has a file of its own.
        path = self._unfinished
        observer.run(model, self._cases, self.counted, path if with_rows else None, key)
        return observer.observations

    def _choices(self, options: CalibrationOptions) -> list[LayerCalibration]:
        """Choose smoothing or rotation of every layer; no ranges yet."""
        if options.smooth or options.rotate:
            self._say("searching the smoothing of every layer")
        result = []
        for index, (name, layer) in enumerate(self._layers.items()):
            entry = LayerCalibration(name, layer.stage, 0.0, {})
            alphas = ALPHAS if options.smooth and layer.kind in _FOLDS_SMOOTHING else ()
            rotation = layer.rotation if options.rotate else None
            if alphas or rotation:
                found = self._original[name]
                assert found.largest is not None
                weight = np.ascontiguousarray(linear(self._model, name).weight.detach().numpy().T)
                choice = best_choice(
                    self._rows(layer),
                    found.largest,
                    weight,
                    self._form,
                    method="mse",
                    alphas=alphas,
                    rotation=rotation,
                    least_gain=1.0 if layer.kind == "proj" else LEAST_GAIN,
                )
                entry = replace(
                    entry,
                    alpha=choice.alpha,
                    exponents=None if choice.exponents is None else tuple(int(e) for e in choice.exponents),
                    rotated=choice.rotated,
                    error=choice.error,
                    plain_error=choice.plain_error,
                )
                self.counted(index + 1, len(self._layers))
            result.append(entry)
        return result

    def _rows(self, layer: LinearLayer) -> Array:
        return np.concatenate(self._original[layer.name].rows)

    def _ranged(self, entry: LayerCalibration, found: Observation, method: Method) -> LayerCalibration:
        largest, widened = choose_token_range(found.tokens, method, self._form)
        tokens = {
            kind: TokenStatistics(h.total, h.largest, noise_ratio(h, largest, self._form))
            for kind, h in sorted(found.tokens.items(), key=lambda item: KINDS.index(item[0]))
        }
        return replace(entry, largest=float(np.float32(largest)), tokens=tokens, widened=widened)

    def _corrected(self, entry: LayerCalibration, network: MapAnything) -> LayerCalibration:
        """Correct the bias of a layer by the mean difference of its output on the sample, channel by channel (Nagel et
        al., arXiv 1906.04721)."""
        if entry.largest == 0:
            return entry
        layer = self._layers[entry.name]
        rows = self._rows(layer)
        if entry.rotated:
            assert layer.rotation is not None
            rows = rotate(rows, layer.rotation)
        elif entry.exponents is not None:
            rows = rows / np.exp2(np.array(entry.exponents)).astype(np.float32)
        parameter = linear(network, entry.name).weight
        weight = parameter.detach().numpy().T
        scale = np.float32(entry.largest / self._form.largest)
        wanted = rows.mean(axis=0) @ weight
        found = quantize(rows, scale, self._form).mean(axis=0) @ quantize(
            weight, scales_of(parameter, self._form), self._form
        )
        return replace(entry, bias=tuple(float(f"{value:.6g}") for value in wanted - found))


def choose_token_range(tokens: Mapping[str, Histogram], method: Method, form: NumberFormat) -> tuple[float, bool]:
    """Choose the range of a tensor on patch tokens, and widen it where it would spoil the other kinds.

    Special tokens are few and carry the outliers: together with the patches they would decide the range in ``max`` and
    vanish in the other methods.

    Returns:
        The range, and whether it was widened.
    """
    largest = choose_range(tokens["patch" if "patch" in tokens else "reference"], method, form)
    widened = False
    for histogram in tokens.values():
        if noise_ratio(histogram, largest, form) > MOST_NOISE:
            wider = choose_range(histogram, "mse", form)
            if wider > largest:
                largest, widened = wider, True
    return largest, widened
