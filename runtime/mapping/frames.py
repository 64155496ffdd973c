"""Frames of a sequence: as they wait for their window, as the map knows them, and as they are handed out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..inputs.encoded import EncodedView
from ..inputs.prepared import PreparedView
from .similarity import Similarity

Array = NDArray[Any]

MAP_OUTPUTS = ("ray_directions", "depth_along_ray", "conf", "depth_z", "intrinsics", "camera_poses", "mask")
"""What the map is made of, among the outputs of ``infer``."""

NO_SUBMAP = -1
"""Of a frame that is in no submap, because nothing can be seen in it."""

_SURE = 30
"""Percentile of the confidence of a frame, over its valid pixels, from which its depth is believed."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame that was encoded and waits for its window.

    Attributes:
        number: in the sequence, from 0.
        encoded: as the image encoder left it.
        view: what the network gets of it; of a batch of one.
        name: for people.
        is_keyframe: whether windows are made of it; the other frames are localised between keyframes.
    """

    number: int
    encoded: EncodedView
    view: PreparedView
    name: str = ""
    is_keyframe: bool = True

    @property
    def given_pose(self) -> NDArray[np.float64] | None:
        """The pose that came with the sequence: camera-to-world (4, 4), or None."""
        return None if self.view.pose is None else geometry.pose_matrix(*self.view.pose)[0]


@dataclass(frozen=True, eq=False)
class KnownFrame:
    """A frame that the map has, for the windows that share it.

    Attributes:
        pose: (4, 4) float64, camera-to-world in the map.
        points: (H, W, 3) float64, in its camera, in lengths of the map; 0 outside ``mask``.
        confidence: (H, W).
        mask: (H, W) bool, where points count.
        intrinsics: (3, 3).
    """

    pose: NDArray[np.float64]
    points: NDArray[np.float64]
    confidence: Array
    mask: NDArray[np.bool_]
    intrinsics: Array

    @classmethod
    def of(cls, prediction: Mapping[str, Array], placement: Similarity) -> KnownFrame:
        """Return what a prediction of ``infer``, of one sample, says after its window was placed in the map."""
        return cls(
            placement.move_pose(pose_of(prediction)),
            points_of(prediction) * placement.scale,
            prediction["conf"][0],
            prediction["mask"][0, ..., 0],
            prediction["intrinsics"][0],
        )

    def moved(self, transform: Similarity) -> KnownFrame:
        """Return it in a map that was moved."""
        return replace(self, pose=transform.move_pose(self.pose), points=self.points * transform.scale)

    @property
    def in_map(self) -> NDArray[np.float64]:
        """Its points (H, W, 3) in the map."""
        return Similarity.of_pose(self.pose).apply(self.points)

    @property
    def sure_depth(self) -> NDArray[np.float32]:
        """Depth (H, W), z in its camera, where it can be told to the network; 0 elsewhere."""
        if not self.mask.any():
            return np.zeros(self.mask.shape, np.float32)
        sure = self.mask & (self.confidence >= np.percentile(self.confidence[self.mask], _SURE))
        return np.where(sure, self.points[..., 2], 0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MappedFrame:
    """What :class:`.mapper.Mapper` hands out for a frame when its window is done.

    Attributes:
        number: in the sequence, from 0.
        submap: the part of the map that it is in; -1 for a frame in which nothing can be seen, which is in none.
        pose: (4, 4) float64, camera-to-world in the map, OpenCV axes; NaN where there is none. ``Mapper.poses`` has
            what it is refined to.
        depth: (H, W) float32, z in its camera, in metres (or in the unit of given poses); 0 outside ``mask``.
        confidence: (H, W) float32.
        mask: (H, W) bool, where the reconstruction holds.
        intrinsics: (3, 3) float32, pixels; NaN where there are none.
        is_keyframe: whether it was in a window; if not, it was localised between two frames that were.
    """

    number: int
    submap: int
    pose: NDArray[np.float64]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float32]
    is_keyframe: bool

    @classmethod
    def blank(cls, number: int, height: int, width: int) -> MappedFrame:
        """Return a frame in which nothing can be seen."""
        nothing = np.zeros((height, width), np.float32)
        nowhere = np.full((4, 4), np.nan), np.full((3, 3), np.nan, np.float32)
        return cls(number, NO_SUBMAP, nowhere[0], nothing, nothing, nothing.astype(bool), nowhere[1], False)

    @classmethod
    def of(cls, frame: Frame, submap: int, known: KnownFrame) -> MappedFrame:
        """Return a frame that the map has, as it is handed out."""
        depth, maps = known.points[..., 2].astype(np.float32), (known.confidence, known.mask)
        return cls(frame.number, submap, known.pose, depth, *maps, known.intrinsics, frame.is_keyframe)


def pose_of(prediction: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return the pose (4, 4) of a prediction of one sample, in the frame of its call."""
    return prediction["camera_poses"][0].astype(np.float64)


def points_of(prediction: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return the points (H, W, 3) of a prediction of one sample, in its camera."""
    return prediction["ray_directions"][0].astype(np.float64) * prediction["depth_along_ray"][0]
