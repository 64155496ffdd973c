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
from PIL import Image

from mapengine.runtime.errors import ImageReadError, InputError
from mapengine.runtime.inputs import images
from mapengine.runtime.inputs.images import IMAGE_EXTENSIONS, image_size, read_depth, read_image, to_rgb

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


# --- images


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
    with pytest.raises(ImageReadError, match="null"):
        read_image("a\0b.png")
    number: Any = 3
    with pytest.raises(InputError, match="file path must be a string or a Path, got int"):
        read_image(number)
    with pytest.raises(OSError, match="no such file"):  # for code that catches what open() raises
        read_image(tmp_path / "none.png")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "bomb.png", COLOUR)
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(ImageReadError, match=r"bomb\.png: .* pixels, and at most"):
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_is_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large panorama is read without a word, whatever Pillow takes for an attack; its limit stays as it was."""
    path = save(tmp_path / "panorama.png", COLOUR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).size == image_size(path)
    assert Image.MAX_IMAGE_PIXELS == 100


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


# --- depth


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


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 5000, "0.001"])
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
