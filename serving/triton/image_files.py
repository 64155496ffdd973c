"""Views that come as the bytes of image files: read, resized as ``preprocess_inputs`` does it, and packed as arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.errors import ImageReadError, InputError, one_line
from mapengine.runtime.geometry import Array
from mapengine.runtime.inputs.files.opening import identified
from mapengine.runtime.inputs.images import picture_of, upright_size
from mapengine.runtime.inputs.preprocess import each_resized, read_dictionary
from mapengine.runtime.inputs.raw_view import Known, RawView
from mapengine.runtime.inputs.resolutions import Size, served_size

from .requests import Tensors, view_geometry
from .settings import Limits
from .tensors import FILES, IMAGES, PER_VIEW

_FORMATS = ("JPEG", "PNG")
_CARRIED = "is_metric_scale"  # says nothing of pixels


@dataclass(frozen=True)
class _FileView:
    """A view whose image is decoded when it is resized: few are in memory at their full size."""

    content: bytes
    geometry: dict[str, Array]
    name: str
    size: Size

    @property
    def known(self) -> Known:
        """What is known besides the image."""
        calibrated = bool({"intrinsics", "ray_directions"} & self.geometry.keys())
        return Known(calibrated, "depth_z" in self.geometry, "camera_poses" in self.geometry)

    def resized(self, target: Size) -> RawView:
        """Decode and resize it; errors as ``preprocess_inputs``."""
        try:
            image = picture_of(_opened(self.content)).image
        except InputError as error:
            raise ImageReadError(f"{self.name}: {FILES.name} {error}") from error
        view, _ = read_dictionary({"img": image, **self.geometry}, self.name)
        return view.resized(target)


def array_tensors(tensors: Tensors, limits: Limits, requests: ServedRequests) -> dict[str, Array]:
    """Return the tensors that the model of arrays takes, for a request of files.

    Its numbers are those of ``engine.infer(engine.preprocess(views))`` with the images that ``read_image`` reads.

    Args:
        tensors: by the names of :data:`.tensors.FILE_INPUTS`; geometry belongs to the upright image.
        limits: of the model.
        requests: that the bundle serves, one of whose sizes is chosen as ``Engine.preprocess`` does.

    Raises:
        InputError: more than the limits or the bundle allow, files that are no JPEG or PNG, and what
            ``preprocess_inputs`` refuses; names view and key.
    """
    files = tensors[FILES.name]
    limits.check_views(len(files))
    requests.check_views(len(files))
    sizes = [len(content) for content in files]
    limits.check_bytes(sum(sizes) + sum(array.nbytes for name, array in tensors.items() if name != FILES.name))
    known = view_geometry(tensors, len(files))
    views = []
    for index, content in enumerate(files):
        geometry = {name: value for name, value in known[index].items() if name != _CARRIED}
        views.append(_FileView(content, geometry, f"view {index}", _size(content, f"view {index}", limits)))
    target = served_size(requests, [width / height for width, height in (view.size for view in views)])
    resized = list(each_resized(views, target, lambda view: view))
    carried = {_CARRIED: tensors[_CARRIED]} if _CARRIED in tensors else {}
    return {**_packed(resized), **carried}


def _opened(content: bytes) -> Image.Image:
    return identified(io.BytesIO(content), _FORMATS)


def _size(content: bytes, name: str, limits: Limits) -> Size:
    """(W, H) of an image, from its header."""
    where = f"{name}: {FILES.name}"
    if not content:
        raise ImageReadError(f"{where} is empty; give the bytes of a JPEG or PNG file")
    try:
        with _opened(content) as image:
            limits.check_pixels(image.width, image.height, where)  # before anything of it is decoded
            return upright_size(image)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise ImageReadError(f"{where} is neither JPEG nor PNG; give the bytes of such a file") from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ImageReadError(f"{where} cannot be read ({one_line(error)}); give an intact file") from error


def _packed(views: Sequence[RawView]) -> dict[str, Array]:
    """Resized views as tensors, views along the first axis."""
    tensors: dict[str, Array] = {IMAGES.name: np.stack([np.asarray(view.image) for view in views])}
    held: dict[str, list[Any]] = {
        "intrinsics": [view.intrinsics for view in views],
        "ray_directions": [view.rays for view in views],
        "depth_z": [view.depth for view in views],
        "camera_poses": [view.pose for view in views],
    }
    for tensor in PER_VIEW:
        values = held[tensor.name]
        shapes = {value.shape for value in values if value is not None}
        if shapes:
            blank = np.zeros(shapes.pop(), tensor.numpy_type)
            filled = [blank if value is None else value for value in values]
            tensors[tensor.name] = np.stack(filled).astype(tensor.numpy_type, copy=False)
            tensors[f"has_{tensor.name}"] = np.array([value is not None for value in values])
    masks = [view.mask for view in views]
    if any(mask is not None for mask in masks):
        everything = np.ones(tensors[IMAGES.name].shape[1:3], bool)
        tensors["mask"] = np.stack([everything if mask is None else mask for mask in masks])
    return tensors
