"""The options of saving a scene: names, defaults, limits and meanings stand here and nowhere else."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from ...errors import InputError

MAPS = ("depth", "normals", "confidence")
MAP_FORMATS = ("png", "exr", "npy")
_LIMITS = {"laz_precision": (1e-9, 1e3), "depth_png_scale": (0.1, 1e6)}
COLMAP_SIZES = ("network", "original")


@dataclass(frozen=True)
class SaveOptions:
    """How a scene is saved; each format has some of these, and the others change nothing for it.

    Attributes:
        max_points: Save at most so many points, chosen at random but always the same ones; all if not given (COLMAP:
            100000).
        confidence_percentile: Percentage of the valid points of each view, the least confident, to leave out.
        mesh: Save a surface per view, triangles between neighbouring pixels but for edges, instead of points.
        laz_precision: Step of the coordinates in metres; they are stored as whole numbers of steps.
        maps: What is saved per view: some of depth, normals and confidence.
        map_format: File format of the maps: png (depth in 16 bits, normals in 8, confidence as npy), exr or npy.
        depth_png_scale: Units per metre of depth in 16-bit PNG, such as 5000 for TUM; 1000 is millimetres, up to 65 m.
        voxel: COLMAP: side of the voxels that points are merged in, in the scene's unit; 1/256 of the scene's diagonal
            if not given.
        colmap_size: COLMAP: size of images and cameras: the network's, or "original" for that of the original images.

    Raises:
        InputError: a value of another type or outside its limits; the message names the option.
    """

    max_points: int | None = None
    confidence_percentile: float = 0.0
    mesh: bool = False
    laz_precision: float = 1e-4
    maps: tuple[str, ...] = MAPS
    map_format: str = "png"
    depth_png_scale: float = 1000.0
    voxel: float | None = None
    colmap_size: str = "network"

    def __post_init__(self) -> None:
        if self.max_points is not None and (not _is(self.max_points, Integral) or self.max_points < 0):
            raise InputError(f"max_points is {self.max_points!r}; choose an integer from 0 up, or None for all")
        percentile = self.confidence_percentile
        if not _is(percentile, Real) or not 0 <= percentile <= 100:
            raise InputError(f"confidence_percentile is {percentile!r}; choose a number from 0 to 100")
        if self.voxel is not None and (not _is(self.voxel, Real) or not 0 < self.voxel < math.inf):
            raise InputError(f"voxel is {self.voxel!r}; choose a length above 0, or None for the scene's own")
        if not isinstance(self.colmap_size, str) or self.colmap_size not in COLMAP_SIZES:
            raise InputError(f"colmap_size is {self.colmap_size!r}; choose {' or '.join(COLMAP_SIZES)}")
        if not isinstance(self.mesh, bool | np.bool_):
            raise InputError(f"mesh is {reprlib.repr(self.mesh)}; it must be True or False")
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if not _is(value, Real) or not low <= value <= high:
                raise InputError(f"{name} is {reprlib.repr(value)}; choose a number from {low:g} to {high:g}")
        maps = self.maps
        if isinstance(maps, str) or not isinstance(maps, Iterable) or not set(maps) or not set(maps) <= set(MAPS):
            raise InputError(f"maps is {reprlib.repr(maps)}; give some of {', '.join(MAPS)}")
        object.__setattr__(self, "maps", tuple(name for name in MAPS if name in maps))
        if self.map_format not in MAP_FORMATS:
            raise InputError(f"map_format is {reprlib.repr(self.map_format)}; choose one of {', '.join(MAP_FORMATS)}")


def _is(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind; True is none."""
    return isinstance(value, kind) and not isinstance(value, bool)
