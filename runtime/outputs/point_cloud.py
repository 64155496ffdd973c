"""Point clouds as files: PLY (written here, NumPy is enough) and GLB (through trimesh)."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendUnavailableError
from ..writing.files import atomic_write
from ..writing.recognition import marker

Points = NDArray[np.float32]
Colors = NDArray[np.uint8]

_KIND = "point cloud"
# OpenCV (x right, y down, z forward) to glTF (x right, y up, z backward).
_OPENCV_TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])


def write_ply(path: str | os.PathLike[str], points: Points, colors: Colors) -> None:
    """Write a binary little-endian PLY with x, y, z (float32) and red, green, blue per vertex, axes unchanged.

    Args:
        points: (N, 3) float32 metres; N may be 0. Points that are not finite are left out.
        colors: (N, 3) uint8.

    Raises:
        OutputError: the file could not be written.
    """
    finite = np.isfinite(points).all(axis=-1)
    vertices = np.empty(int(finite.sum()), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = points[finite], colors[finite]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {marker(_KIND)}",
        "comment OpenCV axes: x right, y down, z forward; metres",
        f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {color}" for color in ("red", "green", "blue")),
        "end_header",
    ]
    with atomic_write(path, _KIND) as temporary, temporary.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertices.tobytes())


def write_glb(
    path: str | os.PathLike[str],
    points: Points,
    colors: Colors,
    intrinsics: NDArray[np.float32],
    poses: NDArray[np.float32],
    size: tuple[int, int],
    frustum_depth: float,
) -> None:
    """Write a binary glTF with the points and one frustum per camera, in glTF's axes (y up, z backward).

    Every y and z changes its sign against the OpenCV axes of the arguments. Cameras go from red (first view) to blue
    (last view); each frustum has a filled triangle on its upper edge.

    Args:
        points, colors: (N, 3) float32 metres and (N, 3) uint8; N may be 0.
        intrinsics, poses: (V, 3, 3) pixels and (V, 4, 4) camera-to-world; cameras that are not finite are left out.
        size: (H, W) of the images.
        frustum_depth: length of the frustums in metres.

    Raises:
        BackendUnavailableError: trimesh is not installed.
        OutputError: the file could not be written.
    """
    trimesh = _trimesh()
    scene = trimesh.Scene()
    finite = np.isfinite(points).all(axis=-1)
    if finite.any():
        rgba = np.concatenate([colors[finite], np.full((int(finite.sum()), 1), 255, np.uint8)], axis=-1)
        cloud = trimesh.PointCloud(vertices=points[finite] @ _OPENCV_TO_GLTF[:3, :3].astype(np.float32), colors=rgba)
        scene.add_geometry(cloud, node_name="points", geom_name="points")
    for index, (camera, pose) in enumerate(zip(intrinsics, poses, strict=True)):
        corners = _frustum(camera, pose, size, frustum_depth)
        if corners is None:
            continue
        vertices, faces = _frustum_mesh(corners, thickness=0.02 * frustum_depth)
        share = index / max(len(poses) - 1, 1)
        color = np.array([230 - 190 * share, 60 + 40 * share, 50 + 180 * share, 255], dtype=np.uint8)
        shades = np.tile(color, (len(vertices), 1))
        mesh = trimesh.Trimesh(vertices=vertices, faces=faces, vertex_colors=shades, process=False)
        scene.add_geometry(mesh, node_name=f"camera_{index}", geom_name=f"camera_{index}")
    # trimesh refuses a scene without geometry; one black point at the origin would be a made-up measurement.
    content = scene.export(file_type="glb", tree_postprocessor=_sign) if scene.geometry else _EMPTY_GLB
    with atomic_write(path, _KIND) as temporary:
        temporary.write_bytes(content)


def _sign(document: dict[str, Any]) -> None:
    document["asset"]["generator"] = marker(_KIND)


def _trimesh() -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise BackendUnavailableError(
            "writing .glb needs the package trimesh; install it with: pip install 'mapengine[viz]', or save as .ply"
        ) from error
    return trimesh


def _empty_glb() -> bytes:
    asset = {"version": "2.0", "generator": marker(_KIND)}
    document = json.dumps({"asset": asset, "scene": 0, "scenes": [{}]}).encode()
    document += b" " * (-len(document) % 4)
    chunk = len(document).to_bytes(4, "little") + b"JSON" + document
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(chunk)).to_bytes(4, "little") + chunk


_EMPTY_GLB = _empty_glb()


def _frustum(
    camera: NDArray[np.float32], pose: NDArray[np.float32], size: tuple[int, int], depth: float
) -> NDArray[np.float64] | None:
    """Return the apex, the image corners clockwise from the upper left, and a tip above them: (6, 3), glTF axes."""
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
    return np.asarray(world @ _OPENCV_TO_GLTF[:3, :3]) if np.isfinite(world).all() else None


def _frustum_mesh(corners: NDArray[np.float64], thickness: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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
    return np.concatenate(vertices), np.concatenate(faces)
