"""A short walk with exact geometry, and an engine that knows it and errs as it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.calibration.data.samples import sample_scene
from mapengine.calibration.scenes.cameras import camera_rays
from mapengine.calibration.scenes.world import cast
from mapengine.runtime.geometry import matrix_to_quaternion, rays_from_intrinsics
from mapengine.runtime.inference import MultiViewInference
from mapengine.runtime.inputs.encoded import EncodedView, ImageFeatures, images_of, kept_of, unpack_views
from mapengine.runtime.inputs.prepared import PreparedViews, prepare_views
from mapengine.runtime.options import InferOptions, Progress

Array = NDArray[Any]
SIZE = (42, 28)  # width, height


@dataclass(frozen=True, eq=False)
class Walk:
    """Frames of a camera that goes around the table of the samples: depth (N, H, W), poses (N, 4, 4) whose first is
    the identity, and the intrinsics (3, 3) of all."""

    depth: Array
    poses: Array
    intrinsics: Array

    def view(self, number: int, known: str = "") -> dict[str, Any]:
        """A frame as ``infer`` takes it, with what the letters say: k intrinsics, d depth, p pose."""
        image = np.tile(np.linspace(-1, 1, SIZE[0], dtype=np.float32), (1, 3, SIZE[1], 1))
        image[..., 0, 0] = number / 100  # tells the engine which frame it is
        view: dict[str, Any] = {"img": image, "data_norm_type": ["dinov2"]}
        if "k" in known:
            view["intrinsics"] = self.intrinsics[None].astype(np.float32)
        if "d" in known:
            view["depth_z"] = self.depth[number][None].astype(np.float32)
        if "p" in known:
            view["camera_poses"] = self.poses[number][None]
        return view


def walk(frames: int) -> Walk:
    """Walk around the table of the samples."""
    scene = sample_scene(1, *SIZE)
    start = scene.poses[0].astype(np.float64)
    poses, depths = [], []
    for number in range(frames):
        angle = 0.02 * number
        turn = np.eye(4)
        turn[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        turn[:3, 3] = 0.03 * number, 0.02 * np.sin(number / 3), 0.01 * number
        pose = (start @ turn).astype(np.float32)
        hits = cast(scene.world, *camera_rays(pose, scene.intrinsics[0], *SIZE))
        poses.append(turn)
        depths.append(np.where((hits.distance > 0) & (hits.distance < 20), hits.distance, 0))
    return Walk(np.stack(depths).astype(np.float64), np.stack(poses), scene.intrinsics[0].astype(np.float64))


class PerfectEngine(MultiViewInference):
    """Answers with the truth in the camera of the first view of a call, as many times as large as ``scales`` says.

    Attributes:
        encoded: numbers of the frames that the image encoder saw.
        calls: what the network got, call by call.
    """

    def __init__(
        self,
        truth: Walk,
        scales: Callable[[int], float] = lambda call: 1.0,
        err: Callable[[int, int, dict[str, Array]], None] = lambda call, frame, heads: None,
        most: int = 32,
    ) -> None:
        self.data_norm_type = "dinov2"
        self.label = "perfect engine"
        self.manifest: Any = SimpleNamespace(requests=SimpleNamespace(views=SimpleNamespace(max=most)))
        self.encoded: list[int] = []
        self.calls: list[PreparedViews] = []
        self._truth, self._scales, self._err = truth, scales, err

    @property
    def _encoder(self) -> str:
        return "perfect"

    def encode(self, views: Sequence[Any]) -> list[EncodedView]:
        plain, known = unpack_views(views, self._encoder)
        prepared = prepare_views(images_of(plain), data_norm_type=self.data_norm_type)
        result = []
        for view, entry, image, features in zip(views, plain, prepared.images, known, strict=True):
            if features is None:
                number = round(float(image[0, 0, 0, 0]) * 100)
                self.encoded.append(number)
                made = ImageFeatures(self._patches(number), np.full((1, 1, 4), number, np.float32))
                view = EncodedView(kept_of(entry, None), made, self._encoder)
            result.append(view)
        return result

    def _patches(self, number: int) -> Array:
        """Patch tokens of a frame (1, rows, columns, E) float32."""
        return np.full((1, 2, 3, 4), number, np.float32)

    def numbers(self, call: PreparedViews) -> list[int]:
        """Which frames a call was over, in its order."""
        features = [view.features for view in call.views]
        return [int(one.extra.flat[0]) for one in features if one is not None and one.extra is not None]

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> list[dict[str, Array]]:
        call = len(self.calls)
        self.calls.append(prepared)
        numbers = self.numbers(prepared)
        scale = self._scales(call)
        into = np.linalg.inv(self._truth.poses[numbers[0]])
        rays = rays_from_intrinsics(self._truth.intrinsics[None], *self._truth.depth.shape[1:])
        result = []
        for number in numbers:
            pose, depth = into @ self._truth.poses[number], self._truth.depth[number]
            view = {
                "ray_directions": rays,
                "depth_along_ray": (np.where(depth > 0, depth, 1.0) / rays[0, ..., 2])[None, ..., None],
                "confidence": np.full((1, *depth.shape), 2.0),
                "mask_logits": np.where(depth > 0, 1.0, -1.0)[None],
                "cam_trans": pose[None, :3, 3],
                "cam_quats": matrix_to_quaternion(pose[None, :3, :3]),
                "scale": np.full((1, 1), scale),
            }
            self._err(call, number, view)
            result.append(view)
        return result
