"""The images of a scene as files: as the network saw them, or at their original size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..inputs.images import image_size, is_plain_image
from ..inputs.resolutions import Size
from ..inputs.stored_view import StoredView
from .original_names import image_type
from .scene_arrays import SceneArrays

_JPEG = {"quality": 98, "subsampling": 0}


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image in the format that the ending of ``path`` says, without what its file said besides."""
    form = image_type(path.name)
    image.save(path, form, **(_JPEG if form == "JPEG" else {}))


def check_originals(scene: SceneArrays) -> None:
    """Refuse a scene whose images cannot be read again at their original size (InputError)."""
    for index, name in enumerate(scene.names):
        if scene.original_pixels is None or not scene.sources or scene.sources[index] is None:
            raise InputError(
                f"view {index} ({name}): its original image is not at hand; give files to reconstruct, or save at the "
                "network's size"
            )


def save_original(scene: SceneArrays, view: int, path: Path) -> tuple[Size, NDArray[np.float64]]:
    """Write the image of a view at its original size: upright, and undistorted where its lens needs that.

    A file that is so already is copied.

    Returns:
        Its size (W, H), and the (3, 3) matrix from homogeneous pixels of the view to those of the image.

    Raises:
        InputError: the image is not at hand, or no longer the one that was reconstructed.
        ImageReadError: it cannot be read.
    """
    source = scene.sources[view]
    assert source is not None
    assert scene.original_pixels is not None
    assert scene.original_sizes is not None
    matrix = scene.original_pixels[view].copy()
    file = plain_file(source, path)
    if file is not None:
        shutil.copyfile(file, path)
        size = image_size(path)
    else:
        raw = source.read()
        image, size = raw.image, raw.size
        save_image(image if isinstance(image, Image.Image) else Image.fromarray(image), path)
        if raw.original_pixels is not None:
            matrix = np.linalg.inv(raw.original_pixels) @ matrix
    width, height = scene.original_sizes[view].tolist()
    if size != (width, height):
        raise InputError(
            f"view {view} ({scene.names[view]}): its image has {size[0]}x{size[1]} pixels now, and had "
            f"{width}x{height}; reconstruct it again"
        )
    return size, matrix


def plain_file(source: StoredView, path: Path) -> Path | None:
    """Return the file of a view if nothing has to be done to it for a copy named ``path``."""
    image, lens = source.files.image, source.files.lens
    if not source.is_file or (lens is not None and not lens.fisheye):
        return None
    file = Path(image)
    return file if is_plain_image(file, image_type(path.name)) else None
