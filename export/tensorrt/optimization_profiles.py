"""From the requests that a bundle serves to the optimisation profiles of each plan.

An optimisation profile gives every dynamic axis of a plan its smallest, usual and largest value. TensorRT chooses
kernels and memory per profile, and refuses shapes outside all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mapengine.runtime.backends.contract import ChunkSizes
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import CHUNKED_STAGES, PATCH_SIZE, AnySize, Range, ServedRequests
from mapengine.runtime.bundle.stages import CHUNKED_LIKE, tensor_shape

MAX_SIZE_PROFILES = 4
"""Sizes that get a profile each. A profile costs build time and context memory; more sizes share one box."""

_USUAL_ROWS, _USUAL_COLUMNS = 28, 37
"""Patches of the usual 4:3 photo, 518 x 392 (width x height)."""


def gpu_chunks(views: Range) -> dict[str, int]:
    """Return the default views per call of the chunked stages on a GPU, no more than a call can have.

    A chunk has to be large enough to fill the GPU and no larger, because the stage's memory grows with it. Eight views
    of 518x518 are 10 960 tokens: their matrix products have thousands of tiles of 128 x 128, many times what any GPU
    computes at once. The dense head works on maps of full resolution, which fill a GPU with one view; four amortise the
    launches of its many small layers. For the giant network in FP16 the plans reserve 0.4 GB (encoder) and 1.0 GB
    (head) for that, as the builder of TensorRT-RTX reports; nobody has tuned these counts on a GPU yet.
    """
    chunks = ChunkSizes(
        image_encoder=min(8, views.max), geometry_encoder=min(8, views.max), dense_head=min(4, views.max)
    )
    return chunks.to_json()


def stage_profiles(requests: ServedRequests, stage: str, backend: str) -> tuple[dict[str, Range], ...]:
    """Return the optimisation profiles of a stage: disjoint in views or sizes, together everything that the bundle
    serves.

    * A chunked stage owns 1 to its chunk size, because the last chunk of a call is any remainder.
    * Up to ``MAX_SIZE_PROFILES`` sizes are a profile each, with nothing left dynamic but the views: kernels for known
      sizes are the fastest. More sizes, or all, are one box of rows and columns.
    * ``tensorrt`` times its kernels at the usual value of a profile and uses the winners in all of it. In the
      aggregator, where attention over all views grows with their square, the best kernels for 4 views are not those
      for 32, so its views are split: up to the usual count, tuned there, and above, tuned at the largest. The plan
      holds the weights once. ``tensorrt-rtx`` compiles kernels for the shapes that it meets at run time, so a split
      would cost it build time and gain nothing.

    Args:
        requests: of the bundle.
        stage: its name.
        backend: ``"tensorrt"`` or ``"tensorrt-rtx"``.

    Returns:
        Ranges of the axes ``views`` (aggregator) or ``views_in_chunk`` (the others), ``patch_rows`` and
        ``patch_columns``; the sides of images in pixels follow from them. A request runs in the first that covers it.
    """
    stage = CHUNKED_LIKE.get(stage, stage)
    if stage in CHUNKED_STAGES:
        axis, counts = "views_in_chunk", [_chunk_range(requests, stage)]
    else:
        axis, counts = "views", _view_ranges(requests.views, split=backend == "tensorrt")
    return tuple({axis: views, **sides} for sides in _size_ranges(requests) for views in counts)


def shape_ends(spec: TensorSpec, profile: Mapping[str, Range]) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, usual and largest shape of a tensor in a profile."""
    return tuple(
        tensor_shape(spec, {axis: getattr(limits, end) for axis, limits in profile.items()})
        for end in ("min", "opt", "max")
    )


def _chunk_range(requests: ServedRequests, stage: str) -> Range:
    largest = min(requests.chunks.get(stage, requests.views.max), requests.views.max)
    return Range(1, min(requests.views.opt, largest), largest)


def _view_ranges(views: Range, *, split: bool) -> list[Range]:
    if not split or views.opt == views.max:
        return [views]
    return [Range(views.min, views.opt, views.opt), Range(views.opt + 1, views.max, views.max)]


def _size_ranges(requests: ServedRequests) -> list[dict[str, Range]]:
    if isinstance(requests.sizes, AnySize):
        low, high = requests.sizes.min // PATCH_SIZE, requests.sizes.max // PATCH_SIZE
        return [_sides(Range(low, _clamp(usual, low, high), high) for usual in (_USUAL_ROWS, _USUAL_COLUMNS))]
    sizes = [(height // PATCH_SIZE, width // PATCH_SIZE) for width, height in requests.sizes]
    if len(sizes) <= MAX_SIZE_PROFILES:
        return [_sides([Range(side, side, side) for side in size]) for size in sizes]
    # The user names the usual size first.
    return [_sides(Range(min(sides), sides[0], max(sides)) for sides in zip(*sizes, strict=True))]


def _sides(ranges: Iterable[Range]) -> dict[str, Range]:
    return dict(zip(("patch_rows", "patch_columns"), ranges, strict=True))


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
