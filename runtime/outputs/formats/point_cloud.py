"""Point clouds and surfaces as files: PLY, and binary glTF with the cameras."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...writing.files import atomic_write
from ...writing.recognition import marker
from ..scene_arrays import SceneArrays, selected_pixels
from .gltf import BinaryGltf
from .mesh import view_mesh
from .options import SaveOptions

_KIND = "point cloud"
_FRUSTUM = 0.12  # of the median depth
# OpenCV (x right, y down, z forward) to glTF (x right, y up, z backward): half a turn about x.
_TO_GLTF = np.array([1, -1, -1], np.float32)


def write_ply(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write the file of :func:`ply_bytes` (OutputError if it could not be written)."""
    with atomic_write(path, _KIND) as temporary:
        temporary.write_bytes(ply_bytes(scene, options))


def ply_bytes(scene: SceneArrays, options: SaveOptions) -> bytes:
    """Return a binary little-endian PLY: x, y, z and red, green, blue (sRGB) per vertex, axes unchanged.

    Coordinates are float32 or float64, as the scene's points are. Comments say which vertices are of which view.
    """
    keep = selected_pixels(scene, options.max_points, options.confidence_percentile)
    vertices = np.empty(int(keep.sum()), dtype=[("xyz", scene.points.dtype.newbyteorder("<"), 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = scene.points[keep], scene.colors[keep]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {marker(_KIND)}",
        "comment OpenCV axes of the cameras: x right, y down, z forward",
        *([f"comment made by {json.dumps(scene.made_by)}"] if scene.made_by else []),
        *_views(scene.names, keep),
        f"element vertex {len(vertices)}",
        *(f"property {'double' if scene.points.dtype == np.float64 else 'float'} {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
        "end_header",
    ]
    return ("\n".join(header) + "\n").encode("ascii") + vertices.tobytes()


def _views(names: Sequence[str], keep: NDArray[np.bool_]) -> list[str]:
    """Comments, in ASCII, that say which vertices are of which view."""
    ends = np.cumsum(keep.sum(axis=(1, 2))).tolist()
    return [
        f"comment view {json.dumps(name)}: vertices {start} to {end - 1}"
        for name, start, end in zip(names, [0, *ends], ends, strict=False)
        if end > start
    ]


def write_glb(path: Path, scene: SceneArrays, options: SaveOptions) -> None:
    """Write a binary glTF with points, or one mesh per view, and one frustum per camera, in glTF's axes.

    Every y and z changes its sign against the OpenCV axes of the scene (y up, z backward). Cameras go from red (first
    view) to blue (last view); each frustum has a filled triangle on its upper edge. Cameras that are not finite are
    left out. Meshes and frustums are nodes with the name of their view.

    Raises:
        OutputError: the file could not be written.
    """
    # Vertices are float32; a world of large coordinates would leave them few digits.
    is_far = scene.points.dtype == np.float64
    origin = np.rint(scene.poses[0, :3, 3].astype(np.float64)) if is_far else np.zeros(3)
    file = BinaryGltf(origin * _TO_GLTF if is_far else None, scene.made_by)
    keep = selected_pixels(scene, None if options.mesh else options.max_points, options.confidence_percentile)
    if options.mesh:
        for index, name in enumerate(scene.names):
            pixels, faces = view_mesh(scene.points[index], scene.depth[index], keep[index], scene.poses[index, :3, 3])
            points, colors = (array[index].reshape(-1, 3)[pixels] for array in (scene.points, scene.colors))
            file.add(f"view_{index}", name, _near(points, origin), colors, faces)
    else:
        file.add("points", "points", _near(scene.points[keep], origin), scene.colors[keep])
    size = _FRUSTUM * _usual_depth(scene)
    for index, (camera, pose, name) in enumerate(zip(scene.intrinsics, scene.poses, scene.names, strict=True)):
        corners = _frustum(camera, pose, scene.depth.shape[1:], size)
        if corners is None:
            continue
        vertices, faces = _frustum_mesh(corners, thickness=0.02 * size)
        share = index / max(len(scene.poses) - 1, 1)
        color = np.array([[230 - 190 * share, 60 + 40 * share, 50 + 180 * share]]).astype(np.uint8)
        shades = color.repeat(len(vertices), axis=0)
        file.add(f"camera_{index}", f"camera {name}", _near(vertices, origin), shades, faces)
    file.write(path, _KIND)


def _near(points: NDArray[Any], origin: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return points relative to an origin, in glTF's axes."""
    return ((points - origin.astype(points.dtype)) * _TO_GLTF).astype(np.float32)


def _usual_depth(scene: SceneArrays) -> float:
    valid = scene.depth[scene.mask & (scene.depth > 0)]
    return float(np.median(valid)) if valid.size else 0.1 / _FRUSTUM


def _frustum(
    camera: NDArray[np.float32], pose: NDArray[np.float32], size: tuple[int, ...], depth: float
) -> NDArray[np.float64] | None:
    """Return the apex, the image corners clockwise from the upper left, and a tip above them: (6, 3), in the world."""
    height, width = size
    k = camera.astype(np.float64)
    if not (np.isfinite(k).all() and np.isfinite(pose).all() and k[0, 0] != 0 and k[1, 1] != 0):
        return None
    left, right = (-0.5 - k[0, 2]) / k[0, 0], (width - 0.5 - k[0, 2]) / k[0, 0]
    top, bottom = (-0.5 - k[1, 2]) / k[1, 1], (height - 0.5 - k[1, 2]) / k[1, 1]
    middle, tip = (left + right) / 2, top - 0.25 * abs(bottom - top)
    rays = [(0, 0, 0), (left, top, 1), (right, top, 1), (right, bottom, 1), (left, bottom, 1), (middle, tip, 1)]
    corners = depth * np.array(rays, dtype=np.float64)
    world = corners @ pose[:3, :3].T.astype(np.float64) + pose[:3, 3]
    return np.asarray(world) if np.isfinite(world).all() else None


def _frustum_mesh(corners: NDArray[np.float64], thickness: float) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Return vertices and faces: edges as thin square tubes, because many viewers draw lines thinly or not at all."""
    vertices: list[NDArray[np.float64]] = []
    faces: list[NDArray[np.int64]] = []
    for start, end in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)):
        axis = corners[end] - corners[start]
        axis = axis / max(float(np.linalg.norm(axis)), 1e-12)
        side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
        side = side / max(float(np.linalg.norm(side)), 1e-12)
        other = np.cross(axis, side)
        ring = thickness / 2 * np.stack([side, other, -side, -other])
        base = 8 * len(vertices)
        vertices.append(np.concatenate([corners[start] + ring, corners[end] + ring]))
        for k in range(4):
            a, b = base + k, base + (k + 1) % 4
            faces.append(np.array([[a, b, b + 4], [a, b + 4, a + 4]]))
    base = 8 * len(vertices)
    vertices.append(corners[[1, 2, 5]])
    faces.append(np.array([[base, base + 1, base + 2], [base, base + 2, base + 1]]))
    return np.concatenate(vertices), np.concatenate(faces).astype(np.uint32)
