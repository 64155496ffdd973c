"""Small inputs to spoil, and what every refusal has in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import (
    MapEngineError,
    Scene,
)

W, H = 56, 42
SIZE = (W, H)
GENERATOR = np.random.default_rng(7)
PIXELS = GENERATOR.integers(0, 256, (30, 40, 3), dtype=np.uint8)
IMAGE = GENERATOR.normal(size=(1, 3, H, W)).astype(np.float32)
K = np.array([[[50, 0, 27.5], [0, 50, 20.5], [0, 0, 1]]], np.float32)
DEPTH = (1 + GENERATOR.random((1, H, W))).astype(np.float32)
RAYS = np.ones((1, H, W, 3), np.float32)
EYE = np.eye(4, dtype=np.float32)[None]
SMALL_K = [40, 40, 19.5, 14.5]  # of PIXELS
SMALL_DEPTH = np.ones((30, 40), np.float32)


def view(**known: Any) -> dict[str, Any]:
    return {"img": IMAGE, "data_norm_type": ["dinov2"], **known}


def matrix(**entries: float) -> np.ndarray:
    """Intrinsics with some entries replaced: fx, fy, cx, cy."""
    places = {"fx": (0, 0, 0), "fy": (0, 1, 1), "cx": (0, 0, 2), "cy": (0, 1, 2)}
    result = K.astype(np.float64)
    for name, value in entries.items():
        result[places[name]] = value
    return result


def pose(x: float = 0.0, rotation: Any = None) -> np.ndarray:
    result = np.eye(4)[None]
    result[0, 0, 3] = x
    if rotation is not None:
        result[0, :3, :3] = rotation
    return result


def refused(error: type[MapEngineError], words: str, call: Callable[[], Any]) -> None:
    """The call raises exactly this class, with one readable sentence that holds all ``words`` (split at "|")."""
    with pytest.raises(MapEngineError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert all(word in message for word in words.split("|")), message
    assert "\n" not in message, message
    assert len(message) < 400, message
    assert not re.search(r"Traceback|numpy\.|PIL\.|0x[0-9a-f]{6}", message), message
    assert not re.search(r"[a-z]\. [A-Z]", message), f"more than one sentence: {message}"
    assert not message.endswith("."), message


def finite(result: Any) -> bool:
    if isinstance(result, Scene):
        fields = (result.points, result.depth, result.confidence, result.intrinsics, result.poses)
        return all(np.isfinite(field).all() for field in fields)
    return all(np.isfinite(value).all() for prediction in result for value in prediction.values())
