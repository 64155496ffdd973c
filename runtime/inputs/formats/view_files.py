"""What every format says of its views, before anything large is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...errors import InputError
from ...geometry import Array
from ..lenses import Lens
from ..resolutions import Size

KNOWN = ("intrinsics", "depth", "poses")
"""What may be known of views besides their images."""
DEPTH_SOURCES = ("files", "points")
DEPTH_RESIZING = ("nearest", "valid")


class Picture(Protocol):
    """An image that is no file of its own, such as a frame of a video."""

    @property
    def size(self) -> Size:
        """(W, H), upright."""

    def expect(self) -> None:
        """Note that :meth:`read` will be called."""

    def read(self) -> Image.Image:
        """Return it upright, in RGB."""


@dataclass(frozen=True)
class ViewFiles:
    """One view: where its image and its depth are, and what is known of its camera.

    Attributes:
        image: path of the image, a :class:`Picture`, or an image in memory.
        intrinsics: (3, 3) float32 pixels of the upright image, pixel centres at integers, or None.
        depth: path of the depth map, one in memory, or None.
        depth_scale: metres per stored unit of the depth map; None: millimetres for integers, metres for floats.
        pose: (4, 4) float64 camera-to-world in OpenCV axes, or None.
        metric: whether depth and pose are in metres; None: yes.
        mask: path of an image that is white where the view counts, or None.
        lens: its distortion, or None. It belongs to ``intrinsics``.
        camera_size: (W, H) of the image that ``intrinsics`` are of, which the file may be a smaller copy of; where it
            is given, the EXIF orientation counts only if it leads to that size. None: the image itself.
        points: (N, 3) float64, points that the view sees, in the camera's frame: sparse depth, or None.
        name: of the view; that of the file if empty.
        time: seconds, where views have a time.
        camera_files: text files that ``intrinsics`` and ``pose`` were read from.
    """

    image: Any
    intrinsics: Array | None = None
    depth: Any = None
    depth_scale: float | None = None
    pose: Array | None = None
    metric: bool | None = None
    mask: Any = None
    lens: Lens | None = None
    camera_size: Size | None = None
    points: Array | None = None
    name: str = ""
    time: float | None = None
    camera_files: tuple[Path, ...] = ()

    def files(self) -> Iterator[Path]:
        """Yield the files that are read for this view."""
        yield from (value for value in (self.image, self.depth, self.mask) if isinstance(value, Path))
        yield from self.camera_files


@dataclass(frozen=True)
class ReadOptions:
    """How inputs are read, whatever their format.

    Attributes:
        recursive: look for images in sub-folders too.
        every: take each so many-th view of a sequence.
        fps: take so many views per second of a sequence whose views have a time.
        max_views: take at most so many views of a sequence, spread over the whole of it.
        give: what the network gets of what is known, among :data:`KNOWN`; None for all of it.
        ignore: what it does not get.
        depth_from: ``"files"``, or ``"points"`` for the sparse points of a COLMAP model as sparse depth.
        depth_resize: ``"nearest"`` as upstream, or ``"valid"``: a pixel without depth takes the nearest measured value
            of those that fall into it.
        intrinsics: of all images, where a recording needs them and has none: what ``camera_matrix`` takes, one of these
            (or None) per view, which each view gets later, or None.
        masks: of the images, which each view gets later; a folder of them holds no images.
    """

    recursive: bool = False
    every: int = 1
    fps: float | None = None
    max_views: int | None = None
    give: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    depth_from: str = "files"
    depth_resize: str = "nearest"
    intrinsics: Any = None
    masks: Any = None

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("max_views", 1)):
            value = getattr(self, name)
            is_count = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
            if not (is_count or (name == "max_views" and value is None)):
                raise InputError(f"{name} is {value!r}; give a whole number from {least} up")
        is_rate = isinstance(self.fps, Real) and not isinstance(self.fps, bool) and 0 < float(self.fps) < float("inf")
        if self.fps is not None and not is_rate:
            raise InputError(f"fps is {self.fps!r}; give a number of views per second above 0")
        for name, value in (("give", self.give), ("ignore", self.ignore)):
            is_list = isinstance(value, list | tuple | set | frozenset) and all(entry in KNOWN for entry in value)
            if not is_list and not (name == "give" and value is None):
                raise InputError(f"{name} is {value!r}; give names among {', '.join(KNOWN)}")
        if not isinstance(self.recursive, bool):
            raise InputError(f"recursive is {self.recursive!r}; give True or False")
        for name, known in (("depth_from", DEPTH_SOURCES), ("depth_resize", DEPTH_RESIZING)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")

    @property
    def not_images(self) -> tuple[str | os.PathLike[str], ...]:
        """Paths that are given for something else than images."""
        return tuple(path for path in (self.intrinsics, self.masks) if isinstance(path, str | os.PathLike))

    def gives(self, what: str) -> bool:
        """Return whether the network gets ``what``, one of :data:`KNOWN`."""
        return (self.give is None or what in self.give) and what not in self.ignore


@dataclass(frozen=True)
class InputFormat:
    """A format that views come in.

    Attributes:
        name: for messages and tables.
        matches: whether a path, which exists, is of this format; looks at names, not into large files.
        read: the views of such a path, in order. Raises an InputError or an ImageReadError that names the file.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], list[ViewFiles]]
