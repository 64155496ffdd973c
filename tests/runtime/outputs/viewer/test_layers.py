"""Where a viewer begins."""

from __future__ import annotations

import numpy as np

from mapengine.runtime import Scene
from mapengine.runtime.outputs.viewer.layers import PointSet, first_look, scene_origin


def look(scene: Scene) -> dict[str, np.ndarray]:
    origin = scene_origin(scene)
    found = first_look(scene, PointSet.of(scene, origin, None, 0))
    return {name: np.asarray(value) for name, value in found.items()}


def turned(angle: float) -> np.ndarray:
    """A pose at the origin that looks to the side."""
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    return pose


def test_cameras_that_look_around_themselves_are_looked_with(scene: Scene) -> None:
    """The middle of what they see is where they are: nothing would be in sight from there."""
    angles = np.arange(8) * np.pi / 4
    rows, columns = np.indices(scene.mask.shape[1:])
    rays = np.stack([(columns - 28) / 50, (rows - 21) / 50, np.ones_like(rows)], axis=-1) * 3.0
    around = Scene(
        points=np.stack([rays @ turned(angle)[:3, :3].T for angle in angles]),
        colors=np.repeat(scene.colors[:1], 8, axis=0),
        depth=np.full((8, *scene.mask.shape[1:]), 3.0),
        confidence=np.ones((8, *scene.mask.shape[1:])),
        mask=np.ones((8, *scene.mask.shape[1:]), bool),
        intrinsics=np.repeat(scene.intrinsics[:1], 8, axis=0),
        poses=np.stack([turned(angle) for angle in angles]),
    )
    found = look(around)
    assert 2 < found["radius"] < 5
    direction = found["target"] - found["position"]
    assert direction[2] > 0.9 * np.linalg.norm(direction)  # as the first camera


def test_other_cameras_are_looked_over(scene: Scene) -> None:
    found = look(scene)
    middle = np.median(scene.points[scene.mask], axis=0) - scene_origin(scene)
    np.testing.assert_allclose(found["target"], middle, atol=1e-4)
