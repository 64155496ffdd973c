"""Reading images from files.

An image comes back as upright 8-bit RGB, or a typed error names the file. Nothing in between: Pillow alone would
saturate 16-bit greys and hand out half a picture of a truncated file when told to.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from ..errors import ImageReadError, InputError
from ..system.reading import PathLike
from .files.opening import EXTRAS, HEIF_EXTENSIONS, NOT_READ, file_name, open_image, read_error, stored_size, tiff_tags

IMAGE_EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png") + (
    HEIF_EXTENSIONS if importlib.util.find_spec("pillow_heif") else ()
)
"""File name endings (lower case) that ``load_images`` searches a folder for; HEIC only where ``pillow-heif`` is
installed."""

_BITS, _PHOTOMETRIC = 258, 262  # tags of TIFF
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def read_image(path: PathLike) -> Image.Image:
    """Read an image file as an upright RGB image, 8 bits per channel.

    The EXIF orientation is applied, alpha is dropped (not blended), greys and palettes become RGB, CMYK is converted.
    16-bit greys keep their upper 8 bits, which is also what Pillow does with 16-bit colour; 12-bit ones too. Floating-
    point images are read as 0..1, 0..255 or 0..65535, whichever holds their maximum.

    Raises:
        ImageReadError: the file is missing, no regular file, truncated, not an image, of too many pixels, or of a pixel
            format with no clear meaning as a picture.
    """
    name = file_name(path)
    try:
        with open_image(name) as image:
            return _picture(image, True).image
    except Exception as error:  # Pillow's decoders raise many types on damaged files, also ones that are no OSError
        raise read_error(name, error, "an image") from error


class Picture(NamedTuple):
    """An upright RGB image, whether EXIF turned it sideways from how it is stored, and where it is opaque: (H, W) bool,
    or None for all of it."""

    image: Image.Image
    turned: bool
    opaque: npt.NDArray[np.bool_] | None


def read_picture(path: PathLike, as_stored: bool = False) -> Picture:
    """Read an image file as :func:`read_image` does, and tell more of it.

    Args:
        as_stored: leave its EXIF orientation out.

    Raises:
        ImageReadError: as :func:`read_image`, and for an image of one channel with 16 bits, which is a depth map and
            no photograph.
    """
    name = file_name(path)
    try:
        with open_image(name) as image:
            _refuse_depth(image)
            return _picture(image, True, as_stored)
    except Exception as error:  # see read_image
        raise read_error(name, error, "an image") from error


def picture_of(image: Image.Image) -> Picture:
    """Do what :func:`read_picture` does with a Pillow image, which is not changed.

    Raises:
        ImageReadError: it cannot be decoded, or its pixels have no clear meaning as a picture.
    """
    try:
        return _picture(image, False)
    except Exception as error:  # see read_image; an opened file is decoded only here
        raise ImageReadError(f"cannot be read: {error}") from error


def has_depth_pixels(path: PathLike) -> bool:
    """Return whether an image file has one channel of more than 8 bits, as depth maps have.

    Raises:
        ImageReadError: as :func:`read_image`, as far as the header tells.
    """
    name = file_name(path)
    try:
        with open_image(name) as image:
            return image.mode.startswith("I") or image.mode == "F"
    except Exception as error:  # see read_image
        raise read_error(name, error, "an image") from error


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings (lower case) of every format that Pillow reads here."""
    endings = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
    stubs = {ending for ending, form in Image.registered_extensions().items() if form in NOT_READ}
    return frozenset(endings - stubs | {e for e in EXTRAS if e in IMAGE_EXTENSIONS})


def missing_extra(path: Path) -> str | None:
    """Return the extra that reads a kind of file which cannot be read here; None for all others."""
    return EXTRAS.get(path.suffix.lower()) if path.suffix.lower() not in image_suffixes() else None


def image_size(path: PathLike, as_stored: bool = False) -> tuple[int, int]:
    """Return (W, H) of an image file after EXIF orientation (but for ``as_stored``), from its header.

    A PNG that tells its orientation only behind the pixels, which is rare, is reported as it is stored.

    Raises:
        ImageReadError: as :func:`read_image`, as far as the header tells.
    """
    name = file_name(path)
    try:
        with open_image(name) as image:
            return upright_size(image, as_stored)
    except Exception as error:  # see read_image
        raise read_error(name, error, "an image") from error


def upright_size(image: Image.Image, as_stored: bool = False) -> tuple[int, int]:
    """Do what :func:`image_size` does with an image that was opened and not decoded."""
    width, height = stored_size(image)
    as_stored &= image.format != "TIFF"  # which is turned whenever it is decoded
    # Not image.getexif(): for a PNG without EXIF before the pixels that decodes the whole image.
    sideways = _is_turned(Image.Image.getexif(image))
    return (height, width) if sideways and not as_stored else (width, height)


def is_plain_image(path: PathLike, form: str | None) -> bool:
    """Return whether a file is of a format, in Pillow's words, with 8 bits per channel in grey or RGB, and upright.

    Raises:
        ImageReadError: as :func:`read_image`, as far as the header tells.
    """
    name = file_name(path)
    try:
        with open_image(name) as image:
            upright = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (0, 1)
            return image.format == form and image.mode in ("RGB", "L") and upright
    except Exception as error:  # see read_image
        raise read_error(name, error, "an image") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to RGB with 8 bits per channel; rules as in :func:`read_image`, EXIF is not looked at.

    Raises:
        InputError: an integer or float image whose range has no clear meaning.
    """
    return _to_rgb(image, _Greys.of(image))


@dataclass(frozen=True)
class _Greys:
    """What the header of an image says of its grey values.

    Attributes:
        bits: of a value, where they are fewer than those of Pillow's pixels; None otherwise.
        white_is_zero: whether Pillow's values still have to be turned around.
        is_png: whether its file is a PNG.
    """

    bits: int | None
    white_is_zero: bool
    is_png: bool

    @classmethod
    def of(cls, image: Image.Image) -> _Greys:
        """Read it from an image that was just opened."""
        tags = tiff_tags(image)
        return cls(12 if tags.get(_BITS) == (12,) else None, tags.get(_PHOTOMETRIC) == 0, image.format == "PNG")


def _to_rgb(image: Image.Image, greys: _Greys) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_levels(np.asarray(image), greys)).convert("RGB")
    return image.convert("RGB")


def _grey_levels(values: npt.NDArray[Any], greys: _Greys) -> npt.NDArray[np.uint8]:
    """Turn greys of 16 or 32 bits (H, W) into 8 bits; InputError where their range tells nothing."""
    if greys.white_is_zero:
        # Pillow turns greys of up to 8 bits around, and no others.
        if values.dtype != np.uint16:
            raise InputError("its white is 0, which is read for greys of up to 16 bits alone; store black as 0")
        values = np.uint16(65535) - values
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise InputError(f"its grey values span {low} to {high}; convert it to 8 or 16 bits")
    if values.dtype.kind == "f":
        # 0..1 is scaled as upstream scales float arrays; the larger ranges are truncated like integers.
        factor = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 256
        return (values * factor).astype(np.uint8)
    if greys.bits is not None:
        return (values >> (greys.bits - 8)).astype(np.uint8)
    # 32-bit integers may hold levels of 8 or 16 bits. Before Pillow 11.3 16-bit PNGs came as 32-bit integers, too.
    has_16_bits = greys.is_png or values.dtype.itemsize == 2 or high > 255
    return (values >> 8 if has_16_bits else values).astype(np.uint8)


def _picture(image: Image.Image, in_place: bool, as_stored: bool = False) -> Picture:
    greys = _Greys.of(image)  # of the file: a copy has lost it
    turned = not as_stored and _is_turned(image.getexif())  # before it is decoded: a TIFF forgets its orientation then
    if not as_stored:
        if in_place:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
    opaque = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        opaque = None if alpha.min() == 255 else alpha > 127
    return Picture(_to_rgb(image, greys), turned, opaque)


def _refuse_depth(image: Image.Image) -> None:
    # Before Pillow 11.3 16-bit PNGs came as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        raise InputError(
            "it has one channel of 16 bits, which is a depth map and no photograph; give it as the depth of a view, or "
            "convert it to 8 bits"
        )


def _is_turned(exif: Image.Exif) -> bool:
    return exif.get(ExifTags.Base.Orientation) in _SIDEWAYS
