"""One view as it was taken: its image and what is known of its camera, before both are resized for the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..geometry import Array
from .checks import Pose
from .resizing import resize_and_crop
from .resolutions import Size


@dataclass(frozen=True, eq=False)
class RawView:
    """One view, read and checked. All of it belongs to the upright image.

    Attributes:
        image: RGB, Pillow or uint8 (H, W, 3).
        intrinsics: (3, 3) float pixels, pixel centres at integers, or None.
        depth: (H, W) float32, z in metres, 0 where there is none, or None; needs intrinsics.
        pose: camera-to-world in OpenCV axes: (4, 4), or quaternion (4,) xyzw and translation (3,), or None.
        metric: whether depth and pose are in metres; None: upstream's default, yes.
        name: for people, such as that of the file.
    """

    image: Image.Image | npt.NDArray[np.uint8]
    intrinsics: Array | None = None
    depth: Array | None = None
    pose: Pose | None = None
    metric: bool | None = None
    name: str = ""

    @property
    def size(self) -> Size:
        """(W, H) of the image."""
        if isinstance(self.image, Image.Image):
            return self.image.size
        return self.image.shape[1], self.image.shape[0]

    @property
    def has_geometry(self) -> bool:
        """Whether more is known than the image."""
        return any(value is not None for value in (self.intrinsics, self.depth, self.pose))

    @property
    def batched_pose(self) -> Pose | None:
        """The pose with a batch axis, in memory of its own."""
        if self.pose is None:
            return None
        if isinstance(self.pose, tuple):
            return self.pose[0][None].copy(), self.pose[1][None].copy()
        return self.pose[None].copy()

    def resized(self, target: Size) -> RawView:
        """Return the view with image, depth and intrinsics brought to ``target`` = (W, H), see :mod:`.resizing`.

        Raises:
            InputError: the image is far too narrow for the target.
        """
        pixels, depth, intrinsics = resize_and_crop(self.image, target, self.depth, self.intrinsics)
        return replace(self, image=pixels, depth=depth, intrinsics=intrinsics)
