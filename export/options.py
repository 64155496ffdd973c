"""Options of a build: which backend takes which precision and attention form, and the requests that it serves."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mapengine.runtime.backend_table import (
    BACKENDS,
    BACKENDS_BY_NAME,
    EIGHT_BIT,
    GPU_BACKENDS,
    NAMES,
    TENSORRT_BACKENDS,
)
from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.bundle.backend_info import parse_version
from mapengine.runtime.bundle.requests import MAX_SIDE, MAX_VIEWS, AnySize, Range, ServedRequests
from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.resolutions import RESOLUTION_TABLES

from .attention.choice import AttentionChoice
from .model.config import PATCH_SIZE
from .tensorrt.settings import PlanSettings

if TYPE_CHECKING:
    from .graphs.tracing import AttentionExport

RESTS = ("fp32", "bf16")
"""What int8 for OpenVINO may leave; for the other backends there is no choice."""

_LARGEST_SIDE = 518
"""Longest side of the sizes that MapAnything was trained at (set 518)."""

_PATCHES_AT_ONCE = 640
"""Patches that are work enough for one call of the image encoder on a processor."""

_ATTENTION_OPERATOR_SINCE = (10, 14)
"""First TensorRT whose parser reads the standard ``Attention`` operator; older ones get MatMul-Softmax-MatMul."""


def check_options(
    precision: str,
    backend: str,
    attention: str,
    calibration: object | None,
    settings: PlanSettings,
    rest: str | None = None,
    weights_only: bool = False,
) -> None:
    """Refuse what this version does not build.

    Raises:
        InputError: the message names the option and the values that it takes.
    """
    if backend not in NAMES:
        raise InputError(f"backend {backend!r} is unknown; use {', '.join(NAMES)}")
    built = BACKENDS_BY_NAME[backend].precisions
    if precision not in built:
        served = [spec.name for spec in BACKENDS if precision in spec.precisions]
        fix = f", or the backend {' or '.join(served)}" if served else ""
        raise InputError(
            f"precision {precision!r} is not built for {backend} by this version; use {' or '.join(built)}{fix}"
        )
    kernels = AttentionChoice.parse(attention).kernels
    if kernels and backend not in GPU_BACKENDS:
        raise InputError(
            f"attention {attention!r} is for {', '.join(GPU_BACKENDS)}, whose GPUs our kernels run on; leave "
            f"it out for {backend}"
        )
    if kernels and precision == "fp32":
        raise InputError(f"attention {attention!r} is in 16 bits; use the precision fp16 or bf16, or attention native")
    if calibration is not None and precision not in EIGHT_BIT:
        raise InputError(f"calibration is for int8 and fp8; leave it out for {precision}")
    if weights_only and precision != "int8":
        raise InputError(f"weights_only is for int8; leave it out for {precision}")
    if weights_only and calibration is not None:
        raise InputError("weights_only rounds no activations, which a calibration is for; leave out one of the two")
    if rest is not None and rest not in RESTS:
        raise InputError(f"rest {rest!r} is not built; use {' or '.join(RESTS)}")
    if rest is not None and (precision, backend) != ("int8", "openvino"):
        raise InputError(f"rest is for int8 with openvino; leave it out for {precision} with {backend}")
    check_plan_settings(settings, backend)


def check_plan_settings(settings: PlanSettings, backend: str) -> None:
    """Refuse settings that a backend does not have.

    Raises:
        InputError: the message names the settings and the backends that have them.
    """
    if settings != PlanSettings() and backend not in TENSORRT_BACKENDS:
        raise InputError(
            f"targets, memory_limit and optimization_level are options of {' and '.join(TENSORRT_BACKENDS)}; leave "
            f"them out for {backend}"
        )


def attention_form(attention: str, backend: str, version: str) -> AttentionExport:
    """Return how a backend's own attention is written: as asked for, or else in the form that it fuses."""
    form = AttentionChoice.parse(attention).form
    if form != "auto":
        return cast("AttentionExport", form)
    if backend != "tensorrt":
        return "mha"
    return "attention" if parse_version(version) >= _ATTENTION_OPERATOR_SINCE else "matmul"


def processor_chunks(sizes: AnySize | Sequence[tuple[int, int]], views: Range) -> dict[str, int]:
    """Return the views per call of the chunked stages on a processor.

    One view of usual size is work enough for a call, more of them only cost memory. Views of a few dozen patches are
    not: products of a few rows are slow, and every call has its own costs. So the encoder of images takes as many
    together as have :data:`_PATCHES_AT_ONCE` patches at the largest size. The other stages gain nothing: their work is
    per pixel (``docs/results/cpu-choices.md``).
    """
    largest = _LARGEST_SIDE**2 if isinstance(sizes, AnySize) else max(width * height for width, height in sizes)
    together = _PATCHES_AT_ONCE * PATCH_SIZE**2 // largest
    return ChunkSizes(image_encoder=max(1, min(together, views.max))).to_json()


def served_requests(
    views: tuple[int, int, int], resolutions: str | Sequence[tuple[int, int]], chunks: Mapping[str, int]
) -> ServedRequests:
    """Return the requests of a bundle from build options.

    Args:
        views: fewest, usual and most views of a call.
        resolutions: ``"all"``, or (width, height) pairs.
        chunks: views per call of each chunked stage.

    Raises:
        InputError: counts that are not 1 <= min <= opt <= max, or a size that is not a multiple of 14; both must be
            whole numbers that the manifest can hold.
    """
    counts = view_range(views)
    if isinstance(resolutions, str):
        if resolutions != "all":
            raise InputError(f"resolutions is {resolutions!r}; give 'all' or (width, height) pairs")
        return ServedRequests(counts, AnySize(PATCH_SIZE, _LARGEST_SIDE), chunks)
    pairs = [_whole_numbers(pair) for pair in resolutions] if isinstance(resolutions, Iterable) else [None]
    if any(pair is None or len(pair) != 2 for pair in pairs):
        raise InputError(f"resolutions is {resolutions!r}; give 'all' or (width, height) pairs of whole numbers")
    sizes = tuple(dict.fromkeys((pair[0], pair[1]) for pair in pairs if pair is not None))
    for width, height in sizes:
        if max(width, height) > MAX_SIDE:
            raise InputError(f"resolution {width}x{height} is larger than {MAX_SIDE} pixels; give a smaller one")
        if width < 1 or height < 1 or width % PATCH_SIZE or height % PATCH_SIZE:
            near = ", ".join(f"{w}x{h}" for w, h in RESOLUTION_TABLES[518].values())
            raise InputError(
                f"resolution {width}x{height} is not a multiple of {PATCH_SIZE} pixels; sizes of the table are {near}"
            )
    if not sizes:
        raise InputError("resolutions is empty; give 'all' or (width, height) pairs")
    return ServedRequests(counts, sizes, chunks)


def view_range(views: tuple[int, int, int]) -> Range:
    """Return the fewest, usual and most views of a call.

    Raises:
        InputError: not three whole numbers with 1 <= min <= opt <= max.
    """
    counts = _whole_numbers(views)
    if counts is None or len(counts) != 3:
        raise InputError(f"views is {views!r}; give the fewest, usual and most views of a call, as in (1, 4, 32)")
    low, opt, high = counts
    if not 1 <= low <= opt <= high <= MAX_VIEWS:
        raise InputError(f"views {low}:{opt}:{high} is not min:opt:max with 1 <= min <= opt <= max <= {MAX_VIEWS}")
    return Range(low, opt, high)


def _whole_numbers(values: Any) -> tuple[int, ...] | None:
    """Return values as plain integers (those of NumPy count), or None: 56.5 must not become 56."""
    try:
        numbers = tuple(values)
        if any(isinstance(number, bool) for number in numbers):
            return None
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        return None
