"""What a flavour of TensorRT is known not to do, refused in a sentence before a build of minutes fails in the middle.

Every limit was met with TensorRT-RTX 1.7.1; the tests build tiny plans that still meet it, so a version that lifts one
shows up there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mapengine.kernels.tuning import FP8_FROM
from mapengine.runtime.backends.cuda.driver import driver_problem
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.bundle.backend_info import parse_version
from mapengine.runtime.bundle.requests import CHUNKED_STAGES, Range, ServedRequests
from mapengine.runtime.errors import BackendUnavailableError, ExportError, InputError

from .graph import StageGraph
from .optimization_profiles import stage_profiles

MAX_SCORE_BYTES = 31 * 2**30
"""Largest matrix of attention scores that a plan is built for.

Two of them exist at a time (scores and their exponentials; the builder reports twice the matrix as memory of the plan),
and 64 GiB of workspace is what the library builds with at most where no limit is given. A plan below the bound may
still need more than the GPU at hand has at its largest request; it serves smaller ones.
"""
WARN_SCORE_BYTES = 256 * 2**20
"""Scores from here on are worth a warning: a fused attention holds none."""


def check_gpu(flavour: Flavour) -> None:
    """Refuse a build that needs a GPU where there is none.

    Raises:
        BackendUnavailableError: ``tensorrt`` times its kernels on the GPU that the plan is for.
    """
    problem = None if flavour.is_rtx else driver_problem()
    if problem is not None:
        raise BackendUnavailableError(
            f"tensorrt compiles a plan on the GPU that runs it, and {problem}; build on that device, or use "
            "--backend tensorrt-rtx, which needs no GPU to build"
        )


def check_limits(
    flavour: Flavour,
    *,
    precision: str,
    attention: str,
    requests: ServedRequests,
    heads: Mapping[str, int],
    targets: Sequence[str] = (),
    weights_only: bool = False,
) -> tuple[str, ...]:
    """Refuse what cannot be built, from the options alone, before anything is exported.

    Args:
        precision: of the bundle; ``fp32`` has float32 attention. attention: form of the export.
        heads: attention heads per stage that has attention (``image_encoder``, ``aggregator``).
        targets: compute capabilities such as ``8.9``; empty for the flavour's default.
        weights_only: whether INT8 is in the weights alone.

    Returns:
        Warnings, one sentence each.

    Raises:
        InputError: the combination fails on this flavour; the message names the option to change.
        BackendUnavailableError: there is no GPU to build on.
    """
    check_gpu(flavour)
    for target in targets if precision == "fp8" else ():
        if parse_version(target) < divmod(FP8_FROM, 10):
            raise InputError(
                f"sm_{target.replace('.', '')} has no FP8; use --precision int8 or fp16, or a target from sm_89"
            )
    if precision == "int8" and flavour.is_rtx and not weights_only:
        return (
            f"{flavour.name} documents INT8 for weights only, and this plan asks for INT8 on both sides of a product; "
            "use --precision fp8 (from sm_89), or --precision int8 --weights-only, if it is not faster than fp16",
        )
    if precision != "fp32" or not flavour.is_rtx:
        return ()
    if attention == "attention":
        raise InputError(
            f"{flavour.name} has no kernel for the operator Attention in float32; use --attention mha, or "
            "--precision fp16"
        )
    warnings: list[str] = []
    for stage, count in heads.items():
        profiles = stage_profiles(requests, stage, flavour.name)
        try:
            warnings += check_scores(stage, flavour, count, profiles)
        except ExportError as error:
            raise InputError(str(error)) from None
    return tuple(warnings)


def check_graph(
    name: str, flavour: Flavour, graph: StageGraph, profiles: Sequence[Mapping[str, Range]]
) -> tuple[str, ...]:
    """Refuse a stage that this flavour cannot build, from its graph.

    Args:
        name: of the stage.
        profiles: optimisation profiles of the stage.

    Returns:
        Warnings, one sentence each.

    Raises:
        ExportError: a node that has no kernel, named with what to do.
    """
    if not flavour.is_rtx:
        return ()
    for node, product in graph.products.items():
        if product.operator == "ConvTranspose" and product.dtype == "bfloat16":
            raise ExportError(
                f"{name}: {flavour.name} has no transposed convolution in bfloat16, which {node} is; keep it in "
                "float16 or float32 (the precision policy of mapengine does), or use --precision fp16"
            )
    full = [block for block in graph.attention if block.dtype == "float32"]
    if not full:
        return ()
    if full[0].operator == "Attention":
        raise ExportError(
            f"{name}: {flavour.name} has no kernel for the operator Attention in float32, which {full[0].nodes[0]} "
            "is; export with --attention mha, or use --precision fp16"
        )
    heads = full[0].heads
    return () if heads is None else check_scores(name, flavour, heads, profiles)


def check_scores(name: str, flavour: Flavour, heads: int, profiles: Sequence[Mapping[str, Range]]) -> tuple[str, ...]:
    """Refuse float32 attention whose scores would not fit: without a fused kernel all N x N of them are held.

    Raises:
        ExportError: more than ``MAX_SCORE_BYTES``; the message names the precision, or the views that would fit.
    """
    largest = max(score_bytes(name, heads, profile) for profile in profiles)
    if largest <= WARN_SCORE_BYTES:
        return ()
    held = f"{flavour.name} does not fuse float32 attention, so {name} holds {_size(largest)} of scores twice"
    if largest <= MAX_SCORE_BYTES:
        return (f"{held} at the largest request; --precision fp16 or bf16 holds none",)
    chunked, views = name in CHUNKED_STAGES, max(_views(profile).max for profile in profiles)
    share = MAX_SCORE_BYTES / largest
    fitting = int(views * (share if chunked else math.sqrt(share)))
    what = "chunks of at most" if chunked else "at most"
    remedy = f"build for {what} {fitting} views of this size" if fitting else "build for smaller sizes"
    raise ExportError(
        f"{held} at {views} views, over the bound of {_size(MAX_SCORE_BYTES)}; use --precision fp16 or bf16, "
        f"or {remedy}"
    )


def score_bytes(name: str, heads: int, profile: Mapping[str, Range]) -> int:
    """Return the bytes of one float32 score matrix at the largest request of a profile.

    The encoder's views attend to themselves, one by one; in the aggregator's widest layers all tokens of all views do.
    Either way one token per view and one more are added, as the v1.1 network has them.
    """
    patches, views = profile["patch_rows"].max * profile["patch_columns"].max, _views(profile).max
    if name in CHUNKED_STAGES:
        return 4 * heads * views * (patches + 1) ** 2
    return 4 * heads * (views * (patches + 1) + 1) ** 2


def _views(profile: Mapping[str, Range]) -> Range:
    return profile["views_in_chunk"] if "views_in_chunk" in profile else profile["views"]


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
