"""Reading images and depth maps from files.

An image comes back as upright 8-bit RGB and a depth map as float32 metres, or a typed error names the file. Nothing in
between: Pillow alone would saturate 16-bit greys and hand out half a picture of a truncated file when told to.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import ImageReadError, InputError, warn

PathLike = str | os.PathLike[str]

_HEIF_EXTENSIONS = (".heic", ".heif")

IMAGE_EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png") + (
    _HEIF_EXTENSIONS if importlib.util.find_spec("pillow_heif") else ()
)
"""File name endings (lower case) that ``load_images`` searches a folder for; HEIC only where ``pillow-heif`` is
installed."""

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".m2ts", ".3gp")
MOST_PIXELS = 500_000_000
"""Of an image file; Pillow takes 2 GB for so many."""
_EXR = ".exr"
_EXTRAS = {".avif": "heic", **dict.fromkeys(_HEIF_EXTENSIONS, "heic")}
_NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF")  # Pillow names them, and has no decoder of its own

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_NO_RETURN_16_BIT = 65535  # what range cameras write, besides 0, where they measured nothing
_LIKELY_MILLIMETRES = 200.0  # metres; half of a scene lies farther only when the unit is wrong
_LARGEST_DEPTH_SCALE = 10.0


def read_image(path: PathLike) -> Image.Image:
    """Read an image file as an upright RGB image, 8 bits per channel.

    The EXIF orientation is applied, alpha is dropped (not blended), greys and palettes become RGB, CMYK is converted.
    16-bit greys keep their upper 8 bits, which is also what Pillow does with 16-bit colour. Floating-point images are
    read as 0..1, 0..255 or 0..65535, whichever holds their maximum.

    Raises:
        ImageReadError: the file is missing, a folder, truncated, not an image, too large (Pillow's guard against
            decompression bombs) or of a pixel format with no clear meaning as a picture.
    """
    name = _file_name(path)
    try:
        with _open(name) as image:
            return _picture(image, True).image
    except Exception as error:  # Pillow's decoders raise many types on damaged files, also ones that are no OSError
        raise _read_error(name, error, "an image") from error


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
    name = _file_name(path)
    try:
        with _open(name) as image:
            _refuse_depth(image)
            return _picture(image, True, as_stored)
    except Exception as error:  # see read_image
        raise _read_error(name, error, "an image") from error


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
    name = _file_name(path)
    try:
        with _open(name) as image:
            return image.mode.startswith("I") or image.mode == "F"
    except Exception as error:  # see read_image
        raise _read_error(name, error, "an image") from error


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings (lower case) of every format that Pillow reads here."""
    endings = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
    stubs = {ending for ending, form in Image.registered_extensions().items() if form in _NOT_READ}
    return frozenset(endings - stubs | {e for e in _EXTRAS if e in IMAGE_EXTENSIONS})


def missing_extra(path: Path) -> str | None:
    """Return the extra that reads a kind of file which cannot be read here; None for all others."""
    return _EXTRAS.get(path.suffix.lower()) if path.suffix.lower() not in image_suffixes() else None


def image_size(path: PathLike, as_stored: bool = False) -> tuple[int, int]:
    """Return (W, H) of an image file after EXIF orientation (but for ``as_stored``), without decoding a JPEG or PNG.

    A PNG that tells its orientation only behind the pixels, which is rare, is reported as it is stored.

    Raises:
        ImageReadError: as :func:`read_image`, as far as the header tells.
    """
    name = _file_name(path)
    try:
        with _open(name) as image:
            if image.format == "TIFF":
                # Its size is the stored or the upright one depending on the version of Pillow; decoding settles it.
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return image.size
            width, height = image.size
            # Not image.getexif(): for a PNG without EXIF before the pixels that decodes the whole image.
            sideways = _is_turned(Image.Image.getexif(image))
    except Exception as error:  # see read_image
        raise _read_error(name, error, "an image") from error
    return (height, width) if sideways and not as_stored else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to RGB with 8 bits per channel; rules as in :func:`read_image`, EXIF is not looked at.

    Raises:
        InputError: an integer or float image whose range has no clear meaning.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_levels(np.asarray(image), is_png=image.format == "PNG")).convert("RGB")
    return image.convert("RGB")


def read_depth(path: PathLike, depth_scale: float | None = None) -> npt.NDArray[np.float32]:
    """Read a depth map as float32 metres, shape (H, W), 0 where there is no depth.

    Integer files (16-bit PNG or TIFF, integer ``.npy``) hold millimetres unless ``depth_scale`` says otherwise; 0 and,
    in 16 bits, 65535 mean no depth. Floating-point files (``.npy``, ``.npz``, 32-bit TIFF) hold metres. An ``.npz``
    must hold one array, or one named ``depth_z`` or ``depth``. NaN, infinite and negative values mean no depth. An
    EXIF orientation is not applied.

    Args:
        depth_scale: metres per stored unit, e.g. 1/5000 for TUM RGB-D. Default 0.001 for integers, 1.0 for floats.

    Raises:
        InputError: ``depth_scale`` is not a positive number of metres per unit.
        ImageReadError: the file is missing, truncated or not a depth map (colour, or 8 bits without ``depth_scale``).
    """
    name = _file_name(path)
    if depth_scale is not None and not (isinstance(depth_scale, Real) and 0 < depth_scale <= _LARGEST_DEPTH_SCALE):
        raise InputError(
            f"depth_scale is metres per stored unit, got {depth_scale!r}; if the file holds that many units per metre, "
            "pass 1 divided by it"
        )
    try:
        stored = _stored_depth(name)
        if stored.dtype == np.uint8 and depth_scale is None:
            raise InputError("it has 8 bits, likely a picture of a depth map; pass depth_scale if it holds depth")
    except Exception as error:  # see read_image; NumPy adds its own types
        raise _read_error(name, error, "a depth map") from error

    is_float = stored.dtype.kind == "f"
    missing = stored <= 0
    if not is_float and stored.max() <= _NO_RETURN_16_BIT:
        missing |= stored == _NO_RETURN_16_BIT
    if depth_scale is None:
        depth_scale = 1.0 if is_float else 1e-3
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and that means no depth
        # float64 for the product, so that 1234 mm is the float32 nearest to 1.234 m.
        depth: npt.NDArray[np.float32] = (stored * np.float64(depth_scale)).astype(np.float32)
    depth[missing | ~np.isfinite(depth)] = 0
    known = depth[depth > 0]
    if not known.size:
        warn(f"{name}: holds no depth above 0, so the view counts as one without depth")
    elif is_float and depth_scale == 1 and np.median(known) > _LIKELY_MILLIMETRES:
        warn(f"{name}: the median depth is {np.median(known):.0f} m; if these are millimetres, pass depth_scale=0.001")
    return depth


def _stored_depth(name: str) -> npt.NDArray[Any]:
    ending = Path(name).suffix.lower()
    if ending == _EXR:
        stored = _exr_depth(name)
    elif ending in (".npy", ".npz"):
        with open(name, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            stored = _only_array(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    else:
        with _open(name) as image:
            image.load()
            if image.mode not in ("L", "F") and not image.mode.startswith("I"):
                raise InputError(f"its pixels are {image.mode}, not one depth value each")
            stored = np.asarray(image)
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored[0] if stored.shape[0] == 1 else stored[:, :, 0]
    if stored.ndim != 2 or stored.size == 0 or stored.dtype.kind not in "uif":
        raise InputError(f"it holds {stored.dtype} of shape {stored.shape}; needed are numbers of shape (H, W)")
    return stored


def _exr_depth(name: str) -> npt.NDArray[Any]:
    """The channel Z, or the only one, of an OpenEXR file; greys that are stored three times count as one."""
    try:
        exr = importlib.import_module("OpenEXR")
    except ImportError:
        raise InputError("reading OpenEXR needs one more package; pip install 'mapengine[exr]'") from None
    with exr.File(name, separate_channels=True) as file:
        channels = {key: np.array(channel.pixels) for key, channel in file.channels().items()}
    for key in ("Z", "depth.Z", "View Layer.Depth.Z", "Depth.V", "depth.V", "Y", "V"):
        if key in channels:
            return channels[key].astype(np.float32)
    first = next(iter(channels.values()))
    if not all(np.array_equal(first, other, equal_nan=True) for key, other in channels.items() if key != "A"):
        raise InputError(f"it has the channels {', '.join(channels)}; name that of the depth Z")
    return first.astype(np.float32)


def _only_array(archive: np.lib.npyio.NpzFile) -> npt.NDArray[Any]:
    for key in ("depth_z", "depth"):
        if key in archive.files:
            return np.asarray(archive[key])
    if len(archive.files) != 1:
        raise InputError(f'it holds the arrays {archive.files}; name one of them "depth_z"')
    return np.asarray(archive[archive.files[0]])


def _grey_levels(values: npt.NDArray[Any], is_png: bool) -> npt.NDArray[np.uint8]:
    """Turn greys of 16 or 32 bits (H, W) into 8 bits; InputError where their range tells nothing."""
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise InputError(f"its grey values span {low} to {high}; convert it to 8 or 16 bits")
    if values.dtype.kind == "f":
        # 0..1 is scaled as upstream scales float arrays; the larger ranges are truncated like integers.
        factor = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 256
        return (values * factor).astype(np.uint8)
    # 32-bit integers may hold levels of 8 or 16 bits. Before Pillow 11.3 16-bit PNGs came as 32-bit integers, too.
    has_16_bits = is_png or values.dtype.itemsize == 2 or high > 255
    return (values >> 8 if has_16_bits else values).astype(np.uint8)


def _file_name(path: PathLike) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise InputError(f"a file path must be a string or a Path, got {type(path).__name__}") from None


def _picture(image: Image.Image, in_place: bool, as_stored: bool = False) -> Picture:
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
    return Picture(to_rgb(image), turned, opaque)


def _refuse_depth(image: Image.Image) -> None:
    # Before Pillow 11.3 16-bit PNGs came as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        raise InputError(
            "it has one channel of 16 bits, which is a depth map and no photograph; give it as the depth of a view, or "
            "convert it to 8 bits"
        )


def _is_turned(exif: Image.Exif) -> bool:
    return exif.get(ExifTags.Base.Orientation) in _SIDEWAYS


def _open(name: str) -> Image.Image:
    suffix = Path(name).suffix.lower()
    if suffix in _HEIF_EXTENSIONS:
        _register_heif()
    with _own_limit():
        image = Image.open(name)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise InputError(
            f"it has {image.width}x{image.height} pixels, and at most {MOST_PIXELS // 10**6} million are read"
        )
    return image


_limit_lock = threading.Lock()


@contextmanager
def _own_limit() -> Iterator[None]:
    """Put :data:`MOST_PIXELS` in the place of Pillow's limit, which takes a panorama for an attack."""
    with _limit_lock:  # Pillow's limit is one for all threads
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _register_heif() -> None:
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        raise InputError("reading HEIC needs one more package; pip install 'mapengine[heic]'") from None
    plugin.register_heif_opener()


def _read_error(name: str, error: Exception, kind: str) -> ImageReadError:
    if isinstance(error, FileNotFoundError):
        return ImageReadError(f"{name}: there is no such file; check the path")
    if os.path.isdir(name):
        return ImageReadError(f"{name}: is a folder, not {kind} file; pass a file in it")
    suffix = Path(name).suffix.lower()
    if isinstance(error, UnidentifiedImageError):
        if suffix in VIDEO_SUFFIXES:
            return ImageReadError(f"{name}: is a video, not {kind}; give it to `mapengine run` or Engine.reconstruct")
        if suffix == _EXR:
            return ImageReadError(
                f"{name}: is an OpenEXR file, which is read as a depth map and not as {kind}; convert it to PNG"
            )
        if suffix in _EXTRAS:
            return ImageReadError(
                f"{name}: is not {kind} that can be read here; pip install 'mapengine[{_EXTRAS[suffix]}]'"
            )
        return ImageReadError(f"{name}: is not {kind} in a format Pillow knows; convert it to PNG or JPEG")
    reason = str(error) or type(error).__name__
    return ImageReadError(f"{name}: cannot be read as {kind} ({reason}); replace the file or leave it out")
