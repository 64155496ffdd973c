"""Images and depth of messages, in every encoding that is read, and the sentences for the others."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import InputError
from mapengine_ros.encodings import (
    IMAGE_ENCODINGS,
    read_compressed_depth,
    read_compressed_image,
    read_depth,
    read_image,
)

from .plain_messages import image

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ALPHA = np.full((6, 8, 1), 9, np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


CASES = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, ALPHA], axis=-1), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], ALPHA], axis=-1), RGB),
    "mono8": (RGB[..., 0], grey(RGB[..., 0])),
    "8UC1": (RGB[..., 0], grey(RGB[..., 0])),
    "rgb16": (RGB.astype(np.uint16) * 256 + 13, RGB),
    "bgr16": (RGB[..., ::-1].astype(np.uint16) * 256 + 13, RGB),
    "mono16": (RGB[..., 0].astype(np.uint16) * 256 + 13, grey(RGB[..., 0])),
}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", CASES)
def test_images_are_read_as_rgb_whatever_their_step_and_byte_order(encoding: str, padding: int, big: bool) -> None:
    stored, expected = CASES[encoding]
    found = read_image(image(stored, encoding, padding=padding, big=big))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_data_may_be_what_rclpy_gives() -> None:
    from array import array

    message = image(RGB, "rgb8")
    for data in (array("B", message.data), list(message.data), np.frombuffer(message.data, np.uint8)):
        message.data = data
        np.testing.assert_array_equal(read_image(message), RGB)


def mosaic(colour: np.ndarray, order: str) -> np.ndarray:
    """What a sensor behind a Bayer filter sees."""
    rows, columns = np.indices(colour.shape[:2])
    channels = np.array(["rgb".index(letter) for letter in order])[2 * (rows % 2) + columns % 2]
    return np.take_along_axis(colour, channels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaics_give_back_what_is_smooth(order: str) -> None:
    rows, columns = np.indices((12, 10))
    smooth = np.stack([20 + 4 * rows, 200 - 6 * columns, 30 + 3 * rows + 5 * columns], axis=-1).astype(np.uint8)
    for depth, factor in (("8", 1), ("16", 256)):
        seen = mosaic(smooth, order).astype(np.uint16) * factor if factor > 1 else mosaic(smooth, order)
        found = read_image(image(seen, f"bayer_{order}{depth}")).astype(int)
        assert np.abs(found[1:-1, 1:-1] - smooth[1:-1, 1:-1]).max() <= 1
        # At the border a neighbour is missing: a pixel of the slope in both directions.
        assert np.abs(found - smooth).max() <= 3 + 5


@pytest.mark.parametrize(("encoding", "luma"), [("yuv422", 1), ("uyvy", 1), ("yuv422_yuy2", 0), ("yuyv", 0)])
def test_yuv_has_the_colours_of_bt_601(encoding: str, luma: int) -> None:
    # Limited range: black, white, red, green and blue as the standard's tables have them, two pixels each.
    yuv = {
        (0, 0, 0): (16, 128, 128),
        (255, 255, 255): (235, 128, 128),
        (255, 0, 0): (81, 90, 240),
        (0, 255, 0): (145, 54, 34),
        (0, 0, 255): (41, 240, 110),
    }
    row = np.zeros((1, 2 * len(yuv), 2), np.uint8)
    for index, (y, u, v) in enumerate(yuv.values()):
        row[0, 2 * index : 2 * index + 2, luma] = y
        row[0, 2 * index : 2 * index + 2, 1 - luma] = u, v
    found = read_image(image(np.repeat(row, 2, axis=0), encoding))[0, ::2]
    assert np.abs(found.astype(int) - np.array(list(yuv))).max() <= 2


def test_depth_is_in_metres_in_both_encodings() -> None:
    millimetres = np.array([[0, 1500], [65535, 250]], np.uint16)
    for big in (False, True):
        found = read_depth(image(millimetres, "16UC1", padding=6, big=big))
        np.testing.assert_allclose(found, millimetres / 1000, rtol=1e-6)
        metres = np.array([[np.nan, 1.5], [np.inf, 0.25]], np.float32)
        np.testing.assert_array_equal(read_depth(image(metres, "32FC1", padding=8, big=big)), metres)


def changed(**changes: Any) -> Any:
    message = image(RGB, "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (changed(encoding="32FC3"), r"'32FC3' is not read as an image; publish one of rgb8, bgr8"),
        (changed(encoding=""), r"'' is not read"),
        (changed(step=23), r"step is 23 bytes, but a row of 8 pixels in rgb8 takes 24"),
        (changed(step=0), r"step is 0 bytes"),
        (changed(data=bytes(143)), r"143 bytes of data, but 6 rows with a step of 24 bytes need 144"),
        (changed(data=b""), r"0 bytes of data"),
        (changed(width=0), r"0x6 pixels is empty"),
        (changed(height=2**32 - 1), r"bytes of data, but"),
        (image(RGB[:, :7, :2], "yuv422"), r"even width, not 7"),
        (image(RGB[:1, :, 0], "bayer_rggb8"), r"8x1 pixels has not all colours"),
    ],
)
def test_a_wrong_image_gets_a_sentence(message: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_image(message)


def test_a_picture_is_no_depth() -> None:
    with pytest.raises(InputError, match="'rgb8' is not read as depth; publish 16UC1"):
        read_depth(image(RGB, "rgb8"))


def encoded(values: np.ndarray, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form, **options)
    return file.getvalue()


def test_compressed_images_are_read() -> None:
    png = SimpleNamespace(format="bgr8; png compressed bgr8", data=encoded(RGB, "PNG"))
    np.testing.assert_array_equal(read_compressed_image(png), RGB)
    smooth = np.full((16, 16, 3), (200, 90, 30), np.uint8)
    jpeg = SimpleNamespace(format="rgb8; jpeg compressed bgr8", data=encoded(smooth, "JPEG", quality=95))
    assert np.abs(read_compressed_image(jpeg).astype(int) - smooth).max() <= 3
    mono = SimpleNamespace(format="jpeg", data=encoded(smooth[..., 0], "JPEG"))
    assert read_compressed_image(mono).shape == (16, 16, 3)


def test_damaged_and_other_compressed_images_get_a_sentence() -> None:
    whole = encoded(RGB, "PNG")
    for data in (whole[:-30], b"", b"\xff\xd8\xff" + bytes(50), encoded(RGB, "BMP")):
        with pytest.raises(InputError, match=r"are no intact JPEG or PNG"):
            read_compressed_image(SimpleNamespace(format="png", data=data))
    with pytest.raises(InputError, match="is depth; publish JPEG or PNG"):
        read_compressed_image(SimpleNamespace(format="16UC1; compressedDepth png", data=whole))


def test_compressed_depth_is_read() -> None:
    millimetres = np.array([[0, 1500, 40000], [250, 65535, 7]], np.uint16)
    plain = SimpleNamespace(format="16UC1; png compressed", data=encoded(millimetres, "PNG"))
    np.testing.assert_allclose(read_compressed_depth(plain), millimetres / 1000, rtol=1e-6)
    data = struct.pack("<iff", 0, 0, 0) + encoded(millimetres, "PNG")
    found = read_compressed_depth(SimpleNamespace(format="16UC1; compressedDepth png", data=data))
    np.testing.assert_allclose(found, millimetres / 1000, rtol=1e-6)


def test_compressed_depth_of_floats_is_an_inverse() -> None:
    # As compressed_depth_image_transport writes it: a / depth + b, 0 where there is none.
    depth = np.array([[0.5, 1.0, 2.0], [5.0, 9.0, 0.0]], np.float32)
    a, b = 1000.0, -100.0 + 200.0
    steps = np.where(depth > 0, a / np.where(depth > 0, depth, 1) + b, 0).astype(np.uint16)
    data = struct.pack("<iff", 0, a, b) + encoded(steps, "PNG")
    found = read_compressed_depth(SimpleNamespace(format="32FC1; compressedDepth png", data=data))
    np.testing.assert_allclose(found, depth, rtol=0.01)


@pytest.mark.parametrize(
    ("form", "data", "sentence"),
    [
        ("16UC1; compressedDepth rvl", bytes(40), "in RVL is not read; set its transport's format to png"),
        ("16UC1; compressedDepth png", bytes(5), "5 bytes is too short"),
        (
            "32FC1; compressedDepth png",
            struct.pack("<iff", 0, float("nan"), 0) + encoded(RGB[..., 0], "PNG"),
            "channel",
        ),
        ("16UC1; compressedDepth png", bytes(12) + b"nothing", "no intact PNG"),
        ("16UC1; png compressed", encoded(RGB, "PNG"), "its PNG has the pixels RGB"),
    ],
)
def test_wrong_compressed_depth_gets_a_sentence(form: str, data: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_compressed_depth(SimpleNamespace(format=form, data=data))


def test_every_encoding_that_is_promised_is_read() -> None:
    for encoding in IMAGE_ENCODINGS:
        wide = image(np.zeros((4, 64), np.uint8), encoding)
        wide.width = 8
        assert read_image(wide).shape == (4, 8, 3), encoding
