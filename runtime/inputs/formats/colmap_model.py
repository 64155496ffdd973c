"""COLMAP's models: cameras, images and points, from text or binary files (https://colmap.github.io/format.html)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...geometry import Array, quaternion_to_matrix
from ...system.reading import read_file
from ..lenses import Lens
from ..resolutions import Size

_MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16), ("SIMPLE_DIVISION", 4), ("DIVISION", 5), ("SIMPLE_FISHEYE", 3), ("FISHEYE", 4),
    ("EUCM", 6), ("EQUIRECTANGULAR", 2),
)  # fmt: skip
"""COLMAP's camera models by their number, with the number of their parameters."""
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE")
_FISHEYES = ("OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "SIMPLE_FISHEYE", "FISHEYE")
_READ = (*_FISHEYES, "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_LARGEST = 2**34  # bytes; a large city has fewer
_OBSERVATION = np.dtype([("xy", "<f8", 2), ("point", "<i8")])


class Camera(NamedTuple):
    """Intrinsics (3, 3) with pixel centres at integers, the lens, or None, and (W, H)."""

    intrinsics: NDArray[np.float32]
    lens: Lens | None
    size: Size


class ModelImage(NamedTuple):
    """One image of a model: its name, camera, world-to-camera rotation (3, 3) and translation (3,), and the ids of the
    points that it sees."""

    name: str
    camera: int
    rotation: Array
    translation: Array
    points: NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """Cameras and images of a model by id, and the world coordinates of its points by id."""

    cameras: dict[int, Camera]
    images: list[ModelImage]
    points: dict[int, tuple[float, float, float]]


def has_model(folder: Path) -> bool:
    """Return whether a folder holds a model, text or binary."""
    return any(all((folder / f"{name}.{end}").is_file() for name in ("cameras", "images")) for end in ("bin", "txt"))


def read_model(folder: Path, points: bool) -> Model:
    """Read a model; binary files come first, as in COLMAP.

    Args:
        points: whether the points are read; else the model has none.

    Raises:
        InputError: a file is missing, damaged or has a camera model that is not supported; names the file.
    """
    end = "bin" if (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file() else "txt"
    readers: dict[str, Any] = _BINARY if end == "bin" else _TEXT
    found = []
    for name in ("cameras", "images", "points3D") if points else ("cameras", "images"):
        path = folder / f"{name}.{end}"
        try:
            content = read_file(path, _LARGEST)
            found.append(readers[name](content if end == "bin" else content.decode("utf-8-sig"), str(path)))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except InputError:
            raise
        except (ValueError, IndexError, KeyError, struct.error, OverflowError) as error:
            raise InputError(
                f"{path}: is damaged, or not a file of COLMAP's ({error}); write the model again"
            ) from None
    cameras, images, *rest = found
    for image in images:
        if image.camera not in cameras:
            raise InputError(f"{folder}: image {image.name} has camera {image.camera}, which is not in cameras.{end}")
    return Model(cameras, images, rest[0] if rest else {})


def camera_of(name: str, size: Size, parameters: tuple[float, ...], where: str) -> Camera:
    """Return a camera of COLMAP's models.

    Raises:
        InputError: a model that has no pinhole image and is no fisheye that is known here.
    """
    if name not in _READ:
        raise InputError(
            f"{where} is of the model {name}, which is not read; undistort the images with `colmap image_undistorter`"
        )
    one = name in _ONE_FOCAL
    fx, fy, cx, cy = (parameters[0], *parameters[:3]) if one else parameters[:4]
    rest = parameters[3 if one else 4 :]
    lens: Lens | None = None
    if name in ("SIMPLE_RADIAL", "RADIAL"):
        lens = Lens(name, rest)
    elif name == "OPENCV":
        lens = Lens(name, rest[:2], tangential=(rest[2], rest[3]))
    elif name == "FULL_OPENCV":
        lens = Lens(name, (*rest[:2], rest[4]), rest[5:8], (rest[2], rest[3]))
    elif name in _FISHEYES:
        lens = Lens(name, rest, fisheye=True)
    matrix = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]], np.float32)
    return Camera(matrix, None if lens is None or lens.is_pinhole else lens, size)


def _camera(model: int | str, size: Size, parameters: tuple[float, ...], where: str) -> Camera:
    known = dict(_MODELS)
    name = _MODELS[model][0] if isinstance(model, int) else model
    if name not in known or len(parameters) != known[name] or min(size) < 1:
        raise ValueError(f"{where} is {name} of {size[0]}x{size[1]} with {len(parameters)} parameters")
    focal = parameters[:1] if name in _ONE_FOCAL else parameters[:2]
    if not np.isfinite(parameters).all() or min(focal) <= 0:
        raise ValueError(f"{where} has parameters that are no camera")
    return camera_of(name, size, parameters, where)


def _image(name: str, camera: int, pose: Array, points: NDArray[np.int64]) -> ModelImage:
    w, x, y, z = pose[:4]
    if not np.isfinite(pose).all() or not 1e-6 < np.linalg.norm(pose[:4]) < 1e6:
        raise ValueError(f"image {name} has no finite pose")
    return ModelImage(name, camera, quaternion_to_matrix(np.array([x, y, z, w])), pose[4:], points)


# ---- binary ---------------------------------------------------------------------------------------------------------


class _Bytes:
    """A binary file, read from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.content, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def text(self) -> str:
        end = self.content.index(b"\0", self.place)
        start, self.place = self.place, end + 1
        return self.content[start:end].decode("utf-8")

    def array(self, dtype: Any, count: int) -> NDArray[Any]:
        size = count * np.dtype(dtype).itemsize
        if self.place + size > len(self.content):
            raise ValueError("it ends too early")
        self.place += size
        return np.frombuffer(self.content, dtype, count, self.place - size)


def _binary_cameras(content: bytes, where: str) -> dict[int, Camera]:
    file, cameras = _Bytes(content), {}
    for _ in range(file.numbers("Q")[0]):
        number, model, width, height = file.numbers("IiQQ")
        if not 0 <= model < len(_MODELS):
            raise ValueError(f"camera {number} is of the model number {model}")
        values = file.numbers(f"{_MODELS[model][1]}d")
        cameras[number] = _camera(model, (width, height), values, f"{where}: camera {number}")
    return cameras


def _binary_images(content: bytes, where: str) -> list[ModelImage]:
    file, images = _Bytes(content), []
    for _ in range(file.numbers("Q")[0]):
        _, *pose, camera = file.numbers("I7dI")
        name = file.text()
        seen = file.array(_OBSERVATION, file.numbers("Q")[0])["point"]
        images.append(_image(name, camera, np.array(pose), seen[seen >= 0]))
    return images


def _binary_points(content: bytes, where: str) -> dict[int, tuple[float, float, float]]:
    file, points = _Bytes(content), {}
    for _ in range(file.numbers("Q")[0]):
        number, x, y, z, *_ = file.numbers("Q3d3Bd")
        points[number] = (x, y, z)
        file.array("<u8", file.numbers("Q")[0])
    return points


# ---- text -----------------------------------------------------------------------------------------------------------


def _lines(content: str) -> Iterator[list[str]]:
    for line in content.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def _text_cameras(content: str, where: str) -> dict[int, Camera]:
    cameras = {}
    for number, model, width, height, *values in _lines(content):
        size, parameters = (int(width), int(height)), tuple(float(value) for value in values)
        cameras[int(number)] = _camera(model, size, parameters, f"{where}: camera {number}")
    return cameras


def _text_images(content: str, where: str) -> list[ModelImage]:
    # The second line of an image may be empty, so empty lines count here.
    lines = [line for line in content.splitlines() if not line.lstrip().startswith("#")]
    while lines and not lines[0].strip():
        lines.pop(0)
    images = []
    for head, seen in zip(lines[::2], [*lines[1::2], ""], strict=False):
        if not head.strip():
            continue
        words = head.split(maxsplit=9)
        pose = np.array([float(word) for word in words[1:8]])
        points = np.array([int(word) for word in seen.split()[2::3]], np.int64)
        images.append(_image(words[9].strip(), int(words[8]), pose, points[points >= 0]))
    return images


def _text_points(content: str, where: str) -> dict[int, tuple[float, float, float]]:
    return {int(words[0]): (float(words[1]), float(words[2]), float(words[3])) for words in _lines(content)}


_BINARY = {"cameras": _binary_cameras, "images": _binary_images, "points3D": _binary_points}
_TEXT = {"cameras": _text_cameras, "images": _text_images, "points3D": _text_points}
