"""Depth as 16-bit PNG: what fits into it, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import warn

_MOST = 65534  # 65535 means "nothing measured" to range cameras, and to whoever reads their files


class DepthPngs:
    """Writes the depth maps of a scene, and warns once of what 16 bits could not hold.

    Args:
        units_per_metre: stored units per metre; 1000 for millimetres.
    """

    def __init__(self, units_per_metre: float) -> None:
        self._scale = units_per_metre
        self._lost: list[str] = []
        self._pixels = 0

    def write(self, path: Path, depth: NDArray[np.float32], view: str) -> None:
        """Write one map (H, W): depth that is too far for 16 bits, or nearer than half a unit, becomes 0, that is none.

        Args:
            view: its name, for the warning.
        """
        units = np.rint(depth.astype(np.float64) * self._scale)
        lost = (depth > 0) & ((units < 1) | (units > _MOST))
        if lost.any():
            self._lost.append(view)
            self._pixels += int(lost.sum())
        stored = np.where((depth > 0) & ~lost, units, 0).astype(np.uint16)
        Image.fromarray(stored).save(path, format="PNG")

    def warn(self) -> None:
        """Say once what was left out, if anything was."""
        if not self._lost:
            return
        others = f" and {len(self._lost) - 1} more" if len(self._lost) > 1 else ""
        warn(
            f"depth: {self._pixels} pixels of {self._lost[0]}{others} are not between {1 / self._scale:.4g} and "
            f"{_MOST / self._scale:.4g} m, which is what 16 bits hold at {self._scale:g} units per metre, and have no "
            "depth in the PNG; give another depth_png_scale, or save maps as exr or npy"
        )
