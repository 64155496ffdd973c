"""A scene as a recording for the Rerun viewer, under the entity paths of MapAnything's own demonstrations."""

from __future__ import annotations

import importlib
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import warn
from ...writing.files import atomic_write
from ...writing.recognition import marker
from ..formats.options import SaveOptions
from ..scene_arrays import SceneArrays, selected_pixels
from .layers import scene_origin

RECORDING_KIND = "scene recording"

_APPLICATION = "MapAnything_Visualization"
_ROOT = "mapanything"
_MOST_PIXELS = 2**26
"""Of all views: a recording is whole in memory, with about 25 bytes a pixel, before it is written."""
_OFF = {"TELEMETRY_ENABLED": "false", "CI": "true"}
"""Rerun's usage statistics are off where continuous integration runs, and its traces where they are not switched on."""
_ON = ("FORCE_RERUN_ANALYTICS",)


def write_recording(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write the recording of one scene; see :func:`record_views`."""
    record_views(path, [scene], scene.mask.size, scene.made_by, options)


def record_views(
    path: str | os.PathLike[str],
    scenes: Iterable[SceneArrays],
    pixels: int,
    made_by: str,
    options: SaveOptions | None = None,
) -> None:
    """Write a recording (``.rrd``) of scenes that are parts of one, such as views that are read one by one.

    View i is ``mapanything/view_i`` (its pose) with ``pinhole`` (its camera), ``pinhole/rgb``, ``pinhole/depth`` and
    ``pinhole/mask``, and its points are ``mapanything/pointcloud_view_i``: everything in OpenCV's axes, at 0 of the
    time line ``stable_time``. The name of the recording is what made the scene. In a world of large coordinates, of
    which Rerun's float32 would leave few digits, everything is relative to a round place, which a warning names.

    Args:
        path: of the file.
        scenes: one after the other; only one is needed at a time.
        pixels: of all views; of more than 67 million each second (third, ...) row and column is recorded, and a
            warning says so.
        made_by: what made them.
        options: of saving: ``max_points`` and ``confidence_percentile``, for each of ``scenes``.

    Raises:
        OutputError: the file could not be written.
    """
    step = max(1, math.ceil(math.sqrt(pixels / _MOST_PIXELS)))
    if step > 1:
        warn(f"the views have {pixels:,} pixels: one in {step} rows and columns of them is in {path}")
    origin: NDArray[np.float64] | None = None
    with _silent(), atomic_write(path, RECORDING_KIND) as temporary:
        rerun = importlib.import_module("rerun")
        identity = f"{marker(RECORDING_KIND)} {uuid.uuid4().hex}"
        # Into memory: a sink that writes files itself waits without end when the disk is full.
        recording = rerun.RecordingStream(_APPLICATION, recording_id=identity)
        content = recording.binary_stream()
        if made_by:
            recording.send_recording_name(made_by)
        recording.set_time("stable_time", sequence=0)
        recording.log(_ROOT, rerun.ViewCoordinates.RDF, static=True)
        first = 0
        for scene in scenes:
            if origin is None:
                origin = _origin(scene)
            _log(rerun, recording, scene, origin, first, step, options or SaveOptions())
            first += len(scene.mask)
        recording.flush()
        temporary.write_bytes(content.read() or b"")


@contextmanager
def _silent() -> Iterator[None]:
    """Switch off what Rerun would send about its use, before it is imported and as long as it is used."""
    before = {name: os.environ.get(name) for name in (*_OFF, *_ON)}
    os.environ.update(_OFF)
    for name in _ON:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _origin(scene: SceneArrays) -> NDArray[np.float64]:
    """What is subtracted from all places, which is said; nothing unless coordinates are large."""
    if scene.points.dtype != np.float64:
        return np.zeros(3)
    origin = scene_origin(scene)
    warn(f"coordinates are large, and Rerun has float32: in the recording they are relative to {origin.tolist()}")
    return origin


def _log(
    rerun: Any,
    recording: Any,
    scene: SceneArrays,
    origin: NDArray[np.float64],
    first: int,
    step: int,
    options: SaveOptions,
) -> None:
    """Log views, of which the first one has the number ``first``."""
    keep = selected_pixels(scene, options.max_points, options.confidence_percentile)
    # Pixel (i, j) of the recording is (step i, step j) of the view.
    scaling = np.diag([1 / step, 1 / step, 1.0])
    for index in range(len(scene.mask)):
        view, name = (slice(None, None, step),) * 2, f"{_ROOT}/view_{first + index}"
        image, mask, chosen = scene.colors[index][view], scene.mask[index][view], keep[index][view]
        pose, intrinsics = scene.poses[index].astype(np.float64), scaling @ scene.intrinsics[index]
        if np.isfinite(pose).all() and np.isfinite(intrinsics).all():
            place = rerun.Transform3D(translation=pose[:3, 3] - origin, mat3x3=pose[:3, :3])
            recording.log(name, place)
            height, width = mask.shape
            camera = rerun.Pinhole(
                image_from_camera=intrinsics,
                width=width,
                height=height,
                camera_xyz=rerun.ViewCoordinates.RDF,
                image_plane_distance=1.0,
            )
            recording.log(f"{name}/pinhole", camera)
        recording.log(f"{name}/pinhole/rgb", rerun.Image(np.ascontiguousarray(image)))
        depth = np.ascontiguousarray(scene.depth[index][view])
        recording.log(f"{name}/pinhole/depth", rerun.DepthImage(depth, meter=1.0))
        recording.log(f"{name}/pinhole/mask", rerun.SegmentationImage(mask.astype(np.uint8)))
        points = scene.points[index][view][chosen] - origin.astype(scene.points.dtype)
        recording.log(
            f"{_ROOT}/pointcloud_view_{first + index}",
            rerun.Points3D(points.astype(np.float32), colors=image[chosen]),
        )
