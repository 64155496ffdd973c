"""What a build chose and measured: layers in higher precision, 8-bit products, tolerances, parity with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from ..typed_json.codec import Fail
from ..typed_json.fields import FLAT, Count, Measure, OneOf, Sha256
from .file_record import FileRecord
from .stages import STAGES

RESTS = ("fp32", "fp16", "bf16")
"""What may be around 8-bit products."""


@dataclass(frozen=True)
class Headroom:
    """The largest magnitude that was measured in a tensor of a stage, and how often it fits into FP16's range."""

    stage: str
    tensor: str
    largest: Measure
    factor: Measure


@dataclass(frozen=True)
class ReducedPrecision:
    """What a 16-bit build kept in float32 beyond the policy, and where FP16's range is nearly used up.

    Attributes:
        kept_layers: stage and module, such as ``"image_encoder: encoder.model.blocks.3.mlp.w3"``, kept in float32
            because of the magnitudes that were measured.
        headroom: the FP16 tensors with the least room, smallest factor first; a bf16 engine has some too.
    """

    kept_layers: tuple[str, ...] = ()
    headroom: tuple[Headroom, ...] = ()


@dataclass(frozen=True)
class Quantization:
    """What INT8 or FP8 was written with.

    Attributes:
        method: of the ranges, and the recoveries. data_hash: None when no calibration data was used.
        kept_layers: layers that could be quantised and are not.
        products: number of matrix products in 8 bits, by stage; a backend has to run as many. Empty where only weights
            are in 8 bits.
        rest: precision of what is not in 8 bits: ``fp32``, ``fp16`` (as in an FP16 engine), or ``bf16`` (float32 files,
            whose transformers OpenVINO runs in bfloat16).
    """

    method: str
    data_hash: Sha256 | None
    kept_layers: tuple[str, ...] = ()
    products: Mapping[Annotated[str, OneOf(STAGES)], Count] = field(default_factory=dict)
    rest: Annotated[str, OneOf(RESTS)] = "fp32"

    @property
    def weights_only(self) -> bool:
        """Whether only weights are in 8 bits: activations have no range without data."""
        return self.data_hash is None


@dataclass(frozen=True)
class Tolerance:
    """An output passes where ``|got - want| <= atol + rtol * |want|``."""

    atol: Measure
    rtol: Measure


@dataclass(frozen=True)
class Golden:
    """The small input with its reference outputs, and the tolerance that each output must keep."""

    file: Annotated[FileRecord, FLAT]
    tolerance: Mapping[str, Tolerance]

    def check_fields(self, fail: Fail) -> None:
        """Refuse a check of nothing."""
        if not self.tolerance:
            fail("tolerance", "must name at least one output")


@dataclass(frozen=True)
class OutputParity:
    """Largest absolute difference from the reference, and that difference relative to the reference."""

    max_abs: Measure
    max_rel: Measure


@dataclass(frozen=True)
class GeometryParity:
    """Differences from the reference as geometry.

    Attributes:
        depth_abs_rel: mean of ``|depth - reference| / reference``.
        ray_degrees, rotation_degrees: largest angle between ray directions, and between camera rotations.
        translation: largest distance between camera centres, relative to the largest reference distance from view 0.
        metric_scale: relative difference of the metric scaling factor.
    """

    depth_abs_rel: Measure
    ray_degrees: Measure
    rotation_degrees: Measure
    translation: Measure
    metric_scale: Measure


@dataclass(frozen=True)
class Parity:
    """Measured parity: over which cases, per output, and as geometry.

    ``measured_with`` says what computed the numbers, such as ``onnxruntime 1.32.0 on CPU: ...``. For a plan that was
    built on a machine without its GPU that is the plan's graph in another backend.
    """

    cases: tuple[str, ...]
    outputs: Mapping[str, OutputParity]
    geometry: GeometryParity
    measured_with: str
