"""Recorded sequences with measured depth and poses, read a frame at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.stored_view import StoredView

from ..evaluation.evaluate import DEFAULT_SIZE, check_size
from ..evaluation.rgbd import read_scene, rgbd_views


@dataclass(frozen=True, eq=False)
class RecordedFrame:
    """One frame of a recording; see :class:`.evaluate.TrueFrame`."""

    image: NDArray[np.uint8]
    depth_z: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    pose: NDArray[np.float64]


class RecordedSequence:
    """The frames of a recording, each read and resized when it is its turn."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int] = DEFAULT_SIZE,
        *,
        frames: int | None = None,
        every: int = 1,
        intrinsics: Any = None,
    ) -> None:
        """List the frames of a recording.

        Args:
            path: as :func:`..evaluation.load_rgbd` takes it, such as a folder laid out like 7-Scenes or TUM RGB-D.
            size: width and height of the frames, multiples of 14.
            frames: at most so many; all by default.
            every: take each so many-th frame.
            intrinsics: of all images, for a recording without.

        Raises:
            InputError, ImageSizeError, ImageReadError: as :func:`..evaluation.load_rgbd`, and for fewer than three
                frames.
        """
        check_size(size)
        listed = rgbd_views(Path(path), intrinsics)[::every][:frames]
        if len(listed) < 3:
            raise InputError(f"{path}: {len(listed)} frames are no sequence; give at least three")
        self._views: Sequence[StoredView] = listed
        self._size = size

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[RecordedFrame]:
        for view in self._views:
            scene = read_scene([view], self._size)
            yield RecordedFrame(scene.images[0], scene.depth_z[0], scene.intrinsics[0], scene.poses[0])
