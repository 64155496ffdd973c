"""What a calibration found, as a readable JSON file (``docs/quantization.md``)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mapengine.runtime.bundle.codec import Reader, parse_json
from mapengine.runtime.errors import CalibrationError, ManifestError
from mapengine.runtime.system.files import atomic_write

from .rounding import FORMATS
from .selection import METHODS

SCHEMA_VERSION = 1
_LARGEST_EXPONENT = 64
_TOP = ("schema_version", "model", "data", "precision", "options", "kept_layers", "report", "layers")


@dataclass(frozen=True)
class TokenStatistics:
    """One kind of tokens at the input of a layer.

    Attributes:
        count: numbers that were seen. largest: their largest magnitude.
        noise: power of the error of rounding and clipping them, over their power.
    """

    count: int
    largest: float
    noise: float


@dataclass(frozen=True)
class LayerCalibration:
    """One linear layer.

    Attributes:
        name: module of the network. stage: that it belongs to.
        largest: magnitude that the largest number of the format stands for, at the layer's (changed) input.
        tokens: statistics by kind: ``patch``, ``reference`` (patches of view 0), ``class``, ``scale``.
        widened: whether ``largest`` is more than the range of the patches, for the sake of the other tokens.
        alpha: strength of the smoothing, or None. exponents: of 2, per input channel, or None.
        rotated: whether the input is rotated: the heads of proj, blocks of channels of w3 and fc2.
        bias: (outputs,) added to the bias, or None.
        error, plain_error: squared error of the output over its power on a sample, with and without smoothing or
            rotation.
    """

    name: str
    stage: str
    largest: float
    tokens: Mapping[str, TokenStatistics]
    widened: bool = False
    alpha: float | None = None
    exponents: tuple[int, ...] | None = None
    rotated: bool = False
    bias: tuple[float, ...] | None = None
    error: float = 0.0
    plain_error: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Everything that writing a quantised graph needs besides the model.

    Attributes:
        model_id, weights_sha256: of the model that was calibrated.
        data: in words. data_sha256: hash of the prepared inputs.
        precision: ``int8`` or ``fp8``. method: of the ranges.
        smooth, rotate, correct_bias: which recoveries were on.
        layers: every layer that may be quantised, in running order.
        kept_layers: names of those that stay in higher precision.
        report: accuracy by name of what was measured, such as ``smoothing``; 1 is that of float32.
        accuracy: percent of float32's that was asked for, or None.
        measure: what the accuracies were measured by, in words; None where none was measured.
    """

    model_id: str
    weights_sha256: str
    data: str
    data_sha256: str
    precision: str
    method: str
    smooth: bool
    rotate: bool
    correct_bias: bool
    layers: tuple[LayerCalibration, ...]
    kept_layers: tuple[str, ...] = ()
    report: Mapping[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    measure: str | None = None

    @property
    def quantised(self) -> tuple[LayerCalibration, ...]:
        """The layers that are quantised."""
        kept = set(self.kept_layers)
        return tuple(layer for layer in self.layers if layer.name not in kept)

    def described(self) -> str:
        """The method in a few words, for manifests."""
        recoveries = {"smoothing": self.smooth, "rotation": self.rotate, "bias correction": self.correct_bias}
        return ", ".join([f"{self.method} ranges", *(name for name, used in recoveries.items() if used)])

    def keeping(self, names: tuple[str, ...]) -> Calibration:
        """The same with other layers left in higher precision."""
        return replace(self, kept_layers=names)

    def check_model(self, weights_sha256: str, model_id: str, precision: str) -> None:
        """Refuse to be used with another model or format.

        Raises:
            CalibrationError: what differs, and what to do.
        """
        if self.weights_sha256 != weights_sha256:
            raise CalibrationError(
                f"the calibration is of {self.model_id} with other weights than {model_id} has; calibrate this model"
            )
        if self.precision != precision:
            raise CalibrationError(
                f"the calibration is for {self.precision}, and the build is {precision}; calibrate for {precision}"
            )

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": {"id": self.model_id, "weights_sha256": self.weights_sha256},
            "data": {"description": self.data, "sha256": self.data_sha256},
            "precision": self.precision,
            "options": {
                "method": self.method,
                "smooth": self.smooth,
                "rotate": self.rotate,
                "correct_bias": self.correct_bias,
                "accuracy": self.accuracy,
                "measure": self.measure,
            },
            "kept_layers": list(self.kept_layers),
            "report": dict(self.report),
            "layers": {layer.name: _layer_json(layer) for layer in self.layers},
        }


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write the file, whole or not at all.

    Raises:
        OutputError: it could not be written.
    """
    document = calibration.to_json()
    layers = document.pop("layers")
    # A layer per line: with indentation the lists of channels would be a number per line.
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(layer)}" for name, layer in layers.items())
    head = json.dumps(document, indent=1, allow_nan=False).removesuffix("\n}")
    with atomic_write(path) as temporary:
        temporary.write_text(f'{head},\n "layers": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a file of :func:`save_calibration`.

    Raises:
        CalibrationError: it is missing, damaged, or of another version.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror}); check the path, or calibrate") from error
    try:
        return _read(Reader(parse_json(text)))
    except ManifestError as error:
        # The reader words its complaints for manifests.
        said = str(error).replace("manifest.json: ", "").replace("manifest.json", "it").rpartition("; ")[0]
        raise CalibrationError(f"{path}: is no calibration of this version ({said}); calibrate again") from error


def _read(top: Reader) -> Calibration:
    fields = top.fields(*_TOP)
    fields["schema_version"].integer(SCHEMA_VERSION, SCHEMA_VERSION)
    model, data = fields["model"].fields("id", "weights_sha256"), fields["data"].fields("description", "sha256")
    options = fields["options"].fields("method", "smooth", "rotate", "correct_bias", "accuracy", "measure")
    layers = tuple(_read_layer(name, member) for name, member in fields["layers"].members().items())
    kept = tuple(item.text() for item in fields["kept_layers"].items())
    unknown = sorted(set(kept) - {layer.name for layer in layers})
    if unknown:
        fields["kept_layers"].fail(f"names {unknown[0]}, which is none of the layers")
    return Calibration(
        model["id"].text(),
        model["weights_sha256"].sha256(),
        data["description"].text(),
        data["sha256"].sha256(),
        fields["precision"].choice(FORMATS),
        options["method"].choice(METHODS),
        smooth=_flag(options["smooth"]),
        rotate=_flag(options["rotate"]),
        correct_bias=_flag(options["correct_bias"]),
        layers=layers,
        kept_layers=kept,
        report={name: member.number() for name, member in fields["report"].members().items()},
        accuracy=None if options["accuracy"].is_null() else options["accuracy"].number(),
        measure=None if options["measure"].is_null() else options["measure"].text(),
    )


def _read_layer(name: str, reader: Reader) -> LayerCalibration:
    fields = reader.fields(*(key for key in LayerCalibration.__dataclass_fields__ if key != "name"))
    tokens = {}
    for kind, member in fields["tokens"].members().items():
        values = member.fields(*TokenStatistics.__dataclass_fields__)
        tokens[kind] = TokenStatistics(values["count"].integer(), values["largest"].number(), values["noise"].number())
    exponents, bias = fields["exponents"], fields["bias"]
    return LayerCalibration(
        name,
        fields["stage"].text(),
        fields["largest"].number(),
        tokens,
        _flag(fields["widened"]),
        None if fields["alpha"].is_null() else fields["alpha"].number(),
        None
        if exponents.is_null()
        else tuple(item.integer(-_LARGEST_EXPONENT, _LARGEST_EXPONENT) for item in exponents.items()),
        _flag(fields["rotated"]),
        None if bias.is_null() else tuple(_signed(item) for item in bias.items()),
        fields["error"].number(),
        fields["plain_error"].number(),
    )


def _flag(reader: Reader) -> bool:
    if type(reader.value) is not bool:
        reader.fail("must be true or false")
    return reader.value


def _signed(reader: Reader) -> float:
    value = reader.free()
    if type(value) not in (int, float):
        reader.fail("must be a number")
    return float(value)


def _layer_json(layer: LayerCalibration) -> dict[str, Any]:
    return {
        "stage": layer.stage,
        "largest": layer.largest,
        "tokens": {kind: vars(statistics) for kind, statistics in layer.tokens.items()},
        "widened": layer.widened,
        "alpha": layer.alpha,
        "exponents": None if layer.exponents is None else list(layer.exponents),
        "rotated": layer.rotated,
        "bias": None if layer.bias is None else list(layer.bias),
        "error": layer.error,
        "plain_error": layer.plain_error,
    }
