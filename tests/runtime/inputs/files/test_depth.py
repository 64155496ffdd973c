"""Depth maps from files: the numbers that were stored, whatever Pillow makes of them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.files.depth import read_depth
from mapengine.runtime.inputs.sources import read_views

from ....image_bytes import fits, png, png_chunk, sgi_16_bit, tiff

RAMP = np.arange(6 * 40, dtype=np.uint8).reshape(6, 40)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


def test_png_millimetres_become_metres(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 1234], [10000, 65534, 65535]], np.uint16)
    path = save(tmp_path / "a.png", stored)
    depth = read_depth(path)
    assert depth.dtype == np.float32
    expected = np.array([[0, 0.001, 1.234], [10, 65.534, 0]], np.float32)
    np.testing.assert_array_equal(depth, expected)
    np.testing.assert_array_equal(
        read_depth(str(path), 1 / 5000), np.where(stored < 65535, stored / 5000, 0).astype(np.float32)
    )
    np.testing.assert_array_equal(read_depth(save(tmp_path / "a.tiff", stored)), expected)
    np.save(tmp_path / "a.npy", stored)
    np.testing.assert_array_equal(read_depth(tmp_path / "a.npy"), expected)


def test_float_files_hold_metres(tmp_path: Path) -> None:
    stored = np.array([[0.5, np.nan, np.inf], [-np.inf, -2, 1e300]])
    expected = np.array([[0.5, 0, 0], [0, 0, 0]], np.float32)
    np.save(tmp_path / "a.npy", stored)
    np.save(tmp_path / "half.npy", stored[:1].astype(np.float16))
    np.save(tmp_path / "channel.npy", stored[:, :, None])
    np.save(tmp_path / "batch.npy", stored[None])
    np.savez(tmp_path / "one.npz", anything=stored)
    np.savez(tmp_path / "two.npz", depth=stored, confidence=stored[:1])
    for name in ("a.npy", "channel.npy", "batch.npy", "one.npz", "two.npz"):
        depth = read_depth(tmp_path / name)
        assert depth.dtype == np.float32
        np.testing.assert_array_equal(depth, expected)
    np.testing.assert_array_equal(read_depth(tmp_path / "half.npy"), expected[:1])
    np.testing.assert_array_equal(read_depth(save(tmp_path / "a.tiff", stored[:1].astype(np.float32))), expected[:1])
    np.testing.assert_array_equal(read_depth(tmp_path / "a.npy", 0.1), expected * np.float32(0.1))


def test_8_bit_depth_only_with_a_scale(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", RAMP)
    with pytest.raises(ImageReadError, match=r"a\.png: .*8 bits.*pass depth_scale"):
        read_depth(path)
    np.testing.assert_array_equal(read_depth(path, 0.5), RAMP.astype(np.float32) / 2)


def test_what_is_no_depth_map(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"a\.png: .*pixels are RGB"):
        read_depth(save(tmp_path / "a.png", COLOUR))
    with pytest.raises(ImageReadError, match="no such file"):
        read_depth(tmp_path / "none.npy")
    with pytest.raises(ImageReadError, match="is a folder"):
        read_depth(tmp_path)
    arrays: dict[str, Any] = {
        "flat": np.zeros(5),
        "colour": np.zeros((4, 5, 3)),
        "empty": np.zeros((0, 5)),
        "complex": np.zeros((4, 5), complex),
        "text": np.array([["a"]]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ImageReadError, match=rf"{name}\.npy: cannot be read as a depth map \(it holds .*\(H, W\)"):
            read_depth(tmp_path / f"{name}.npy")
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(ImageReadError, match=r"object\.npy"):
        read_depth(tmp_path / "object.npy")
    np.savez(tmp_path / "many.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(ImageReadError, match=r'many\.npz: .*name one of them "depth_z"'):
        read_depth(tmp_path / "many.npz")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(ImageReadError, match=r"junk\.npz"):
        read_depth(tmp_path / "junk.npz")


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 5000, "0.001", True])
def test_bad_depth_scale(tmp_path: Path, scale: Any) -> None:
    with pytest.raises(InputError, match="depth_scale is metres per stored unit"):
        read_depth(save(tmp_path / "a.png", RAMP), scale)


def test_float_depth_in_millimetres_gives_a_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "depth.npy", np.full((4, 5), 1500.0, np.float32))
    with pytest.warns(UserWarning, match=r"median depth is 1500 m.*depth_scale=0\.001"):
        assert (read_depth(tmp_path / "depth.npy") == 1500).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_depth(tmp_path / "depth.npy", depth_scale=0.001)[0, 0] == np.float32(1.5)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_file_without_depth_gives_a_warning(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "depth.npy", np.full((4, 5), value, np.float32))
    with pytest.warns(UserWarning, match="no depth above 0"):
        assert not read_depth(tmp_path / "depth.npy").any()


def jpeg2000(values: np.ndarray, bits: int) -> bytes:
    """Values of 16 bits whose header says that they have fewer, so that the decoder takes them for those."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG2000")
    content = bytearray(file.getvalue())
    content[content.index(b"\xff\x51") + 40] = bits - 1
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "stored"),
    [
        ("a.pgm", b"P5\n# ToF\n2 1\n4095\n" + struct.pack(">HH", 2500, 4095), [2500, 4095]),
        ("a.pgm", b"P5 2 1 300\n" + struct.pack(">HH", 7, 300), [7, 300]),
        ("a.pgm", b"P5 2 1 65535\n" + struct.pack(">HH", 2500, 40000), [2500, 40000]),
        ("a.pgm", b"P5 2 1 100\n\x07\x64", [7, 100]),
        ("a.pgm", b"P2 2 1 4095\n2500 4095\n", [2500, 4095]),
        ("a.pgm", b"P2 2 1 100\n7 100\n", [7, 100]),
        ("a.pfm", b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 2.5, 3), [2.5, 3]),
        ("a.pfm", b"Pf\n1 2\n1.0\n" + struct.pack(">ff", 2.5, 3), [3, 2.5]),  # its rows begin at the bottom
        ("a.png", png(4, 1, 2, 0, b"\x1b"), [0, 1, 2, 3]),
        ("a.png", png(2, 1, 4, 0, b"\x1f"), [1, 15]),
        ("a.png", png(2, 1, 16, 0, struct.pack(">HH", 2500, 40000)), [2500, 40000]),
        (
            "a.png",
            png(
                2,
                1,
                16,
                0,
                struct.pack(">HH", 2500, 40000),
                png_chunk(b"gAMA", struct.pack(">I", 45455)) + png_chunk(b"tRNS", struct.pack(">H", 2500)),
            ),
            [2500, 40000],
        ),
        ("a.tif", tiff(4, 1, 2, b"\x1b"), [0, 1, 2, 3]),
        ("a.tif", tiff(2, 1, 4, b"\x1f"), [1, 15]),
        ("a.tif", tiff(2, 1, 4, b"\x1f", white_is_zero=True), [1, 15]),
        ("a.tif", tiff(2, 1, 8, b"\x0a\x14", white_is_zero=True), [10, 20]),
        ("a.tif", tiff(2, 1, 8, struct.pack("bb", 25, -3), kind=2), [25, 0]),
        ("a.tif", tiff(2, 1, 12, b"\x9c\x4f\xff"), [2500, 4095]),
        ("a.tif", tiff(2, 1, 16, struct.pack("<HH", 2500, 40000)), [2500, 40000]),
        ("a.tif", tiff(2, 1, 16, struct.pack(">HH", 2500, 40000), order=">"), [2500, 40000]),
        ("a.tif", tiff(2, 1, 16, struct.pack("<HH", 2500, 40000), white_is_zero=True), [2500, 40000]),
        ("a.tif", tiff(2, 1, 16, struct.pack("<hh", 2500, -3), kind=2), [2500, 0]),
        ("a.tif", tiff(2, 1, 32, struct.pack("<II", 2500, 3_000_000_000)), [2500, 3_000_000_000]),
        ("a.tif", tiff(2, 1, 32, struct.pack("<ii", 2500, -3), kind=2), [2500, 0]),
        ("a.tif", tiff(2, 1, 32, struct.pack("<ff", 2.5, 3), kind=3), [2.5, 3]),
        ("a.jp2", jpeg2000(np.array([[2500, 40000]], np.uint16), 16), [2500, 40000]),
    ],
)
def test_the_stored_numbers_are_read(name: str, content: bytes, stored: list[float], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    depth = read_depth(tmp_path / name, depth_scale=0.5)
    assert depth.ravel().tolist() == [value / 2 for value in stored]


def test_jpeg2000_of_12_bits_is_not_shifted(tmp_path: Path) -> None:
    # Numbers are stored by their distance from the middle of the range: 2500 of 12 bits is this of 16.
    values = np.full((8, 8), 2500 - 2**11 + 2**15, np.uint16)
    (tmp_path / "a.jp2").write_bytes(jpeg2000(values, 12))
    assert (read_depth(tmp_path / "a.jp2", 1.0) == 2500).all()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pgm", b"P5 2 1 300\n" + struct.pack(">HH", 7, 301), "the value 301, above its maximum of 300"),
        ("a.pgm", b"P5 2 1 300\n\0", "cannot be read"),
        ("a.pbm", b"P4 8 1\n\xa0", "its pixels are 1"),
        ("a.ppm", b"P6 1 1 255\n\1\2\3", "its pixels are RGB"),
        ("a.pfm", b"Pf\n1 1\n-0.5\n" + struct.pack("<f", 2.5), "its scale is -0.5"),
        ("a.png", png(8, 1, 1, 0, b"\xa0"), "its pixels are 1"),
        ("a.png", png(2, 1, 8, 3, b"\0\1", png_chunk(b"PLTE", bytes(6))), "its pixels are P"),
        ("a.png", png(1, 1, 16, 4, bytes(4)), "not one depth value each"),
        ("a.tif", tiff(2, 1, 16, bytes(4), orientation=6), "its orientation says that it is turned"),
        ("a.sgi", sgi_16_bit(2, 1, struct.pack(">HH", 2500, 300)), "SGI files are not read exactly"),
        ("a.fits", fits(2, 1, 16, struct.pack(">hh", 2500, -3)), "FITS files are not read exactly"),
    ],
)
def test_what_would_be_read_as_other_numbers_is_refused(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageReadError, match=reason):
        read_depth(tmp_path / name, depth_scale=0.5)


def bomb(path: Path, shape: tuple[int, ...], dtype: str = "<f4") -> Path:
    """An archive of a few kilobytes whose array has this shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("depth.npy", "w") as file:
        file.write(content)
        file.write(bytes(2**22))
    return path


@pytest.mark.slow
def test_an_archive_is_not_unpacked_beyond_its_image(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.npz", (1024, 1024))
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"a\.npz: .*shape \(1024, 1024\), the image \(6, 40\); resize it"):
        read_views([COLOUR], [40, 40, 20, 3], depths=[path])
    with pytest.raises(ImageReadError, match="100 million"):
        read_depth(bomb(tmp_path / "b.npz", (10000, 20000)))
    with pytest.raises(ImageReadError, match=r"b\.npz: cannot be read"):  # there is less than its header says
        read_depth(bomb(tmp_path / "b.npz", (2000, 4000)))
    with pytest.raises(ImageReadError, match="needed are numbers"):
        read_depth(bomb(tmp_path / "c.npz", (10**9, 10**9, 10**9)))
    with pytest.raises(ImageReadError, match="no array of numbers"):
        read_depth(bomb(tmp_path / "d.npz", (1024, 1024), "|O"))
    with pytest.raises(ImageReadError, match="no array of numbers"):
        read_depth(bomb(tmp_path / "e.npz", (-1, 1024)))


def test_an_array_file_that_is_shorter_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.float32))
    content = (tmp_path / "a.npy").read_bytes().replace(b"(4, 5), }          ", b"(16000, 16000), }  ")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ImageReadError, match=r"a\.npy: .*truncated"):
        read_depth(tmp_path / "a.npy")


def test_an_openexr_map_is_bounded_before_it_is_unpacked(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    path = tmp_path / "depth.exr"
    exr.File({"type": exr.scanlineimage}, {"Z": np.ones((4, 6), np.float32)}).write(str(path))
    with pytest.raises(ImageReadError, match=r"has shape \(4, 6\), the image \(3, 5\)"):
        read_depth(path, image_size=(5, 3))
    content = path.read_bytes()
    window = content.index(b"dataWindow\0box2i\0") + 17 + 4 + 8  # name, type, size, then its upper left corner
    path.write_bytes(content[:window] + struct.pack("<2i", 19_999, 19_999) + content[window + 8 :])
    with pytest.raises(ImageReadError, match=r"has shape \(20000, 20000\), more than the 100 million"):
        read_depth(path)
