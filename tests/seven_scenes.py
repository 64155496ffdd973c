"""A recorded folder to read: rendered views, written as a depth camera's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mapengine.calibration.data.samples import sample_views

from .calibration.evaluation.oracle import SIZE


def write_seven_scenes(folder: Path, views: int = 3, size: tuple[int, int] = (2 * SIZE[0], 2 * SIZE[1])) -> Path:
    """Rendered views in the layout of 7-Scenes, by default of twice the size that is evaluated."""
    folder.mkdir()
    for index, view in enumerate(sample_views(views, *size)):
        name = f"frame-{index:06}"
        Image.fromarray(view.image).save(folder / f"{name}.color.png")
        millimetres = np.rint(view.depth_z * 1000).astype(np.uint16)
        millimetres[:4], millimetres[4:8] = 0, 65535
        Image.fromarray(millimetres).save(folder / f"{name}.depth.png")
        np.savetxt(folder / f"{name}.pose.txt", view.pose)
        np.savetxt(folder / "camera-intrinsics.txt", view.intrinsics)
    return folder
