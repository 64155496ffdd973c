"""Attempts on what reads images, depth maps, archives and lists of views: none hangs, is believed, or ends in a
traceback."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Scene, load_images, load_view
from mapengine.runtime.errors import MapEngineError
from mapengine.runtime.inputs.files.depth import read_depth
from mapengine.runtime.inputs.formats.transforms import TRANSFORMS
from mapengine.runtime.inputs.formats.view_files import ReadOptions
from mapengine.runtime.inputs.formats.view_lists import load_view_list
from mapengine.runtime.inputs.images import image_size, read_image
from mapengine.runtime.inputs.sources import read_views

from ..image_bytes import png, tiff

ATTEMPTS = 60
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
DEPTH = np.random.default_rng(2).integers(500, 5000, (12, 16)).astype(np.uint16)


def encoded(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    elif kind in ("npz", "packed.npz"):
        (np.savez if kind == "npz" else np.savez_compressed)(file, depth=array)
    elif kind == "pgm":
        return b"P5 16 12 4095\n" + (array % 4096).astype(">u2").tobytes()
    elif kind == "12.tif":
        return tiff(16, 12, 12, bytes(16 * 12 * 3 // 2))
    else:
        Image.fromarray(array).save(file, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(kind, kind.upper()))
    return file.getvalue()


def damaged(content: bytes, number: random.Random) -> bytes:
    """Cut off, overwritten, with bits turned over, a piece twice, or numbers of the header at their limits."""
    result = bytearray(content)
    for _ in range(number.randint(1, 4)):
        if not result:
            break
        place = number.randrange(len(result))
        kind = number.randrange(5)
        if kind == 0:
            del result[place:]
        elif kind == 1:
            result[place] ^= 1 << number.randrange(8)
        elif kind == 2:
            result[place : place + 4] = number.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
        elif kind == 3:
            result[place:place] = result[place : place + number.randint(1, 64)]
        else:
            place = number.randrange(min(len(result), 200))  # headers decide most
            result[place] = number.randrange(256)
    return bytes(result)


def survives(call: Callable[[], Any]) -> Any:
    """What a call gives, or the error that it raises on purpose: one short sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except MapEngineError as error:
            refusal = error
    message = str(refusal)
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 1000
    return refusal


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "jp2", "gif", "bmp", "webp"])
def test_a_damaged_image_is_refused_or_a_picture(kind: str, tmp_path: Path) -> None:
    """Decoders of damaged files raise whatever they like, and one that loops would stop a robot."""
    content, number, path = encoded(COLOUR, kind), random.Random(kind), tmp_path / f"a.{kind}"
    for _ in range(ATTEMPTS):
        path.write_bytes(damaged(content, number))
        for reader in (read_image, image_size):
            result = survives(lambda reader=reader: reader(path))
            assert isinstance(result, MapEngineError | Image.Image | tuple)


@pytest.mark.parametrize("kind", ["png", "tif", "12.tif", "pgm", "jp2", "npy", "npz", "packed.npz"])
def test_a_damaged_depth_map_is_refused_or_in_its_bounds(kind: str, tmp_path: Path) -> None:
    """A depth map that is believed has the shape (H, W), finite numbers of at least 0, and no more pixels than its
    image has."""
    content, number, path = encoded(DEPTH, kind), random.Random(kind), tmp_path / f"a.{kind}"
    for _ in range(ATTEMPTS):
        path.write_bytes(damaged(content, number))
        result = survives(lambda: read_depth(path, image_size=(16, 12)))
        if not isinstance(result, MapEngineError):
            assert result.ndim == 2
            assert result.size <= 16 * 12
            assert result.dtype == np.float32
            assert np.isfinite(result).all()
            assert (result >= 0).all()


def test_a_damaged_scene_or_view_is_refused_or_whole(tmp_path: Path, room_scene: Scene, number: random.Random) -> None:
    """What is loaded can be saved again, whatever was turned over in its file."""
    room_scene.save(tmp_path / "scene.npz")
    content = (tmp_path / "scene.npz").read_bytes()
    for _ in range(ATTEMPTS):
        (tmp_path / "b.npz").write_bytes(damaged(content, number))
        result = survives(lambda: Scene.load(tmp_path / "b.npz"))
        assert isinstance(result, MapEngineError | Scene)
        survives(lambda: load_view(tmp_path / "b.npz"))


@pytest.fixture
def number() -> random.Random:
    return random.Random(19)


@pytest.fixture
def room_scene() -> Scene:
    ones = np.ones((1, 4, 5), np.float32)
    points = np.stack([ones] * 3, -1)
    return Scene(points, points.astype(np.uint8), ones, ones, ones > 0, np.eye(3)[None], np.eye(4)[None])


VALUES = (None, True, -1, 0, 1e308, 10**30, "", "\0", "a" * 5000, "\ud800", [], {}, [[]], [True] * 4, [1, 2], "..", "/")


@pytest.mark.parametrize("form", ["views.json", "transforms.json"])
def test_a_hostile_list_of_views_is_refused_by_name(form: str, tmp_path: Path, number: random.Random) -> None:
    """Every value of every key is replaced by what does not belong there; a list that is believed names a file."""
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    np.save(tmp_path / "d.npy", np.ones((12, 16), np.float32))
    if form == "views.json":
        view: dict[str, Any] = {"image": "a.png", "intrinsics": [20, 20, 7, 5], "depth": "d.npy", "depth_scale": 1.0}
        view |= {"pose": np.eye(4).tolist(), "metric": True, "mask": "a.png"}
        sample: Any = [view]
        read: Callable[[], Any] = lambda: load_view_list(tmp_path / form)  # noqa: E731
    else:
        frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist(), "depth_file_path": "d.npy"}
        sample = {"fl_x": 20.0, "cx": 8.0, "w": 16, "h": 12, "k1": 0.0, "camera_model": "OPENCV", "frames": [frame]}
        read = lambda: TRANSFORMS.read(tmp_path / form, ReadOptions())  # noqa: E731
    (tmp_path / form).write_text(json.dumps(sample))
    assert not isinstance(survives(read), MapEngineError)
    places = [(target, key) for target in _objects(sample) for key in target]
    for target, key in places:
        kept = target[key]
        for value in number.sample(VALUES, 8):
            target[key] = value
            (tmp_path / form).write_text(json.dumps(sample), encoding="utf-8")
            result = survives(read)
            if not isinstance(result, MapEngineError):
                assert all(view.image.is_file() for view in result)
        target[key] = kept


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value, *(found for part in value.values() for found in _objects(part))]
    return [found for part in value for found in _objects(part)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        '[{"image": "a.png", "depth_scale": ' + "9" * 5000 + "}]",
        '[{"image": "a.png", "depth_scale": NaN}]',
        '[{"image": "a.png", "depth_scale": Infinity}]',
        '[{"image": "a.png", "depth_scale": 1e999, "depth": "a.png", "intrinsics": [1, 1, 1, 1]}]',
        '[{"image": "\\ud800.png"}]',
        '[{"image": "a.png", "image": "a.png"}]',
        "\ufeff\ufeff[]",
        "",
    ],
)
def test_json_beyond_its_limits_is_a_sentence(text: str, tmp_path: Path) -> None:
    """Python's own parser recurses, converts long integers in quadratic time, and believes NaN."""
    (tmp_path / "views.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert isinstance(survives(lambda: load_view_list(tmp_path / "views.json")), MapEngineError)


READERS: dict[str, Callable[[Any], Any]] = {
    "image": read_image,
    "image size": image_size,
    "depth": read_depth,
    "array": lambda path: read_depth(f"{path}.npy" if os.fspath(path).endswith("x") else path),
    "views": lambda path: read_views([path]),
    "camera": lambda path: read_views([COLOUR], path),
    "pose": lambda path: read_views([COLOUR], poses=[path]),
    "mask": lambda path: read_views([COLOUR], masks=[path]),
    "depth of a view": lambda path: read_views([COLOUR], [20, 20, 7, 5], depths=[path]),
    "view list": load_view_list,
    "folder": load_images,
    "files": lambda path: load_images([path], on_error="raise"),
    "scene": Scene.load,
    "view": load_view,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among files")
def test_what_is_no_regular_file_is_refused_at_once(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe waits for a writer for ever, a device never ends, and a path may be none at all.

    An empty path is not the working folder, though that has an image.
    """
    here = tmp_path / "here"
    here.mkdir()
    Image.new("RGB", (20, 20)).save(here / "image.png")
    monkeypatch.chdir(here)
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    start = time.monotonic()
    for path in (
        tmp_path / "pipe", tmp_path / "link.png", tmp_path / "folder", tmp_path / "loop", "/dev/zero", "/proc/self/mem",
        "/proc/self/maps", "a\0b", "x" * 5000, "/".join(["x" * 200] * 40), "\ud800", "", tmp_path / "none",
    ):  # fmt: skip
        assert isinstance(survives(lambda path=path: READERS[reader](path)), MapEngineError), path
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("reader", [Scene.load, load_view, read_depth])
def test_an_archive_that_stands_for_gigabytes_is_refused(reader: Callable[[Any], Any], tmp_path: Path) -> None:
    """Four megabytes unpacked to 4.7 GB, and the process was killed."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (50000, 20000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("depth", "version", "points"):
            with archive.open(f"{name}.npy", "w") as file:
                file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(2**20))
    start = time.monotonic()
    assert isinstance(survives(lambda: reader(tmp_path / "a.npz")), MapEngineError)
    assert time.monotonic() - start < 2


def test_the_size_of_an_image_is_bounded_by_its_header(tmp_path: Path) -> None:
    """A picture of a kilobyte can say that it has ten thousand million pixels."""
    for width, height in ((100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (0, 1)):
        (tmp_path / "a.png").write_bytes(png(width, height, 8, 0, b"\0"))
        assert isinstance(survives(lambda: read_image(tmp_path / "a.png")), MapEngineError)
