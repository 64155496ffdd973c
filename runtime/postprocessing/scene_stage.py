"""The stage ``scene``: post-processing as a graph, and what a caller gives it and takes from it.

It reads the dense head's outputs of a chunk of views, and gives what ``infer`` returns besides those that are passed on
as they are. Its options are one input, so that one graph serves every call.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..geometry import Array
from ..inputs.normalization import denormalize_image
from ..options import OUTPUTS, InferOptions
from .edges import edge_cosine

OPTIONS = (
    "apply_mask",
    "mask_edges",
    "edge_cosine",
    "edge_depth_threshold",
    "apply_confidence_mask",
    "confidence_rank",
    "confidence_fraction",
)
"""What the numbers of the input ``options`` are, in order; see :func:`option_values`."""

READS = {
    "ray_directions": "ray_directions",
    "unscaled_depth_along_ray": "depth_along_ray",
    "confidence": "confidence",
    "mask_logits": "mask_logits",
    "unscaled_cam_trans": "cam_trans",
    "cam_quats": "cam_quats",
}
"""Inputs of the stage, and the outputs of the dense head that they are."""

PASSED_ON = {
    "ray_directions": "ray_directions",
    "cam_quats": "cam_quats",
    "conf": "confidence",
    "non_ambiguous_mask_logits": "mask_logits",
}
"""Outputs of ``infer`` that are those of the dense head unchanged."""

PLAIN_IMAGE = "img_no_norm"
"""The output that is made where the images are, on the host, instead of being copied there."""


def with_plain_images(
    views: Generator[dict[str, Array], None, None], images: Sequence[Array], outputs: Collection[str], norm_type: str
) -> Iterator[dict[str, Array]]:
    """Yield the results of the stage, with plain images if ``outputs`` names them, in the order of ``infer``."""
    with closing(views):
        for result, image in zip(views, images, strict=True):
            if PLAIN_IMAGE in outputs:
                result[PLAIN_IMAGE] = denormalize_image(image, norm_type)
            yield {name: result[name] for name in OUTPUTS if name in result}


def runs_in_stage(options: InferOptions) -> bool:
    """Return whether the stage can answer a call: multi-view confidence compares all views of it, not a chunk."""
    return not options.use_multiview_confidence


def present_outputs(outputs: Collection[str], options: InferOptions, kept: Array | None) -> set[str]:
    """Return which of ``outputs`` the dictionary of a view has; ``kept`` as in :func:`.predictions.finish_view`."""
    return set(outputs) if options.apply_mask or kept is not None else set(outputs) - {"mask"}


def option_values(options: InferOptions, pixels: int, dtype: DTypeLike = np.float32) -> NDArray[np.floating]:
    """Return the input ``options`` for images of so many pixels.

    A flag is 1 or 0. ``edge_cosine`` is the cosine of the angle that is an edge. Of the confidences of an image in
    order, from number 0, the threshold is that of number ``confidence_rank`` and ``confidence_fraction`` of the way to
    the next.
    """
    position = options.confidence_percentile / 100 * (pixels - 1)
    rank = min(math.floor(position), max(pixels - 2, 0))
    values = {
        "apply_mask": options.apply_mask,
        "mask_edges": options.apply_mask and options.mask_edges,
        "edge_cosine": edge_cosine(options.edge_normal_threshold),
        "edge_depth_threshold": options.edge_depth_threshold,
        "apply_confidence_mask": options.apply_mask and options.apply_confidence_mask,
        "confidence_rank": rank,
        "confidence_fraction": position - rank,
    }
    with np.errstate(over="ignore"):
        return np.array([values[name] for name in OPTIONS], dtype)
