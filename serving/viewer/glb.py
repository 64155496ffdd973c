"""Points of a binary glTF: its points, or where it has none the vertices of its surfaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.geometry import quaternion_to_matrix
from mapengine.runtime.system.reading import open_file
from mapengine.runtime.writing.recognition import marker

from .cloud import Cloud

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_POINTS = 0
_TO_OPENCV = np.array([1, -1, -1], np.float64)  # from glTF's axes, x right, y up, z backward
_DEEPEST = 200  # nodes below each other


def read_glb(path: Path) -> Cloud:
    """Read the points of a file, in OpenCV's axes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, no binary glTF, or compressed.
    """
    with open_file(path) as file:
        content = file.read()
    if content[:4] != b"glTF" or len(content) < 20:
        raise ValueError("it does not begin as a binary glTF does")
    total, length = int.from_bytes(content[8:12], "little"), int.from_bytes(content[12:16], "little")
    if len(content) < total:
        raise ValueError(f"it ends after {len(content):,} of {total:,} bytes")
    document = json.loads(content[20 : 20 + length])
    try:
        return _cloud(document, memoryview(content)[28 + length :])
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its description is wrong ({type(error).__name__}: {error})") from None


def _cloud(document: dict[str, Any], buffer: memoryview) -> Cloud:
    asset = document["asset"]
    is_ours = asset.get("generator") == marker("point cloud")
    found: list[tuple[str, bool, NDArray[np.float64], NDArray[np.uint8]]] = []
    scene = document.get("scenes", [{}])[document.get("scene", 0)]
    nodes = document.get("nodes", [])
    waiting = [(index, np.eye(4), 0) for index in reversed(scene.get("nodes", []))]
    while waiting:
        index, above, depth = waiting.pop()
        node = nodes[index]
        if depth > _DEEPEST:
            raise ValueError("its nodes lie below each other without end")
        place = above @ _matrix(node)
        waiting += [(child, place, depth + 1) for child in reversed(node.get("children", []))]
        name = str(node.get("name", f"node {index}"))
        if "mesh" not in node or (is_ours and name.startswith("camera ")):
            continue
        for primitive in document["meshes"][node["mesh"]]["primitives"]:
            points = _accessor(document, buffer, primitive["attributes"]["POSITION"])[:, :3]
            points = (points @ place[:3, :3].T + place[:3, 3]) * _TO_OPENCV
            found.append((name, primitive.get("mode", 4) == _POINTS, points, _colors(document, buffer, primitive)))
    if any(are_points for _, are_points, _, _ in found):
        found = [part for part in found if part[1]]
    ends = np.cumsum([len(points) for _, _, points, _ in found]).tolist()
    views = [(part[0], start, end) for part, start, end in zip(found, [0, *ends], ends, strict=False)]
    points = np.concatenate([np.zeros((0, 3)), *(part[2] for part in found)])
    colors = np.concatenate([np.zeros((0, 3), np.uint8), *(part[3] for part in found)])
    made_by = asset.get("extras", {}).get("made_by", "") if isinstance(asset.get("extras", {}), dict) else ""
    return Cloud(points, colors, views if len(views) > 1 else [], str(made_by), is_ours)


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    result = np.eye(4)
    rotation = quaternion_to_matrix(np.array([node.get("rotation", (0, 0, 0, 1))], np.float64))[0]
    result[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), np.float64)
    result[:3, 3] = node.get("translation", (0, 0, 0))
    return result


def _colors(document: dict[str, Any], buffer: memoryview, primitive: dict[str, Any]) -> NDArray[np.uint8]:
    """Colours (N, 3) as sRGB; of the material where vertices have none."""
    attributes = primitive["attributes"]
    if "COLOR_0" in attributes:
        light = _accessor(document, buffer, attributes["COLOR_0"])[:, :3]
    else:
        material = document["materials"][primitive["material"]] if "material" in primitive else {}
        base = material.get("pbrMetallicRoughness", {}).get("baseColorFactor", (0.35, 0.35, 0.35))
        count = document["accessors"][attributes["POSITION"]]["count"]
        light = np.tile(np.array(base[:3], np.float64), (count, 1))
    light = np.nan_to_num(light).clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _accessor(document: dict[str, Any], buffer: memoryview, number: int) -> NDArray[np.float64]:
    """The values (N, C) of an accessor; whole numbers that stand for shares become these."""
    accessor = document["accessors"][number]
    if "sparse" in accessor or "bufferView" not in accessor:
        raise ValueError("it is compressed, or leaves zeros out; save it without compression")
    view = document["bufferViews"][accessor["bufferView"]]
    if view.get("buffer", 0) != 0 or "uri" in document["buffers"][0]:
        raise ValueError("its points are in another file; save it as one .glb")
    dtype = np.dtype(_COMPONENTS[accessor["componentType"]])
    width, count = _WIDTHS[accessor["type"]], accessor["count"]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", dtype.itemsize * width)
    if start < 0 or count < 0 or (count and start + stride * (count - 1) + dtype.itemsize * width > len(buffer)):
        raise ValueError("it ends before its points do")
    values = np.ndarray((count, width), dtype, buffer, start, (stride, dtype.itemsize)).astype(np.float64)
    if accessor.get("normalized"):
        values = (values / np.iinfo(dtype).max).clip(-1, 1)
    return values
