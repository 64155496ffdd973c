"""A scene straight from what the network says of its views, without the dictionaries of ``infer`` in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..geometry import Array, all_finite
from ..inputs.normalization import denormalize_image, image_bytes
from ..inputs.prepared import PreparedView
from ..inputs.raw_view import AnyView
from ..inputs.stored_view import of_file, time_of
from ..options import InferOptions
from .frame import alignment_of, move_arrays
from .scene import Scene
from .scene_arrays import leave_out_what_is_not_finite, new_arrays

Finish = Callable[[InferOptions, Sequence[str], Sequence[Mapping[str, Array]]], Iterable[Mapping[str, Array]]]
"""Yields ``infer``'s answer view by view: from options, names of outputs, and per view the arrays to write into."""

_PLACES = {
    "pts3d": "points",
    "conf": "confidence",
    "depth_z": "depth",
    "intrinsics": "intrinsics",
    "camera_poses": "poses",
    "mask": "mask",
}
"""Where in a scene an output of ``infer`` stands."""

ASSEMBLED = (*_PLACES, "metric_scaling_factor")
"""The outputs of ``infer`` that a scene is assembled of; its colours are the views' own."""


def assemble_scene(
    finish: Finish,
    views: Sequence[PreparedView],
    names: Sequence[str],
    options: InferOptions,
    *,
    frame: str = "view0",
    sources: Sequence[AnyView] = (),
    made_by: str = "",
    data_norm_type: str = "dinov2",
) -> Scene:
    """Return the scene of a call: what ``Scene.from_predictions`` makes of the answer of ``infer``.

    Post-processing writes into the arrays of the scene.

    Args:
        finish: yields the answer, see :data:`Finish`.
        views: with a batch of one. names: of the views.
        options: of the call.
        frame: one of :data:`.frame.FRAMES`. sources: the views before they were prepared.
        made_by: the label of the engine.
        data_norm_type: of the images.
    """
    if not options.apply_mask:  # then the network's own mask holds, and a scene has nothing outside its mask
        options = replace(options, apply_mask=True, mask_edges=False, apply_confidence_mask=False)
    _, height, width = views[0].shape
    arrays = new_arrays(len(views), height, width)
    into = []
    for index in range(len(views)):
        own = {key: arrays[name][index : index + 1] for key, name in _PLACES.items()}
        into.append({key: value[..., None] if key in ("depth_z", "mask") else value for key, value in own.items()})
    scale = 1.0
    for index, (view, result) in enumerate(zip(views, finish(options, ASSEMBLED, into), strict=True)):
        if index == 0:
            scale = float(result["metric_scaling_factor"][0, 0])
        if view.pixels is not None:
            arrays["colors"][index] = view.pixels[0]
        else:
            arrays["colors"][index] = image_bytes(denormalize_image(view.normalized, data_norm_type)[0])
        one = {name: array[index] for name, array in arrays.items()}
        if not all(all_finite(one[name]) for name in ("points", "depth", "confidence")):
            leave_out_what_is_not_finite(one["points"], one["depth"], one["confidence"], one["mask"])
    alignment = alignment_of(arrays["poses"], views, options) if frame == "given" else None
    if alignment is not None:
        move_arrays(arrays, alignment)
        scale *= alignment.scale
    originals: dict[str, Any] = {}
    pixels = [view.original_pixels for view in views if view.original_pixels is not None]
    if pixels and len(pixels) == len(sources):
        originals["original_pixels"] = np.stack(pixels)
        originals["original_sizes"] = np.array([source.size for source in sources], np.int64)
        originals["sources"] = tuple(of_file(source) for source in sources)
    times = [time_of(source) for source in sources]
    if None not in times and times:
        originals["times"] = np.array(times, np.float64)
    return Scene.of_finished(arrays, scale, names, alignment=alignment, made_by=made_by, **originals)
