"""What a calibration found, as a readable JSON file (``docs/contributing/quantization.md``)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from mapengine.runtime.errors import CalibrationError
from mapengine.runtime.system.reading import read_file, shown_path
from mapengine.runtime.typed_json.codec import Fail, decode, encode
from mapengine.runtime.typed_json.fields import Bounds, Count, Key, KeyedBy, Measure, OneOf, Sha256
from mapengine.runtime.typed_json.own_hash import ZEROS, has_own_hash, with_own_hash
from mapengine.runtime.typed_json.text import Document, parse_json
from mapengine.runtime.writing.files import atomic_write

from .rounding import FORMATS
from .selection import METHODS

SCHEMA_VERSION = 2
"""Version 1 had no hash of itself: what was damaged was read like what was measured."""
_LARGEST_EXPONENT = 64
_LARGEST = float(np.finfo(np.float32).max)
_MAX_BYTES = 256 * 2**20
"""A network of a billion parameters has a calibration of a few megabytes."""
_HASH = "calibration_sha256"

UNFINISHED = "unfinished calibration"
"""What the file of an interrupted calibration is."""


@dataclass(frozen=True)
class TokenStatistics:
    """One kind of tokens at the input of a layer.

    Attributes:
        count: numbers that were seen. largest: their largest magnitude.
        noise: power of the error of rounding and clipping them, over their power.
    """

    count: Count
    largest: Measure
    noise: Measure


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
    largest: Annotated[float, Bounds(0, _LARGEST)]
    tokens: Mapping[str, TokenStatistics]
    widened: bool = False
    alpha: Measure | None = None
    exponents: tuple[Annotated[int, Bounds(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)], ...] | None = None
    rotated: bool = False
    bias: tuple[Annotated[float, Bounds(-_LARGEST, _LARGEST)], ...] | None = None
    error: Measure = 0.0
    plain_error: Measure = 0.0


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

    schema_version: Annotated[int, Bounds(SCHEMA_VERSION, SCHEMA_VERSION)] = field(default=SCHEMA_VERSION, kw_only=True)
    model_id: Annotated[str, Key("model.id")]
    weights_sha256: Annotated[Sha256, Key("model.weights_sha256")]
    data: Annotated[str, Key("data.description")]
    data_sha256: Annotated[Sha256, Key("data.sha256")]
    precision: Annotated[str, OneOf(tuple(FORMATS))]
    method: Annotated[str, Key("options.method"), OneOf(METHODS)]
    smooth: Annotated[bool, Key("options.smooth")]
    rotate: Annotated[bool, Key("options.rotate")]
    correct_bias: Annotated[bool, Key("options.correct_bias")]
    layers: Annotated[tuple[LayerCalibration, ...], KeyedBy("name")]
    kept_layers: tuple[str, ...] = ()
    report: Mapping[str, Measure] = field(default_factory=dict)
    accuracy: Annotated[Measure | None, Key("options.accuracy")] = None
    measure: Annotated[str | None, Key("options.measure")] = None

    def check_fields(self, fail: Fail) -> None:
        """Refuse layers in higher precision that there are none of."""
        unknown = sorted(set(self.kept_layers) - {layer.name for layer in self.layers})
        if unknown:
            fail("kept_layers", f"names {unknown[0]}, which is none of the layers")

    @property
    def quantized(self) -> tuple[LayerCalibration, ...]:
        """The layers that are quantised."""
        kept = set(self.kept_layers)
        return tuple(layer for layer in self.layers if layer.name not in kept)

    def described(self) -> str:
        """Return the method in a few words, for manifests."""
        recoveries = {"smoothing": self.smooth, "rotation": self.rotate, "bias correction": self.correct_bias}
        return ", ".join([f"{self.method} ranges", *(name for name, used in recoveries.items() if used)])

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


def save_calibration(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write the file, with a hash of itself, whole or not at all.

    Raises:
        OutputError: it could not be written.
    """
    document = encode(calibration)
    layers = document.pop("layers")
    # A layer per line: with indentation the lists of channels would be a number per line.
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(layer)}" for name, layer in layers.items())
    head = json.dumps({**document, _HASH: ZEROS}, indent=1, allow_nan=False).removesuffix("\n}")
    with atomic_write(path, "calibration") as temporary:
        temporary.write_bytes(with_own_hash(f'{head},\n "layers": {{\n{lines}\n }}\n}}\n', _HASH))


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read a file of :func:`save_calibration`.

    Raises:
        CalibrationError: it is missing, was changed since it was written, or is of another version.
    """
    name = shown_path(path)
    try:
        raw = read_file(path, _MAX_BYTES)
    except OSError as error:
        raise CalibrationError(f"{name}: cannot be read ({error.strerror}); check the path, or calibrate") from error
    document = Document(name, "it is no calibration of this version, calibrate again", CalibrationError)
    parsed = parse_json(raw, document)
    digest = parsed.pop(_HASH, None) if isinstance(parsed, dict) else None
    calibration = decode(Calibration, parsed, document)
    if not has_own_hash(raw, digest):
        raise CalibrationError(
            f"{name}: was changed after it was written (it differs from the hash in it); copy the file again, or "
            "calibrate again"
        )
    return calibration
