"""How far an engine may be off the float32 reference in its golden check.

The table says it for a number format. What rounds more than the format has to is measured, by running the network with
that rounding: layers in 8 bits in PyTorch (``recipe.py``), our own attention kernels here. For these the aggregator is
cut at the attention that is left to kernels, and its segments run in ONNX Runtime on the CPU with the kernels' plain
twins (``attention/twins.py``) between them, and again with exact attention. All else is float32 with the weights of the
bundle: other rounding would fall otherwise in the two runs and hide what the kernels cost. It needs no PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import Engine
from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.build_record import Tolerance
from mapengine.runtime.bundle.kernel_attention import KernelAttention
from mapengine.runtime.bundle.manifest import STAGES, Golden, StageSpec
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.golden import unpack
from mapengine.runtime.checks.parity import Predictions, measure_parity
from mapengine.runtime.errors import CalibrationError, warn

from ..attention.choice import KernelChoice
from ..attention.segments import Segment, cut_at_kernels
from ..attention.twins import exact_attention, twin_attention
from ..precision import load_runnable
from .parity_cases import GOLDEN, served_cases

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Allowed difference of an engine from the float32 reference, relative to the largest value of an output.

For float32 rounding stays below a tenth of it, and an engine that silently ran in half precision is outside. For the
16-bit formats it is twenty units of the last place (2**-11 and 2**-8): what the blocks' independent rounding adds up to
stays well inside, a kernel that computes something else does not.
"""

MARGIN = 2.0
"""Times the error of the rounded network that an engine's may have. Kernels add in another order, so that numbers near
the middle of a step round to the other side and errors differ from run to run, but not in size; a kernel that computes
something else is outside."""

AUTOCAST_MARGIN = 4.0
"""Times the error of PyTorch's BF16 autocast that a backend may have which rounds to BF16 by itself. OpenVINO rounds
more than autocast (LayerNorm, softmax and gates as well), by two bits at most in what was measured."""

LEAST_DECIBELS, USUAL_DECIBELS = 10.0, 20.0
"""Signal-to-noise ratio against float32 below which a network in 8 bits is refused, and warned of.

The tolerance of a golden check follows from what rounding costs, so that ranges without a meaning would pass it. The
worst output keeps 40 dB in INT8 (``preset:tiny``, ``preset:nano``), and 27 where a network of the released size has
outliers. With ranges a million times too small it keeps 5 dB and less; with one layer's so, 17 and 19.
"""

_JUDGED = (
    "ray_directions",
    "depth_along_ray",
    "cam_quats",
    "metric_scaling_factor",
    "conf",
    "non_ambiguous_mask_logits",
)
"""What every view has a size of its own in; the translation of a single view is all noise."""

Arrays = Mapping[str, NDArray[Any]]
Attend = Callable[[KernelAttention, Arrays, int], NDArray[np.float32]]
"""Attention of tensors by name, for views of so many tokens."""


def rounding_tolerance(
    found: Mapping[str, Predictions], wanted: Mapping[str, Predictions], measured_with: str
) -> dict[str, float]:
    """Return the allowed difference per output, relative to its largest value: :data:`MARGIN` times what rounding cost.

    Args:
        found: predictions of the rounded network by case.
        wanted: of the one that does not round so.
        measured_with: for error messages.
    """
    parity = measure_parity(found, wanted, measured_with)
    return {key: MARGIN * output.max_rel for key, output in parity.outputs.items()}


def check_rounding(found: Mapping[str, Predictions], wanted: Mapping[str, Predictions], precision: str) -> None:
    """Refuse a network that rounding leaves too little of, and warn of one that has far less than is usual.

    Args:
        found, wanted: as in :func:`rounding_tolerance`.
        precision: for the message.

    Raises:
        CalibrationError: an output has less than :data:`LEAST_DECIBELS`.
    """
    name, decibels = min(signal_to_noise(found, wanted).items(), key=lambda item: item[1])
    if decibels >= USUAL_DECIBELS:
        return
    problem = (
        f"{precision} keeps {decibels:.0f} dB of {name} against float32, and at least {USUAL_DECIBELS:.0f} are usual"
    )
    if decibels < LEAST_DECIBELS:
        raise CalibrationError(f"{problem}: its ranges do not belong to this network; calibrate this model again")
    warn(f"{problem}; calibrate with more data, or keep layers in higher precision (`mapengine calibrate --accuracy`)")


def signal_to_noise(found: Mapping[str, Predictions], wanted: Mapping[str, Predictions]) -> dict[str, float]:
    """Return the signal-to-noise ratio of every judged output, over all views of all cases, in dB."""
    pairs = [pair for case in wanted for pair in zip(found[case], wanted[case], strict=True)]
    ratios = {}
    for name in _JUDGED:
        noise = sum(float(np.square(got[name].astype(np.float64) - want[name]).sum()) for got, want in pairs)
        signal = sum(float(np.square(want[name].astype(np.float64)).sum()) for _, want in pairs)
        ratios[name] = 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))
    return ratios


def kernel_tolerance(bundle: Bundle, kernels: Mapping[str, KernelChoice], scratch: Path) -> dict[str, float]:
    """Measure the difference per output that kernels add, over the golden input and the parity cases.

    Args:
        bundle: ONNX stages, whose aggregator has its attention as ``mha`` in the layers of ``kernels``.
        kernels: attention modules with what computes them.
        scratch: empty folder for the segments.

    Returns:
        See :func:`rounding_tolerance`.

    Raises:
        BackendUnavailableError: ONNX Runtime is not installed.
        ExportError: the stage cannot be cut.
    """
    library = OnnxRuntimeBackend()
    manifest = bundle.manifest
    spec = manifest.stages["aggregator"]
    segments, attention = cut_at_kernels(
        bundle.stage_path("aggregator"),
        scratch,
        spec,
        kernels,
        manifest.model.extra_tokens,
        manifest.shares_by_block,
    )

    def load(path: Path) -> StageRunner:
        return load_runnable(library, path.stem, path, scratch, rounding=False)

    stages = {name: load(bundle.stage_path(name)) for name in STAGES if name != "aggregator"}
    parts = [load(segment.path) for segment in segments]
    norm = manifest.model.data_norm_type
    golden = [{**view, "data_norm_type": [norm]} for view in unpack(bundle.golden())[0]]
    cases = {GOLDEN: golden, **served_cases(norm, manifest.requests)}

    def predictions(attend: Attend) -> dict[str, Predictions]:
        chain = _Chain(spec, segments, parts, attention, attend, manifest.model.extra_tokens)
        engine = Engine(bundle, library, Pipeline({**stages, "aggregator": chain}))
        return {name: engine.predict(given) for name, given in cases.items()}

    wanted = predictions(lambda entry, tensors, _: exact_attention(entry, tensors))
    return rounding_tolerance(predictions(twin_attention), wanted, "ONNX Runtime, with the kernels' twins")


def widen(golden: Golden, added: Mapping[str, float]) -> Golden:
    """Return a golden check that allows for ``added`` more, relative to the largest value of an output."""
    tolerance = {}
    for key, old in golden.tolerance.items():
        limit = old.rtol + added.get(key, 0.0)
        tolerance[key] = Tolerance(atol=old.atol * (limit / old.rtol), rtol=limit)
    return replace(golden, tolerance=tolerance)


class _Chain:
    """Segments with attention between them, as one stage on the CPU."""

    def __init__(
        self,
        spec: StageSpec,
        segments: tuple[Segment, ...],
        parts: list[StageRunner],
        attention: tuple[KernelAttention, ...],
        attend: Attend,
        extra_tokens: int,
    ) -> None:
        self._spec = spec
        self._parts = tuple(zip(segments, parts, (*attention, None), strict=True))
        self._attend = attend
        self._extra_tokens = extra_tokens

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """See :class:`mapengine.runtime.backends.contract.StageRunner`."""
        axes = {
            axis: size
            for tensor in self._spec.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        }
        view_tokens = axes["patch_rows"] * axes["patch_columns"] + self._extra_tokens
        tensors: dict[str, Any] = dict(inputs)
        for segment, part, entry in self._parts:
            tensors |= part.run({tensor.name: tensors[tensor.name] for tensor in segment.inputs})
            if entry is not None:
                tensors[entry.out] = self._attend(entry, tensors, view_tokens)
        return {tensor.name: tensors[tensor.name] for tensor in self._spec.outputs}
