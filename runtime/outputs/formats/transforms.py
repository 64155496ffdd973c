"""A scene as ``transforms.json`` with images, depth and points: what nerfstudio trains on, splatfacto among it.

Its conventions: camera-to-world with OpenGL axes (x right, y up, z backward), the centre of the upper left pixel at
(0.5, 0.5), intrinsics per frame, depth as 16-bit PNG in millimetres unless its ``--depth-unit-scale-factor`` says
otherwise. The world is the scene's, for cameras and points alike: ``applied_transform`` is the identity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...writing.folders import atomic_folder
from ...writing.recognition import marker
from ..scene_arrays import SceneArrays, check_cameras
from .depth_png import DepthPngs
from .names import file_stems
from .options import SaveOptions
from .point_cloud import ply_bytes

TRANSFORMS_KIND = "dataset with transforms"
TRANSFORMS_NAMES = ("transforms.json", "images", "depth", "points.ply")
_OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_transforms(folder: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write ``transforms.json``, ``images/NAME.png`` as the network saw them, ``depth/NAME.png`` and ``points.ply``.

    Raises:
        InputError: a camera without finite intrinsics and pose.
        OutputError: the folder could not be written, or holds something else than an older one of ours.
    """
    check_cameras(scene)
    height, width = scene.depth.shape[1:]
    stems = file_stems(scene.names)
    document = {
        "generator": marker(TRANSFORMS_KIND),
        "camera_model": "OPENCV",
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "depth_unit_scale_factor": 1 / options.depth_png_scale,
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": "points.ply",
        "frames": [_frame(scene, index, stem, width, height) for index, stem in enumerate(stems)],
    }
    depth = DepthPngs(options.depth_png_scale)
    with atomic_folder(folder, TRANSFORMS_KIND) as temporary:
        for name in ("images", "depth"):
            (temporary / name).mkdir()
        for index, stem in enumerate(stems):
            Image.fromarray(scene.colors[index]).save(temporary / "images" / f"{stem}.png")
            depth.write(temporary / "depth" / f"{stem}.png", scene.depth[index], scene.names[index])
        (temporary / "points.ply").write_bytes(ply_bytes(scene, options))
        (temporary / "transforms.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    depth.warn()


def _frame(scene: SceneArrays, index: int, stem: str, width: int, height: int) -> dict[str, Any]:
    camera = scene.intrinsics[index].astype(np.float64)
    pose = scene.poses[index].astype(np.float64) @ _OPENCV_TO_OPENGL
    return {
        "file_path": f"images/{stem}.png",
        "depth_file_path": f"depth/{stem}.png",
        "name": scene.names[index],
        "w": width,
        "h": height,
        "fl_x": camera[0, 0],
        "fl_y": camera[1, 1],
        "cx": camera[0, 2] + 0.5,
        "cy": camera[1, 2] + 0.5,
        "transform_matrix": pose.tolist(),
    }
