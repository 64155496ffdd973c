"""The arrays of a scene, as what writes and draws them needs to know them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class SceneArrays(Protocol):
    """The arrays of a :class:`~.scene.Scene`, which are described there."""

    points: NDArray[np.float32]
    colors: NDArray[np.uint8]
    depth: NDArray[np.float32]
    confidence: NDArray[np.float32]
    mask: NDArray[np.bool_]
    intrinsics: NDArray[np.float32]
    poses: NDArray[np.float32]
    names: list[str]
