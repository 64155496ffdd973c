from __future__ import annotations

import contextlib
import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs.files import opening
from mapengine.runtime.inputs.files.depth import read_depth
from mapengine.runtime.inputs.images import IMAGE_EXTENSIONS, image_size, picture_of, read_image, to_rgb
from mapengine.runtime.inputs.sources import open_views

from ...image_bytes import png, tiff

RAMP = np.arange(6 * 40, dtype=np.uint8).reshape(6, 40)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_colour_is_read_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOUR)
    np.testing.assert_array_equal(read(path), COLOUR)
    np.testing.assert_array_equal(np.asarray(read_image(str(path))), COLOUR)
    assert image_size(path) == (40, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.zeros((40, 80, 3), np.uint8)
    upright[:20, :40] = 250  # bright at the top left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{ending}", np.ascontiguousarray(stored), exif=exif)
    result = read(path)
    assert result.shape == upright.shape
    assert np.abs(result.astype(int) - upright).max() <= (30 if ending == "jpg" else 0)
    assert image_size(path) == (80, 40)


@pytest.mark.parametrize("packing", [None, "tiff_lzw"])
@pytest.mark.parametrize("values", [COLOUR, RAMP, RAMP.astype(np.uint16), RAMP.astype(np.float32)])
def test_the_size_of_a_tiff_is_in_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str | None, values: np.ndarray
) -> None:
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(tmp_path / f"{orientation}.tif", values, exif=exif, compression=packing)

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded to learn its size")

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", decoded)
    assert image_size(tmp_path / "1.tif") == (40, 6)
    assert image_size(tmp_path / "6.tif") == (6, 40)


def test_greys_palettes_alpha_and_cmyk_become_rgb(tmp_path: Path) -> None:
    grey = np.repeat(RAMP[:, :, None], 3, 2)
    np.testing.assert_array_equal(read(save(tmp_path / "grey.png", RAMP)), grey)
    np.testing.assert_array_equal(read(save(tmp_path / "bits.png", RAMP > 99)), (grey > 99) * np.uint8(255))
    transparent = np.dstack([COLOUR, np.zeros_like(RAMP)])
    np.testing.assert_array_equal(read(save(tmp_path / "alpha.png", transparent)), COLOUR)  # dropped, not blended
    np.testing.assert_array_equal(read(save(tmp_path / "grey_alpha.png", RAMP, "LA")), grey)
    flat = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    np.testing.assert_array_equal(read(save(tmp_path / "palette.png", flat, "P")), flat)
    np.testing.assert_array_equal(read(save(tmp_path / "cmyk.tiff", flat, "CMYK")), flat)


def test_16_bit_greys_keep_their_upper_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 240).astype(np.uint16).reshape(6, 40)
    expected = np.repeat((values // 256).astype(np.uint8)[:, :, None], 3, 2)
    np.testing.assert_array_equal(read(save(tmp_path / "a.png", values)), expected)
    np.testing.assert_array_equal(read(save(tmp_path / "a.tiff", values)), expected)
    np.testing.assert_array_equal(read(save(tmp_path / "b.tiff", values.astype(np.int32))), expected)
    np.testing.assert_array_equal(read(save(tmp_path / "dark.png", values // 256)), expected * 0)


def test_32_bit_greys_by_their_range(tmp_path: Path) -> None:
    grey = np.repeat(RAMP[:, :, None], 3, 2)
    np.testing.assert_array_equal(read(save(tmp_path / "int8.tiff", RAMP.astype(np.int32))), grey)
    levels = RAMP.astype(np.float32)
    np.testing.assert_array_equal(read(save(tmp_path / "level.tiff", levels)), grey)
    np.testing.assert_array_equal(read(save(tmp_path / "unit.tiff", (levels + 0.5) / 255)), grey)
    np.testing.assert_array_equal(read(save(tmp_path / "wide.tiff", levels * 256 + 7)), grey)
    for name, value in [("negative", -1.0), ("huge", 1e6), ("nan", np.nan), ("inf", np.inf)]:
        with pytest.raises(ImageReadError, match=rf"{name}\.tiff: cannot be read.*grey values"):
            read_image(save(tmp_path / f"{name}.tiff", np.where(RAMP == 5, value, levels).astype(np.float32)))


def test_to_rgb_returns_rgb_images_as_they_are() -> None:
    image = Image.fromarray(COLOUR)
    assert to_rgb(image) is image


def test_one_pixel_and_long_images(tmp_path: Path) -> None:
    assert read(save(tmp_path / "one.png", COLOUR[:1, :1])).shape == (1, 1, 3)
    assert read(save(tmp_path / "long.png", np.zeros((10, 20000, 3), np.uint8))).shape == (10, 20000, 3)


def test_missing_folder_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"none\.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageReadError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("this is no image")
    with pytest.raises(ImageReadError, match=r"text\.jpg: is not an image"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(ImageReadError, match=r"empty\.jpg: is not an image"):
        image_size(tmp_path / "empty.jpg")
    with pytest.raises(ImageReadError, match=r"a\\x00b.png: cannot be read as an image: .* no path can have"):
        read_image("a\0b.png")
    number: Any = 3
    with pytest.raises(InputError, match="file path must be a string or a Path, got int"):
        read_image(number)
    with pytest.raises(OSError, match="no such file"):  # for code that catches what open() raises
        read_image(tmp_path / "none.png")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png", COLOUR)
    monkeypatch.setattr(opening, "MOST_PIXELS", 100)
    with pytest.raises(ImageReadError, match=r"bomb\.png: .* pixels, and at most"):
        read_image(path)


def test_a_panorama_up_to_our_limit_is_read_without_talk_of_an_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At its real size (14000x7000, 98 million pixels) this takes 2.8 s and 410 MB.
    path = save(tmp_path / "panorama.jpg", np.repeat(COLOUR, 8, axis=0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # of which Pillow refuses the double
    monkeypatch.setattr(opening, "MOST_PIXELS", 48 * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (view,) = open_views(path)
        assert view.size == (40, 48)
        assert view.resized((28, 28)).image.shape == (28, 28, 3)
    monkeypatch.setattr(opening, "MOST_PIXELS", 48 * 40 - 1)
    with pytest.raises(ImageReadError, match=r"panorama\.jpg: .*40x48 pixels, and at most"):
        open_views(path)[0].read()


def test_a_small_file_that_stands_for_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(30000, 30000, 8, 2, bytes(90000)))
    for reader in (read_image, image_size, read_depth):
        with pytest.raises(ImageReadError, match=r"bomb\.png: .*30000x30000|bomb\.png: .*\(30000, 30000\)"):
            reader(tmp_path / "bomb.png")


def test_what_another_program_would_have_to_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageReadError, match="is not an image in a format"):
        read_image(tmp_path / "a.eps")


@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large panorama is read without a word, whatever Pillow takes for an attack; its limit stays as it was."""
    path = save(tmp_path / "panorama.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).size == image_size(path)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "jpg", "tiff"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_an_image_or_a_typed_error(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    path = save(tmp_path / f"a.{ending}", COLOUR)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    for reader in (read_image, image_size, read_depth):
        with contextlib.suppress(ImageReadError):
            reader(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    for ending in ("png", "jpg"):
        path = save(tmp_path / f"a.{ending}", np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:3000])
        assert image_size(path) == (90, 90)
        with pytest.raises(ImageReadError, match=rf"a\.{ending}: cannot be read as an image \(.*truncated.*replace"):
            read_image(path)


def test_heic_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", no_module)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(ImageReadError, match=r"a\.heic: .*pip install 'mapengine\[heic\]'"):
        read_image(tmp_path / "a.heic")
    assert {".jpg", ".jpeg", ".png"} <= set(IMAGE_EXTENSIONS)


@pytest.mark.parametrize(
    ("name", "content", "levels"),
    [
        ("a.pgm", b"P5 2 1 4095\n\x08\x00\x0f\xff", [128, 255]),
        ("a.pgm", b"P5 2 1 100\n\x32\x64", [128, 255]),
        ("a.png", png(2, 1, 4, 0, b"\x0f"), [0, 255]),
        ("a.png", png(2, 1, 16, 0, b"\x80\x01\xff\xff"), [128, 255]),
        ("a.tif", tiff(2, 1, 12, b"\x80\x0f\xff"), [128, 255]),
        ("a.tif", tiff(2, 1, 16, b"\x00\x80\xff\xff"), [128, 255]),
        ("a.tif", tiff(2, 1, 16, b"\xff\x7f\x00\x00", white_is_zero=True), [128, 255]),
        ("a.tif", tiff(2, 1, 8, b"\x7f\x00", white_is_zero=True), [128, 255]),
    ],
)
def test_greys_of_any_depth_become_the_same_picture(
    name: str, content: bytes, levels: list[int], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)[0, :, 0].tolist() == levels
    with Image.open(tmp_path / name) as image:
        assert np.asarray(picture_of(image).image)[0, :, 1].tolist() == levels


def test_floats_whose_white_is_zero_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(1, 1, 32, b"\0\0\0\0", kind=3, white_is_zero=True))
    with pytest.raises(ImageReadError, match="its white is 0"):
        read_image(tmp_path / "a.tif")
