"""Scenes of a perfect network."""

from __future__ import annotations

from typing import Any

import pytest

from mapengine.runtime import Scene


@pytest.fixture
def scene(predictions: list[dict[str, Any]]) -> Scene:
    """Two views of 56 x 42 pixels, whose left eighth is masked."""
    return Scene.from_predictions(predictions, names=["a.jpg", "b.jpg"])


@pytest.fixture
def empty(predictions: list[dict[str, Any]]) -> Scene:
    """The same without a valid pixel, and without names."""
    for prediction in predictions:
        prediction["mask"][:] = False
    return Scene.from_predictions(predictions)
