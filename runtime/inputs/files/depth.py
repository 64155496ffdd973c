"""Reading depth maps from files: the numbers that are stored, and nothing that a library made of them.

Pillow is made for pictures and stretches greys of few bits to the whole range; for depth that is another distance. What
it does to each format is undone here, or the file is refused:

===================================  =============================  =================================================
file                                 Pillow's pixels                what is done
===================================  =============================  =================================================
PGM with maximum 4095 (not 255 or    times 65535 / 4095             undone; values above the maximum are refused
65535)
PFM with a scale other than 1        as if it were 1                refused: who reads it disagrees on its meaning
PNG of 2 or 4 bits                   times 85 or 17                 undone
TIFF of 2 or 4 bits                  times 85 or 17                 undone
TIFF of up to 8 bits, white is 0     turned around                  undone
TIFF of 8 bits with a sign           without the sign               undone
TIFF of 32 bits without a sign       with a sign                    undone
TIFF with an orientation             turned                         refused
JPEG 2000 of 12 bits                 shifted to 16 bits             undone
PNG, PGM, TIFF of 16 bits; TIFF of   as stored                      taken, whatever gAMA, tRNS or the byte order are
12 bits; TIFF and PFM of floats
colours, palettes, alpha, 1 bit                                     refused
other formats                        often 8 of 16 bits             refused
===================================  =============================  =================================================
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import InputError, warn
from ...system.array_files import StoredArray, stored_arrays
from ...system.reading import PathLike, open_file, shown_path
from .opening import EXR, file_name, open_image, read_error, tiff_tags

_NO_RETURN_16_BIT = 65535  # what range cameras write, besides 0, where they measured nothing
LIKELY_MILLIMETRES = 200.0
"""Metres; half of a scene lies farther only when the unit is wrong."""
_LARGEST_DEPTH_SCALE = 10.0
MOST_DEPTHS = 100_000_000
"""Pixels of a depth map whose image is not known; no range camera has so many."""
_EIGHT_BITS = ("BMP", "GIF", "JPEG", "MPO")
"""Formats whose greys have 8 bits and are handed on as they are."""
_HEADER = 2**20  # bytes, within which a format says how many bits its values have
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339  # tags of TIFF

Stored = npt.NDArray[Any]


def read_depth(
    path: PathLike,
    depth_scale: float | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    check_unit: bool = True,
) -> npt.NDArray[np.float32]:
    """Read a depth map as float32 metres, shape (H, W), 0 where there is no depth.

    Integer files (16-bit PNG or TIFF, integer ``.npy``) hold millimetres unless ``depth_scale`` says otherwise; 0 and,
    in 16 bits, 65535 mean no depth. Floating-point files (``.npy``, ``.npz``, 32-bit TIFF, PFM) hold metres. An
    ``.npz`` must hold one array, or one named ``depth_z`` or ``depth``. NaN, infinite and negative values mean no
    depth. An EXIF orientation is not applied.

    Args:
        depth_scale: metres per stored unit, e.g. 1/5000 for TUM RGB-D. Default 0.001 for integers, 1.0 for floats.
        image_size: (W, H) of its image; a map of more pixels is refused before it is unpacked.
        check_unit: warn of distances that look like millimetres.

    Raises:
        InputError: ``depth_scale`` is not a positive number of metres per unit.
        ImageReadError: the file is missing, no regular file, truncated, of more than ``MOST_DEPTHS``, or not a depth
            map (colour, or 8 bits without ``depth_scale``).
    """
    name = file_name(path)
    is_number = isinstance(depth_scale, Real) and not isinstance(depth_scale, bool)
    if depth_scale is not None and not (is_number and 0 < depth_scale <= _LARGEST_DEPTH_SCALE):
        raise InputError(
            f"depth_scale is metres per stored unit, got {depth_scale!r}; if the file holds that many units per metre, "
            "pass 1 divided by it"
        )
    try:
        stored = _stored_depth(name, image_size)
        if stored.dtype.itemsize == 1 and depth_scale is None:
            raise InputError("it has 8 bits, likely a picture of a depth map; pass depth_scale if it holds depth")
    except Exception as error:  # Pillow, zipfile, zlib and NumPy raise many types on damaged files
        raise read_error(name, error, "a depth map") from error

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
        warn(f"{shown_path(name)}: holds no depth above 0, so the view counts as one without depth")
    elif check_unit and is_float and depth_scale == 1 and np.median(known) > LIKELY_MILLIMETRES:
        warn(
            f"{shown_path(name)}: the median depth is {np.median(known):.0f} m; if these are millimetres, pass "
            "depth_scale=0.001"
        )
    return depth


def _stored_depth(name: str, image_size: tuple[int, int] | None) -> Stored:
    suffix = Path(name).suffix.lower()
    if suffix == EXR:
        stored = _exr_depth(name, image_size)
    elif suffix in (".npy", ".npz"):
        with stored_arrays(name) as arrays:
            array = _only_array(arrays)
            _check_shape(array.shape, array.dtype, image_size)
            stored = array.read()
    else:
        with open_image(name) as image:
            _check_shape((image.height, image.width), np.dtype(np.uint8), image_size)
            stored = _stored_values(image)
    if stored.ndim == 3:
        stored = stored[0] if stored.shape[0] == 1 else stored[:, :, 0]
    return stored


def _check_shape(shape: tuple[int, ...], dtype: np.dtype[Any], image_size: tuple[int, int] | None) -> None:
    is_map = len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2]))
    if not is_map or 0 in shape or dtype.kind not in "uif":
        raise InputError(f"it holds {dtype} of shape {shape}; needed are numbers of shape (H, W)")
    if image_size is not None and prod(shape) > prod(image_size):
        raise InputError(f"it has shape {shape}, the image {image_size[::-1]}; resize it to the image")
    if image_size is None and prod(shape) > MOST_DEPTHS:
        raise InputError(f"it has shape {shape}, more than the {MOST_DEPTHS // 10**6} million pixels that are read")


def _exr_depth(name: str, image_size: tuple[int, int] | None) -> Stored:
    """The channel Z, or the only one, of an OpenEXR file; greys that are stored three times count as one."""
    try:
        exr = importlib.import_module("OpenEXR")
    except ImportError:
        raise InputError("reading OpenEXR needs one more package; pip install 'mapengine[exr]'") from None
    open_file(name).close()  # which refuses what is no regular file
    with exr.File(name, header_only=True) as file:
        (left, top), (right, bottom) = file.header()["dataWindow"]
    shape = int(bottom) - int(top) + 1, int(right) - int(left) + 1
    _check_shape(shape, np.dtype(np.float32), image_size)  # before it is unpacked
    with exr.File(name, separate_channels=True) as file:
        channels = {key: np.array(channel.pixels) for key, channel in file.channels().items()}
    for key in ("Z", "depth.Z", "View Layer.Depth.Z", "Depth.V", "depth.V", "Y", "V"):
        if key in channels:
            return channels[key].astype(np.float32)
    first = next(iter(channels.values()))
    if not all(np.array_equal(first, other, equal_nan=True) for key, other in channels.items() if key != "A"):
        raise InputError(f"it has the channels {', '.join(channels)}; name that of the depth Z")
    return first.astype(np.float32)


def _only_array(arrays: Mapping[str, StoredArray]) -> StoredArray:
    for key in ("depth_z", "depth"):
        if key in arrays:
            return arrays[key]
    if len(arrays) != 1:
        raise InputError(f'it holds the arrays {list(arrays)[:8]}; name one of them "depth_z"')
    return next(iter(arrays.values()))


def _stored_values(image: Image.Image) -> Stored:
    """The numbers (H, W) in the file of an image that was opened, see above."""
    if image.mode not in ("L", "F") and not image.mode.startswith("I"):
        raise InputError(f"its pixels are {image.mode}, not one depth value each")
    if image.format == "PPM":
        return _of_portable_map(image)
    if image.format == "TIFF":
        return _of_tiff(image)
    if image.format == "PNG":
        bits = _head(image)[24]
        return _without_stretch(_decoded(image), bits)
    if image.format == "JPEG2000":
        return _of_jpeg2000(image)
    if image.format in _EIGHT_BITS and image.mode == "L":
        return _decoded(image)
    raise InputError(f"values of {image.format} files are not read exactly; convert it to a 16-bit PNG or .npy")


def _decoded(image: Image.Image) -> Stored:
    image.load()
    return np.asarray(image)


def _head(image: Image.Image) -> bytes:
    """The beginning of the file of an image that was opened and is not decoded yet."""
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(0)
    content = file.read(_HEADER)
    file.seek(position)
    return content


def _without_stretch(values: Stored, bits: int) -> Stored:
    """Greys of fewer than 8 bits as they were stored."""
    return values if bits >= 8 else values // (255 // (2**bits - 1))


def _of_portable_map(image: Image.Image) -> Stored:
    kind, width, height, most, start = _portable_header(_head(image))
    if kind == b"Pf":
        if abs(float(most)) != 1:
            raise InputError(f"its scale is {float(most):g}, which programs read in different ways; write 1 or -1")
        return _decoded(image)
    maximum = int(most)
    if kind == b"P5":
        file: BinaryIO = image.fp  # type: ignore[attr-defined]
        file.seek(start)
        dtype = np.dtype(np.uint8 if maximum < 256 else ">u2")
        content = file.read(width * height * dtype.itemsize)
        values: Stored = np.frombuffer(content, dtype).reshape(height, width)
        if values.max() > maximum:
            raise InputError(f"it has the value {values.max()}, above its maximum of {maximum}")
        return values
    pillow_most = 255 if maximum < 256 else 65535
    return np.rint(_decoded(image).astype(np.float64) * maximum / pillow_most).astype(np.int32)


def _portable_header(content: bytes) -> tuple[bytes, int, int, bytes, int]:
    """Kind, width, height, maximum (or scale), and where the values begin."""
    words: list[bytes] = []
    position = 0
    while len(words) < 4:
        while content[position : position + 1].isspace():
            position += 1
        if content[position : position + 1] == b"#":
            position = min(end for end in (content.find(b"\n", position), content.find(b"\r", position)) if end >= 0)
            continue
        start = position
        while position < len(content) and not content[position : position + 1].isspace():
            position += 1
        words.append(content[start:position])
        if start == position:
            raise InputError("its header is not complete")
    return words[0], int(words[1]), int(words[2]), words[3], position + 1


def _of_tiff(image: Image.Image) -> Stored:
    tags = tiff_tags(image)
    bits, signed = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if tags.get(_ORIENTATION, 1) != 1:
        raise InputError("its orientation says that it is turned; store it upright")
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    values = _decoded(image)
    if bits <= 8:
        values = _without_stretch(255 - values if white_is_zero else values, bits)
        return values.view(np.int8) if signed else values
    return values.view(np.uint32) if bits == 32 and values.dtype == np.int32 and not signed else values


def _of_jpeg2000(image: Image.Image) -> Stored:
    head = _head(image)
    size = head.find(b"\xff\x4f\xff\x51")  # start of the codestream, whose first segment is the size
    if size < 0 or len(head) < size + 43:
        raise InputError("its codestream has no beginning")
    precision = head[size + 42]
    bits = (precision & 0x7F) + 1
    if precision & 0x80 or bits > 16:
        raise InputError(f"its values have {bits} bits{' and a sign' if precision & 0x80 else ''}; store up to 16 bits")
    values = _decoded(image)
    return values >> (8 * values.dtype.itemsize - bits)
