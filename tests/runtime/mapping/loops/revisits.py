"""A walk there and back again, and an engine that knows it, recognises its places, and drifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapengine.runtime.geometry import matrix_to_quaternion, quaternion_to_matrix
from mapengine.runtime.mapping.similarity import Similarity

from ..perfect import PerfectEngine, Walk, walk

Array = NDArray[Any]
PLACES = 66
DRIFT = np.array([0.0, 0.003, 0.001, 0.004, 0.0, 0.002])
"""Tangent by which a camera is off per frame between it and the reference of the call."""
_LONG = 30
"""Frames between two from which they count as two visits, between which nothing drifts."""


def there_and_back() -> tuple[Walk, list[int]]:
    """Return the walk, and per frame which place it sees."""
    once = walk(PLACES)
    places = [*range(PLACES), *range(PLACES - 1, -1, -1)]
    return Walk(once.depth[places], once.poses[places], once.intrinsics), places


class RevisitingEngine(PerfectEngine):
    """Gives frames of one place features of one kind; ``looks`` says which place a frame looks like."""

    def __init__(self, truth: Walk, looks: Sequence[int], drift: Array = DRIFT) -> None:
        super().__init__(truth, err=self._drift)
        self.looks, self.drift = list(looks), drift
        rng = np.random.default_rng(0)
        self._kinds, self._noise = rng.normal(size=(PLACES, 6, 32)), rng

    def _patches(self, number: int) -> Array:
        rng = np.random.default_rng(number)
        kinds = self._kinds[self.looks[number] // 3]
        patches = kinds[rng.integers(0, len(kinds), 60)] + 0.2 * rng.normal(size=(60, kinds.shape[1]))
        return patches.reshape(1, 6, 10, -1).astype(np.float32)

    def _drift(self, call: int, number: int, heads: dict[str, Array]) -> None:
        steps = number - self.numbers(self.calls[call])[0]
        if abs(steps) > _LONG:
            return
        pose = Similarity(quaternion_to_matrix(heads["cam_quats"][0]), heads["cam_trans"][0])
        moved = Similarity.exp(steps * self.drift) @ pose
        heads["cam_trans"] = moved.translation[None]
        heads["cam_quats"] = matrix_to_quaternion(moved.rotation[None])
