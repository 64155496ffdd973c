"""One view as it was taken: its image and what is known of its camera, before both are resized for the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError
from ..geometry import Array
from .checks import Pose, rgb_pixels
from .images import to_rgb
from .lenses import Lens
from .resizing import Fit
from .resolutions import Size

_LEAST_KEPT = 0.7  # of an image, by the crop
_SPARSE = 0.25  # of the pixels have depth; what is denser loses none by resizing
_THINNED = 0.5


class Remark(NamedTuple):
    """Something suspicious about a view: its kind, which is said once for all views, what it is, and the cure."""

    kind: str
    text: str


class Known(NamedTuple):
    """Which geometry a view brings besides its image."""

    calibration: bool
    depth: bool
    pose: bool


class AnyView(Protocol):
    """A view, read already or when it is resized."""

    @property
    def size(self) -> Size: ...

    @property
    def known(self) -> Known: ...

    @property
    def name(self) -> str: ...

    def resized(self, target: Size) -> RawView: ...


@dataclass(frozen=True, eq=False)
class RawView:
    """One view, read and checked. All of it belongs to the upright image.

    Attributes:
        image: RGB, Pillow or uint8 (H, W, 3).
        intrinsics: (3, 3) float pixels, pixel centres at integers, or None.
        depth: (H, W) float32, z in metres, 0 where there is none, or None; needs intrinsics or rays.
        pose: camera-to-world in OpenCV axes: (4, 4), or quaternion (4,) xyzw and translation (3,), or None.
        metric: whether depth and pose are in metres; None: upstream's default, yes.
        name: for people, such as that of the file.
        rays: (H, W, 3) unit ray directions in place of intrinsics, or None.
        lens: of a fisheye, with ``intrinsics``, or None; resizing turns both into rays.
        mask: (H, W) bool, True where the view counts, or None for all of it.
        depth_resize: ``"nearest"`` or ``"valid"``, see :class:`.formats.view_files.ReadOptions`.
        remarks: what is suspicious about it.
        original_pixels: (3, 3) float64, from homogeneous pixels of ``image`` to those of the original one: upright,
            and where it was undistorted, those that a pinhole camera with the original intrinsics has. None: the same.
    """

    image: Image.Image | npt.NDArray[np.uint8]
    intrinsics: Array | None = None
    depth: Array | None = None
    pose: Pose | None = None
    metric: bool | None = None
    name: str = ""
    rays: Array | None = None
    lens: Lens | None = None
    mask: npt.NDArray[np.bool_] | None = None
    depth_resize: str = "nearest"
    remarks: tuple[Remark, ...] = ()
    original_pixels: npt.NDArray[np.float64] | None = None

    @property
    def size(self) -> Size:
        """(W, H) of the image."""
        if isinstance(self.image, Image.Image):
            return self.image.size
        return self.image.shape[1], self.image.shape[0]

    @property
    def known(self) -> Known:
        """What is known besides the image."""
        calibrated = self.intrinsics is not None or self.rays is not None
        return Known(calibrated, self.depth is not None, self.pose is not None)

    @property
    def batched_pose(self) -> Pose | None:
        """The pose with a batch axis, in memory of its own."""
        if self.pose is None:
            return None
        if isinstance(self.pose, tuple):
            return self.pose[0][None].copy(), self.pose[1][None].copy()
        return self.pose[None].copy()

    def resized(self, target: Size) -> RawView:
        """Return the view with all of it brought to ``target`` = (W, H), see :mod:`.resizing`.

        Raises:
            InputError: the image is far too narrow for the target.
        """
        image = self.image
        picture = Image.fromarray(rgb_pixels(image)) if isinstance(image, np.ndarray) else to_rgb(image)
        fit = Fit.of(picture.size, target, self.intrinsics)
        if self.depth is not None and self.depth.shape != picture.size[::-1]:
            raise InputError(f"depth has shape {self.depth.shape}, the image {picture.size[::-1]}; they must be equal")
        mask = None if self.mask is None else fit.nearest(self.mask)
        depth = None
        if self.depth is not None:
            depth = fit.valid(self.depth) if self.depth_resize == "valid" else fit.nearest(self.depth)
        remarks = (*self.remarks, *self._remarks(fit, depth))
        if depth is not None and mask is not None:
            depth = np.where(mask, depth, depth.dtype.type(0))
        intrinsics, rays = fit.intrinsics, None if self.rays is None else fit.rays(self.rays)
        if self.lens is not None and intrinsics is not None:
            rays = self.lens.rays(intrinsics, target)
            intrinsics = None
        original = fit.original_pixels if self.original_pixels is None else self.original_pixels @ fit.original_pixels
        changes: dict[str, Any] = {"intrinsics": intrinsics, "rays": rays, "depth": depth, "mask": mask, "lens": None}
        changes["original_pixels"] = original
        return replace(self, image=fit.image(picture), remarks=remarks, **changes)

    def _remarks(self, fit: Fit, depth: Array | None) -> list[Remark]:
        found = []
        if fit.kept < _LEAST_KEPT:
            (width, height), (w, h) = fit.old, fit.target
            found.append(
                Remark(
                    "crop",
                    f"only {fit.kept:.1%} of the image of {width}x{height} is left after it is cropped to the shape of "
                    f"{w}x{h}; give views of one shape, or a size of this shape",
                )
            )
        if depth is not None and self.depth is not None and self.depth_resize == "nearest":
            before = np.count_nonzero(self.depth)
            there = min(before * fit.kept, depth.size)
            if before < _SPARSE * self.depth.size and np.count_nonzero(depth) < _THINNED * there:
                found.append(
                    Remark(
                        "sparse depth",
                        f"resizing leaves {np.count_nonzero(depth)} of {before} pixels with depth; keep one measured "
                        "value per pixel with depth_resize='valid' (--depth-resize valid)",
                    )
                )
        return found
