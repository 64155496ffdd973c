"""Images and depth of messages as arrays: ``sensor_msgs/Image`` and ``CompressedImage``.

Messages are read by the names of their fields, so that none of this needs ROS. What a message claims (size, step,
encoding) is checked against its data before any of it is used.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapengine.runtime import InputError
from mapengine.runtime.inputs.images import to_rgb

Pixels = NDArray[np.uint8]
Depth = NDArray[np.float32]

MOST_PIXELS = 100_000_000
"""Of a compressed image, whose size is known only when it is opened."""

_COLOURS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "rgb8": ("u1", 3, (0, 1, 2)),
    "bgr8": ("u1", 3, (2, 1, 0)),
    "rgba8": ("u1", 4, (0, 1, 2)),
    "bgra8": ("u1", 4, (2, 1, 0)),
    "mono8": ("u1", 1, (0, 0, 0)),
    "8UC1": ("u1", 1, (0, 0, 0)),
    "rgb16": ("u2", 3, (0, 1, 2)),
    "bgr16": ("u2", 3, (2, 1, 0)),
    "rgba16": ("u2", 4, (0, 1, 2)),
    "bgra16": ("u2", 4, (2, 1, 0)),
    "mono16": ("u2", 1, (0, 0, 0)),
}
"""Type, channels, and which of them are red, green and blue."""
_ORDERS = ("rggb", "bggr", "gbrg", "grbg")
_MOSAICS = {f"bayer_{order}{bits}": (f"u{bits // 8}", order) for order in _ORDERS for bits in (8, 16)}
"""Type, and the colours of the first four pixels by rows."""
_YUV = {"yuv422": (1, 0), "uyvy": (1, 0), "yuv422_yuy2": (0, 1), "yuyv": (0, 1)}
"""Bytes of a pair at which brightness and colour difference begin, each every second."""
_DEPTHS: dict[str, tuple[str, float]] = {"16UC1": ("u2", 0.001), "mono16": ("u2", 0.001), "32FC1": ("f4", 1.0)}
"""Type, and metres per unit."""

IMAGE_ENCODINGS = (*_COLOURS, *_MOSAICS, *_YUV)
DEPTH_ENCODINGS = tuple(_DEPTHS)


def read_image(message: Any) -> Pixels:
    """Return the picture of an ``Image`` as RGB (H, W, 3) uint8.

    Alpha is dropped; of 16 bits the upper 8 stay; Bayer mosaics are interpolated; YUV is BT.601 with limited range.

    Raises:
        InputError: an encoding that is none of ``IMAGE_ENCODINGS``, or a size that does not fit the data.
    """
    encoding = message.encoding
    if encoding in _COLOURS:
        kind, channels, order = _COLOURS[encoding]
        values = _eight_bits(_layout(message, kind, channels))
        if order == (0, 1, 2) and channels == 3:
            return np.ascontiguousarray(values)
        return np.stack([values[..., channel] for channel in order], axis=-1)
    if encoding in _MOSAICS:
        kind, pattern = _MOSAICS[encoding]
        return _interpolated(_eight_bits(_layout(message, kind, 1))[..., 0], pattern)
    if encoding in _YUV:
        return _from_yuv(_layout(message, "u1", 2), *_YUV[encoding])
    raise InputError(f"the encoding {encoding!r} is not read as an image; publish one of {', '.join(IMAGE_ENCODINGS)}")


def read_depth(message: Any) -> Depth:
    """Return the depth of an ``Image`` in metres, (H, W) float32: 0, NaN or infinite where there is none (REP 118).

    Raises:
        InputError: an encoding that is none of ``DEPTH_ENCODINGS``, or a size that does not fit the data.
    """
    if message.encoding not in _DEPTHS:
        raise InputError(
            f"the encoding {message.encoding!r} is not read as depth; publish 16UC1 (millimetres) or 32FC1 (metres)"
        )
    kind, unit = _DEPTHS[message.encoding]
    values = _layout(message, kind, 1)[..., 0]
    return values.astype(np.float32) if unit == 1 else values * np.float32(unit)


def read_compressed_image(message: Any) -> Pixels:
    """Return the picture of a ``CompressedImage`` (JPEG or PNG) as RGB (H, W, 3) uint8.

    An EXIF orientation is not applied: the ``CameraInfo`` is of the pixels as they are stored.

    Raises:
        InputError: another format, damaged data, or too many pixels.
    """
    if "compressedDepth" in message.format:
        raise InputError(f"the format {message.format!r} is depth; publish JPEG or PNG as the image")
    return np.asarray(to_rgb(_opened(bytes(message.data), ("JPEG", "PNG"))))


def read_compressed_depth(message: Any) -> Depth:
    """Return the depth of a ``CompressedImage`` in metres, (H, W) float32, 0 where there is none.

    Read are ``compressedDepth`` with PNG inside, of 16UC1 and 32FC1, and a plain PNG of 16 bits in millimetres.

    Raises:
        InputError: RVL or another format, or damaged data.
    """
    form, data = message.format, bytes(message.data)
    if "compressedDepth" not in form:
        return _sixteen_bits(data) * np.float32(0.001)
    if "rvl" in form.lower():
        raise InputError("compressedDepth in RVL is not read; set its transport's format to png")
    if len(data) < 12:
        raise InputError(f"compressedDepth of {len(data)} bytes is too short for its header")
    _, a, b = struct.unpack("<iff", data[:12])
    values = _sixteen_bits(data[12:])
    if not form.startswith("32FC1"):
        return values * np.float32(0.001)
    if not (np.isfinite(a) and np.isfinite(b) and a > 0):
        raise InputError(f"compressedDepth has the quantization {a:g} and {b:g}, which no encoder writes")
    steps = values.astype(np.float32) - np.float32(b)  # the inverse of depth in steps, 0 where there is none
    known = (values > 0) & (steps > 0)
    return np.where(known, np.float32(a) / np.where(known, steps, 1), 0).astype(np.float32)


def _layout(message: Any, kind: str, channels: int) -> NDArray[Any]:
    """The values (H, W, channels) of an ``Image``, in the machine's byte order, without its padding."""
    height, width, step = int(message.height), int(message.width), int(message.step)
    dtype = np.dtype(kind)
    row = width * channels * dtype.itemsize
    if height < 1 or width < 1:
        raise InputError(f"an image of {width}x{height} pixels is empty")
    if step < row:
        raise InputError(
            f"step is {step} bytes, but a row of {width} pixels in {message.encoding} takes {row}; "
            "correct the step, or the encoding"
        )
    needed = step * (height - 1) + row
    buffer = memoryview(message.data).cast("B") if not isinstance(message.data, list) else bytes(message.data)
    if len(buffer) < needed:
        raise InputError(
            f"{len(buffer)} bytes of data, but {height} rows with a step of {step} bytes need {needed}; "
            "the message was cut short, or its size is wrong"
        )
    stored = dtype.newbyteorder(">" if message.is_bigendian else "<")
    strides = (step, channels * dtype.itemsize, dtype.itemsize)
    values = np.ndarray((height, width, channels), stored, buffer, strides=strides)
    return values if stored.isnative or dtype.itemsize == 1 else values.astype(dtype)


def _eight_bits(values: NDArray[Any]) -> Pixels:
    return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)


def _interpolated(mosaic: Pixels, pattern: str) -> Pixels:
    """RGB (H, W, 3) of a Bayer mosaic (H, W), bilinear."""
    if min(mosaic.shape) < 2:
        raise InputError(f"a Bayer mosaic of {mosaic.shape[1]}x{mosaic.shape[0]} pixels has not all colours")
    height, width = mosaic.shape
    site = 2 * (np.arange(height)[:, None] % 2) + np.arange(width) % 2
    result = np.empty((*mosaic.shape, 3), np.uint8)
    for channel, letter in enumerate("rgb"):
        places = [i for i, found in enumerate(pattern) if found == letter]
        plane = np.where(np.isin(site, places), mosaic, 0).astype(np.uint16)
        # Reflected around the border pixel, the pattern goes on as inside.
        p = np.pad(plane, 1, mode="reflect")
        cross = p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]
        if letter == "g":
            result[..., channel] = (4 * plane + cross + 2) // 4
        else:
            corners = p[:-2, :-2] + p[:-2, 2:] + p[2:, :-2] + p[2:, 2:]
            result[..., channel] = (4 * plane + 2 * cross + corners + 2) // 4
    return result


def _from_yuv(pairs: Pixels, luma: int, chroma: int) -> Pixels:
    """RGB (H, W, 3) of YUV 4:2:2 (H, W, 2), in which two neighbours share their colour differences."""
    if pairs.shape[1] % 2:
        raise InputError(f"YUV 4:2:2 has an even width, not {pairs.shape[1]}")
    y = 1.164 * (pairs[..., luma].astype(np.float32) - 16)
    u = np.repeat(pairs[:, 0::2, chroma].astype(np.float32) - 128, 2, axis=1)
    v = np.repeat(pairs[:, 1::2, chroma].astype(np.float32) - 128, 2, axis=1)
    planes = [y + 1.596 * v, y - 0.391 * u - 0.813 * v, y + 2.018 * u]
    return np.stack([np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes], axis=-1)


def _sixteen_bits(data: bytes) -> NDArray[np.uint16]:
    """The values (H, W) of a PNG of one channel with 16 bits."""
    image = _opened(data, ("PNG",))
    if not image.mode.startswith("I"):
        raise InputError(f"its PNG has the pixels {image.mode}; depth is one channel of 16 bits, in millimetres")
    return np.asarray(image).astype(np.uint16)


def _opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > MOST_PIXELS:
            raise InputError(
                f"it has {image.width}x{image.height} pixels; at most {MOST_PIXELS // 10**6} million are read"
            )
        image.load()
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged data, also ones that are no OSError
        raise InputError(f"{len(data)} bytes are no intact {' or '.join(formats)}: {error}") from error
    return image
