"""Binary glTF 2.0 (https://registry.khronos.org/glTF): meshes and points with a colour per vertex, in one file."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OutputError
from ...writing.files import atomic_write
from ...writing.recognition import marker

_FLOAT, _UNSIGNED_INT = 5126, 5125
_POINTS, _TRIANGLES = 0, 4
_VERTICES, _INDICES = 34962, 34963
_LARGEST = 2**32 - 1  # bytes; lengths have 32 bits


def linear_colors(colors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return sRGB bytes as linear light from 0 to 1, float32, which glTF has in ``COLOR_0``."""
    return _LINEAR[colors]


def _linear() -> NDArray[np.float32]:
    encoded = np.arange(256) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear()


class BinaryGltf:
    """A binary glTF that is filled node by node and then written; axes are glTF's, x right, y up, z backward."""

    def __init__(self, origin: NDArray[np.float64] | None = None, made_by: str = "") -> None:
        """Begin a file whose vertices are relative to ``origin`` (3,), which a node above all others holds; ``made_by``
        is written into it."""
        self._origin = origin
        self._extras = {"extras": {"made_by": made_by}} if made_by else {}
        self._document: dict[str, Any] = {"nodes": [], "meshes": [], "accessors": [], "bufferViews": []}
        self._parts: list[NDArray[Any]] = []
        self._length = 0

    def add(
        self,
        mesh: str,
        node: str,
        vertices: NDArray[np.float32],
        colors: NDArray[np.uint8],
        faces: NDArray[np.uint32] | None = None,
    ) -> None:
        """Add points, or a mesh whose colours are shown without light; nothing if there is no vertex or no face.

        Args:
            mesh, node: names.
            vertices: (N, 3) metres.
            colors: (N, 3) sRGB; they are stored as linear light.
            faces: (F, 3) indices of vertices, counter-clockwise from the side that is seen; None for points.
        """
        if not len(vertices) or (faces is not None and not len(faces)):
            return
        bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
        primitive: dict[str, Any] = {
            "attributes": {
                "POSITION": self._accessor(vertices, _FLOAT, "VEC3", _VERTICES, bounds),
                "COLOR_0": self._accessor(linear_colors(colors), _FLOAT, "VEC3", _VERTICES),
            },
            "mode": _POINTS,
        }
        if faces is not None:
            indices = self._accessor(faces.astype(np.uint32).reshape(-1), _UNSIGNED_INT, "SCALAR", _INDICES)
            primitive |= {"mode": _TRIANGLES, "indices": indices, "material": 0}
            self._document["materials"] = [
                # What the extension says, and what comes nearest to it for those who do not know it.
                {
                    "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1},
                    "extensions": {"KHR_materials_unlit": {}},
                }
            ]
            self._document["extensionsUsed"] = ["KHR_materials_unlit"]
        self._document["nodes"].append({"name": node, "mesh": len(self._document["meshes"])})
        self._document["meshes"].append({"name": mesh, "primitives": [primitive]})

    def write(self, path: str | os.PathLike[str], kind: str) -> None:
        """Write the file, with the mark of its kind.

        Raises:
            OutputError: it could not be written, or would have more than the 4 GiB that the format allows.
        """
        document = {
            "asset": {"version": "2.0", "generator": marker(kind), **self._extras},
            "scene": 0,
            "scenes": [{}],
            **self._document,
        }
        if self._parts:
            nodes = list(range(len(document["nodes"])))
            if self._origin is not None:
                above = {"name": "world", "translation": self._origin.tolist(), "children": nodes}
                document["nodes"], nodes = [*document["nodes"], above], [len(nodes)]
            document["scenes"] = [{"nodes": nodes}]
            document["buffers"] = [{"byteLength": self._length}]
        text = json.dumps({key: value for key, value in document.items() if value != []}).encode()
        text += b" " * (-len(text) % 4)
        length = 12 + 8 + len(text) + (8 + self._length if self._parts else 0)
        if length > _LARGEST:
            raise OutputError(
                f"{path}: would have {length:,} bytes, and .glb holds 4 GiB; give max_points, or save as .ply"
            )
        with atomic_write(path, kind) as temporary, temporary.open("wb") as file:
            file.write(b"glTF" + np.array([2, length, len(text)], "<u4").tobytes() + b"JSON" + text)
            if self._parts:
                file.write(np.uint32(self._length).astype("<u4").tobytes() + b"BIN\0")
                for part in self._parts:
                    file.write(part.data)

    def _accessor(
        self, values: NDArray[Any], component: int, kind: str, target: int, bounds: dict[str, Any] | None = None
    ) -> int:
        """Store values, all of whose items have 4 bytes, and return their number."""
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        view = {"buffer": 0, "byteOffset": self._length, "byteLength": values.nbytes, "target": target}
        self._document["bufferViews"].append(view)
        self._parts.append(values)
        self._length += values.nbytes
        accessors: list[dict[str, Any]] = self._document["accessors"]
        accessors.append({"bufferView": len(accessors), "componentType": component, "count": len(values), "type": kind})
        accessors[-1] |= bounds or {}
        return len(accessors) - 1
