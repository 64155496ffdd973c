"""Every array of a scene as ``.npz``; :meth:`~..scene.Scene.load` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...writing.files import write_npz
from ..scene_arrays import SHAPES, SceneArrays
from .options import SaveOptions

VERSION = 1
"""Of the arrays of a scene's file."""
KNOWN: dict[str, type] = {"original_pixels": np.float64, "original_sizes": np.int64, "times": np.float64}
"""What only some scenes have, with its type."""


def write_scene(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write the file; no option changes it."""
    values: dict[str, Any] = {name: getattr(scene, name) for name in SHAPES}
    values["names"] = np.array(scene.names, dtype=np.str_)
    values |= {"version": np.int64(VERSION), "metric_scale": np.float64(scene.metric_scale)}
    values |= {key: getattr(scene, key) for key in KNOWN if getattr(scene, key) is not None}
    if scene.made_by:
        values["made_by"] = np.array(scene.made_by, dtype=np.str_)
    if scene.alignment is not None:
        values |= scene.alignment.arrays()
    write_npz(path, "scene", values)
