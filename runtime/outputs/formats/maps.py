"""Depth, normals and confidence of every view, as files that are named after it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...postprocessing.edges import surface_normals
from ...writing.folders import atomic_folder
from ...writing.recognition import marker
from ..scene_arrays import SceneArrays
from .depth_png import DepthPngs
from .names import file_stems
from .options import MAPS, SaveOptions

MAPS_KIND = "set of maps"
MAPS_NAMES = ("maps.json", *MAPS)


def write_maps(folder: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write ``depth/NAME``, ``normals/NAME`` and ``confidence/NAME`` of every view, and their list ``maps.json``.

    * Depth is the z coordinate, 0 where there is none: 16-bit PNG, EXR (channel Z, metres) or NPY (metres).
    * Normals are those of the points, in the view's camera frame with OpenCV axes (x right, y down, z forward), on the
      side of the camera (against the ray of the pixel), 0 where there is none: 8-bit PNG of ``127.5 (n + 1)``, EXR
      (channels R, G, B) or NPY (H, W, 3).
    * Confidence has no unit and no upper end: EXR (channel Y), otherwise NPY.

    Raises:
        OutputError: the folder could not be written, or holds something else than an older one of ours.
    """
    stems = file_stems(scene.names)
    depth = DepthPngs(options.depth_png_scale)
    views: list[dict[str, str]] = [{"name": name} for name in scene.names]
    with atomic_folder(folder, MAPS_KIND) as temporary:
        for kind in options.maps:
            ending = "npy" if (kind, options.map_format) == ("confidence", "png") else options.map_format
            (temporary / kind).mkdir()
            for index, stem in enumerate(stems):
                views[index][kind] = f"{kind}/{stem}.{ending}"
                path = temporary / kind / f"{stem}.{ending}"
                if (kind, ending) == ("depth", "png"):
                    depth.write(path, scene.depth[index], scene.names[index])
                else:
                    _write(path, _map(scene, index, kind), kind)
        facts: dict[str, Any] = {"generator": marker(MAPS_KIND)}
        if "depth" in options.maps and options.map_format == "png":
            facts["depth_units_per_metre"] = options.depth_png_scale
        if "normals" in options.maps:
            facts["normals"] = "camera frame, OpenCV axes"
        text = json.dumps({**facts, "views": views}, indent=1)
        (temporary / "maps.json").write_text(f"{text}\n", encoding="utf-8")
    depth.warn()


def _map(scene: SceneArrays, index: int, kind: str) -> NDArray[np.float32]:
    if kind == "normals":
        return camera_normals(scene, index)
    values: NDArray[np.float32] = getattr(scene, kind)[index]
    return values


def camera_normals(scene: SceneArrays, index: int) -> NDArray[np.float32]:
    """Return the normals (H, W, 3) of a view's points in its camera frame; 0 where there is none."""
    pose = scene.poses[index].astype(np.float64)
    local = (scene.points[index] - pose[:3, 3]) @ pose[:3, :3]
    return surface_normals(local, scene.mask[index]).astype(np.float32)


def _write(path: Path, values: NDArray[np.float32], kind: str) -> None:
    if path.suffix == ".npy":
        np.save(path, values, allow_pickle=False)
    elif path.suffix == ".exr":
        exr = importlib.import_module("OpenEXR")
        channel = {"depth": "Z", "normals": "RGB", "confidence": "Y"}[kind]
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        exr.File(header, {channel: np.ascontiguousarray(values)}).write(str(path))
    else:
        Image.fromarray(np.rint(127.5 * (values + 1)).astype(np.uint8)).save(path, format="PNG")
