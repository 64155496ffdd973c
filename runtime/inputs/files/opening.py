"""Opening image files, and the one sentence for each way in which that fails."""

from __future__ import annotations

import importlib
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from ...errors import ImageReadError, InputError
from ...system.reading import PathLike, open_file, shown_path

MOST_PIXELS = 500_000_000
"""Of an image file; Pillow takes 2 GB for so many."""
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_LONGEST_REASON = 300  # libraries quote what a damaged file holds
HEIF_EXTENSIONS = (".heic", ".heif")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".3gp")
EXR = ".exr"
EXTRAS = {".avif": "heic", **dict.fromkeys(HEIF_EXTENSIONS, "heic")}
"""The extra that reads files of an ending."""
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF")
"""Pillow names them, and has no decoder of its own: it would have another program run."""


def file_name(path: PathLike) -> str:
    """Return a path as text; InputError for what is none."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise InputError(f"a file path must be a string or a Path, got {type(path).__name__}") from None


@contextmanager
def open_image(name: str) -> Iterator[Image.Image]:
    """Yield an image file whose header is read, for as long as its file is open.

    Raises:
        OSError: as :func:`...system.reading.open_file`.
        UnidentifiedImageError: no format that Pillow decodes by itself.
        InputError: more than ``MOST_PIXELS`` pixels.
    """
    if Path(name).suffix.lower() in HEIF_EXTENSIONS:
        _register_heif()
    with open_file(name) as file:
        image = identified(file)
        if image.width * image.height > MOST_PIXELS:
            raise InputError(
                f"it has {image.width}x{image.height} pixels, and at most {MOST_PIXELS // 10**6} million are read"
            )
        with image:
            yield image


def identified(file: BinaryIO, formats: Collection[str] | None = None) -> Image.Image:
    """Do what ``Image.open`` does, but for its limit, which is one for all threads and takes a panorama for an attack.

    Args:
        file: to read from, at its beginning.
        formats: in Pillow's words, which the image may have; None for all that Pillow decodes by itself.

    Raises:
        UnidentifiedImageError: it is of none of them.
    """
    prefix = file.read(16)
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in Image.ID:
            if name in NOT_READ or (formats is not None and name not in formats):
                continue
            factory, accepts = Image.OPEN[name]
            try:
                accepted = accepts is None or accepts(prefix)
                if not accepted or isinstance(accepted, str):  # a string says why not
                    continue
                file.seek(0)
                # Without a file name: Pillow would open that once more.
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise UnidentifiedImageError("no format is like it")


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (W, H) of an image that was opened and not decoded, as its file stores it."""
    # Of a TIFF, Pillow gives the stored or the upright size, depending on its version.
    tags = tiff_tags(image)
    width, height = tags.get(_TIFF_WIDTH), tags.get(_TIFF_HEIGHT)
    return (int(width), int(height)) if width and height else image.size


def tiff_tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of an image that was opened as TIFF; none for any other."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _register_heif() -> None:
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        raise InputError("reading HEIC needs one more package; pip install 'mapengine[heic]'") from None
    plugin.register_heif_opener()


def read_error(path: str, error: Exception, kind: str) -> ImageReadError:
    """Return the one-sentence error for whatever was raised while a file was read as ``kind``."""
    name = shown_path(path)
    if isinstance(error, FileNotFoundError):
        return ImageReadError(f"{name}: there is no such file; check the path")
    if os.path.isdir(path):
        return ImageReadError(f"{name}: is a folder, not {kind} file; pass a file in it")
    if isinstance(error, UnidentifiedImageError):
        suffix = Path(path).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            return ImageReadError(f"{name}: is a video, not {kind}; give it to `mapengine run` or Engine.reconstruct")
        if suffix == EXR:
            return ImageReadError(
                f"{name}: is an OpenEXR file, which is read as a depth map and not as {kind}; convert it to PNG"
            )
        if suffix in EXTRAS and suffix not in Image.registered_extensions():
            return ImageReadError(
                f"{name}: is not {kind} that can be read here; pip install 'mapengine[{EXTRAS[suffix]}]'"
            )
        remedy = "PNG or JPEG" if kind == "an image" else "16-bit PNG or .npy"
        return ImageReadError(f"{name}: is not {kind} in a format Pillow knows; convert it to {remedy}")
    if isinstance(error, OSError) and error.strerror:
        return ImageReadError(f"{name}: cannot be read as {kind}: {error.strerror}; check the path")
    reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    return ImageReadError(f"{name}: cannot be read as {kind} ({reason}); replace the file or leave it out")
