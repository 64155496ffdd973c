"""A rendered scene, its reconstruction beside the truth, and what the two differ by."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime import Scene
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.inputs.resizing import resize_and_crop
from mapengine.runtime.outputs.viewer.page import write_layers
from mapengine.runtime.postprocessing.predictions import finish_predictions, heads_of

from ..data.samples import SAMPLE_SEED, SAMPLE_SIZE
from ..evaluation import SceneScore, Truth, score
from ..evaluation.metrics import depth_abs_rel, in_first_view, median_scale
from ..scenes import RenderedScene, render_scene

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class DemoScene:
    """What is reconstructed.

    Attributes:
        scene: V views of the size that the network sees, its images resized from ``pictures``; geometry is exact there.
        pictures: (V, h, w, 3) uint8, as rendered.
    """

    scene: RenderedScene
    pictures: NDArray[np.uint8]


def demo_scene(size: tuple[int, int], views: int = 4, seed: int = SAMPLE_SEED) -> DemoScene:
    """Render a scene for a network that takes views of ``size`` (width, height).

    Like photographs, the pictures are larger than what the network sees: a whole multiple, with about as many
    pixels as samples.

    Raises:
        InputError: as :func:`mapengine.calibration.scenes.render_scene`.
    """
    width, height = size
    scene = render_scene(seed, views, width, height)
    times = max(1, math.isqrt(math.prod(SAMPLE_SIZE) // (width * height)))
    large = render_scene(seed, views, times * width, times * height) if times > 1 else scene
    # Cameras depend on the shape of a view and not on its size, but for scenes with something thin and very near.
    if not np.array_equal(large.poses, scene.poses):
        large = scene
    images = np.stack([resize_and_crop(image, size)[0] for image in large.images])
    return DemoScene(replace(scene, images=images), large.images)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A reconstruction of V views and the truth, both in the frame of their own view 0.

    Attributes:
        truth: exact geometry.
        score: the metrics of the evaluation.
        factor: true over predicted median depth; ``depth`` and ``poses`` are multiplied by it.
        view_abs_rel: depth AbsRel of each view with that one factor; None where a view has no depth.
        depth: (V, H, W) predicted depth_z, metres.
        surface: (V, H, W) bool, where the network sees a surface.
        errors: (V, H, W) |d - d*| / d* where there is true depth, 0 elsewhere.
        poses: (V, 4, 4) predicted, camera-to-world.
        reconstruction: the prediction as it is, in metres as far as its scale is right.
        true_scene: the truth in the same form.
    """

    truth: Truth
    score: SceneScore
    factor: float
    view_abs_rel: tuple[float | None, ...]
    depth: Array
    surface: NDArray[np.bool_]
    errors: Array
    poses: Array
    reconstruction: Scene
    true_scene: Scene

    def save(self, folder: str | os.PathLike[str], title: str = "") -> None:
        """Write ``demo.html``, a page with this title that shows both scenes in turn, ``demo.glb`` (the reconstruction)
        and ``truth.glb`` into a folder; errors as ``Scene.save``."""
        write_layers(
            Path(folder) / "demo.html", {"Prediction": self.reconstruction, "Truth": self.true_scene}, title=title
        )
        self.reconstruction.save(Path(folder) / "demo.glb")
        self.true_scene.save(Path(folder) / "truth.glb")


def compare(predictions: Sequence[Mapping[str, Any]], scene: RenderedScene, norm_type: str = "dinov2") -> Comparison:
    """Compare the answer of ``infer(..., apply_mask=False)``, NumPy arrays, with the scene.

    Args:
        predictions: one dictionary per view, batch 1.
        scene: what they were made from.
        norm_type: ``data_norm_type`` of the network.

    Raises:
        InputError: another number of views or another size than the scene.
        ParityError: a prediction is not finite.
    """
    truth = Truth.of(scene, f"scene {scene.seed}")
    result = score(predictions, truth, f"scene {scene.seed}")
    found = {
        key: np.concatenate([np.asarray(prediction[key]) for prediction in predictions])
        for key in ("depth_z", "camera_poses", "non_ambiguous_mask")
    }
    depth = found["depth_z"][..., 0].astype(np.float64)
    factor = median_scale(depth, truth.depth_z, truth.valid)
    depth *= factor
    first = found["camera_poses"][0].astype(np.float64)
    poses = in_first_view(found["camera_poses"].astype(np.float64))
    images = [normalize_image(image, norm_type) for image in scene.images]
    masked = finish_predictions(list(map(heads_of, predictions)), images, data_norm_type=norm_type)
    reconstruction = Scene.from_predictions(
        [
            {**finished, "metric_scaling_factor": prediction["metric_scaling_factor"]}
            for finished, prediction in zip(masked, predictions, strict=True)
        ]
    )
    moved = replace(reconstruction, points=(reconstruction.points - first[:3, 3]) @ first[:3, :3], poses=poses.copy())
    poses[:, :3, 3] *= factor
    errors = np.divide(np.abs(depth - truth.depth_z), truth.depth_z, out=np.zeros_like(depth), where=truth.valid)
    return Comparison(
        truth=truth,
        score=result,
        factor=factor,
        view_abs_rel=tuple(
            depth_abs_rel(depth[v : v + 1], truth.depth_z[v : v + 1], valid[None]) if valid.any() else None
            for v, valid in enumerate(truth.valid)
        ),
        depth=depth,
        surface=found["non_ambiguous_mask"] > 0,
        errors=errors,
        poses=poses,
        reconstruction=moved,
        true_scene=_true_scene(scene, truth),
    )


def _true_scene(scene: RenderedScene, truth: Truth) -> Scene:
    return Scene(
        points=truth.points,
        colors=scene.images,
        depth=scene.depth_z,
        confidence=np.ones(scene.depth_z.shape, np.float32),
        mask=truth.valid,
        intrinsics=scene.intrinsics,
        poses=truth.poses,
    )
