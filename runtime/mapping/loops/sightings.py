"""Frames that a later one may turn out to have seen again: kept on disk, because a sequence has no end."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import geometry
from ...inputs.encoded import ImageFeatures
from ...inputs.prepared import PreparedView
from ..frames import Frame, KnownFrame

Array = NDArray[Any]

_AROUND = 4
"""Pixels to each side that brightness is averaged over."""
_IN_MEMORY = 3
"""Sightings that are kept in memory once they were read: a check is over two of one place and one of another."""
_STRAIGHT = 1e-5
"""Of rays: from which difference on a camera is none that intrinsics describe."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """A frame, as its window saw it.

    Attributes:
        number: of the frame. window: in whose lengths and frame the rest is.
        pose: (4, 4) float64, camera-to-world in the frame of the window.
        depth: (H, W) float32, z, 0 where it is not sure.
        intrinsics: (3, 3).
        view: what the network gets of it: the features of its image, and what came with it but for its pose.
        brightness: of its image (H, W), each pixel the mean of those around it: points are never exactly placed.
    """

    number: int
    window: int
    pose: NDArray[np.float64]
    depth: NDArray[np.float32]
    intrinsics: Array
    view: PreparedView
    brightness: Array

    @property
    def reach(self) -> float:
        """How far away what it saw is: the median of its depth, or 0 where it has none."""
        seen = self.depth[self.depth > 0]
        return float(np.median(seen)) if seen.size else 0.0


class Sightings:
    """Every so many-th frame of a sequence, each a file of a temporary folder that is removed with this object."""

    def __init__(self) -> None:
        """Begin without frames."""
        self._folder = tempfile.TemporaryDirectory(prefix="mapengine-sightings-")
        self._windows: dict[int, int] = {}
        self._read = lru_cache(_IN_MEMORY)(self._load)

    def __contains__(self, number: int) -> bool:
        return number in self._windows

    def add(self, frame: Frame, window: int, known: KnownFrame) -> None:
        """Keep a frame.

        Args:
            frame: with the features of its image.
            window: its number.
            known: what the window saw, in the frame and the lengths of the window.
        """
        view, features = frame.view, frame.encoded.features
        arrays: dict[str, Any] = {
            "brightness": _brightness(view.normalized[0]).astype(np.float16),
            "depth": known.sure_depth,
            "patches": features.patches,
            "pose": known.pose,
            "intrinsics": known.intrinsics,
            "metric": view.is_metric,
        }
        if view.rays is not None:
            camera = geometry.intrinsics_from_rays(view.rays)
            straight = np.abs(geometry.rays_from_intrinsics(camera, *view.shape[1:]) - view.rays).max() < _STRAIGHT
            arrays |= {"camera": camera} if straight else {"rays": view.rays}
        if view.distance is not None:
            arrays["distance"] = view.distance
        if features.extra is not None:
            arrays["extra"] = features.extra
        np.savez(self._path(frame.number), **arrays)
        self._windows[frame.number] = window

    def beside(self, number: int) -> list[int]:
        """Return the frame that was kept before a frame, or the one after it; empty where there is neither."""
        kept = list(self._windows)
        index = kept.index(number)
        return kept[index - 1 : index] if index else kept[1:2]

    def read(self, number: int) -> Sighting:
        """Return a frame that was kept (KeyError)."""
        return self._read(number)

    def close(self) -> None:
        """Remove the files; nothing is kept any more."""
        self._windows.clear()
        self._read.cache_clear()
        self._folder.cleanup()

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.npz"

    def _load(self, number: int) -> Sighting:
        window = self._windows[number]
        with np.load(self._path(number), allow_pickle=False) as file:
            arrays = dict(file)
        depth, rays = arrays["depth"], arrays.get("rays")
        if "camera" in arrays:
            rays = geometry.rays_from_intrinsics(arrays["camera"], *depth.shape)
        view = PreparedView(
            np.broadcast_to(np.float32(0), (1, 3, *depth.shape)),  # its features are there
            arrays["metric"],
            rays=rays,
            distance=arrays.get("distance"),
            features=ImageFeatures(arrays["patches"], arrays.get("extra")),
        )
        brightness = arrays["brightness"].astype(np.float32)
        return Sighting(number, window, arrays["pose"], depth, arrays["intrinsics"], view, brightness)


def _brightness(normalized: Array) -> NDArray[np.float64]:
    """Return the brightness (H, W) of an image (3, H, W), averaged around each pixel."""
    gray = normalized.astype(np.float64).mean(axis=0)
    for axis in (0, 1):
        edges = [(_AROUND, _AROUND) if axis == other else (0, 0) for other in (0, 1)]
        padded = np.pad(gray, edges, mode="reflect")
        gray = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1, axis=axis).mean(axis=-1)
    return gray
