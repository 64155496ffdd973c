"""Points of a PLY file: of ours, of other programs, and of Gaussian splats (whose centres are points)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.system.reading import open_file

from .cloud import Cloud

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_SPLAT = ("f_dc_0", "f_dc_1", "f_dc_2")
_SPLAT_SCALE = 0.28209479177387814  # the first spherical harmonic
_LONGEST_HEADER = 2**24
_VIEW = re.compile(r'comment view (".*"): vertices (\d+) to (\d+)')
_MADE_BY = "comment made by "


def read_ply(path: Path) -> Cloud:
    """Read the vertices of a file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or no PLY.
    """
    with open_file(path) as file:
        content = file.read()
    end = re.compile(rb"end_header[ \t]*\r?\n").search(content, 0, _LONGEST_HEADER)
    if not content.startswith(b"ply") or end is None:
        raise ValueError("it does not begin as a PLY does")
    lines = content[: end.start()].decode("utf-8", "replace").splitlines()
    form = next((line.split()[1] for line in lines if line.startswith("format ") and len(line.split()) > 1), "")
    if form not in _ORDERS:
        raise ValueError(f"its format {form!r} is not known")
    count, dtype, before = _vertices(lines, _ORDERS[form])
    if form == "ascii":
        vertices = _of_text(content[end.end() :], count, dtype, before)
    else:
        start = end.end() + before
        if len(content) < start + count * dtype.itemsize:
            raise ValueError(f"it ends before its {count} vertices do")
        vertices = np.frombuffer(content, dtype, count, start)
    names = dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise ValueError("its vertices have no x, y and z")
    points = np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], axis=-1)
    made_by, views = "", []
    for line in lines:
        if found := _VIEW.fullmatch(line):
            views.append((str(json.loads(found[1])), int(found[2]), int(found[3]) + 1))
        elif line.startswith(_MADE_BY):
            made_by = str(json.loads(line.removeprefix(_MADE_BY)))
    return Cloud(points, _colors(vertices, names), views, made_by, is_ours="comment mapengine point cloud" in lines)


def _vertices(lines: list[str], order: str) -> tuple[int, np.dtype[Any], int]:
    """How many vertices there are, what each holds, and bytes (of text: lines) before them."""
    before, count, name = 0, 0, ""
    fields: list[tuple[str, str]] = []
    found: tuple[int, np.dtype[Any], int] | None = None

    def finish() -> None:
        nonlocal before, found
        if name == "vertex":
            found = count, np.dtype(fields), before
        elif name and found is None:
            if any(kind == "list" for _, kind in fields) and order != "=":
                raise ValueError("other things than vertices come first in it")
            size = 1 if order == "=" else np.dtype(fields).itemsize
            before += count * size

    for line in lines:
        words = line.split()
        if words[:1] == ["element"] and len(words) == 3 and words[2].isdigit():
            finish()
            name, count, fields = words[1], int(words[2]), []
        elif words[:1] == ["property"] and name:
            kind = "list" if words[1:2] == ["list"] else order + _TYPES.get(words[1] if len(words) > 1 else "", "?")
            if kind.endswith("?") or (kind == "list" and name == "vertex"):
                raise ValueError(f"its {name} has a property that is not known: {line.strip()!r}")
            fields.append((words[-1], kind))
    finish()
    if found is None:
        raise ValueError("it has no vertices")
    return found


def _of_text(content: bytes, count: int, dtype: np.dtype[Any], before: int) -> NDArray[Any]:
    rows = content.decode("ascii", "replace").splitlines()[before : before + count]
    names = dtype.names or ()
    if len(rows) < count:
        raise ValueError(f"it ends before its {count} vertices do")
    try:
        values = np.array([row.split()[: len(names)] for row in rows], np.float64).reshape(count, len(names))
    except ValueError:
        raise ValueError(f"its vertices are not {len(names)} numbers each") from None
    result = np.empty(count, dtype)
    for index, name in enumerate(names):
        result[name] = values[:, index]
    return result


def _colors(vertices: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.uint8] | None:
    for three in _COLORS:
        if set(three) <= set(names):
            values = np.stack([vertices[name] for name in three], axis=-1)
            largest = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
            return np.rint(values.astype(np.float64).clip(0, largest) / largest * 255).astype(np.uint8)
    if set(_SPLAT) <= set(names):
        values = np.stack([vertices[name] for name in _SPLAT], axis=-1).astype(np.float64)
        return np.rint(255 * (0.5 + _SPLAT_SCALE * values).clip(0, 1)).astype(np.uint8)
    return None
