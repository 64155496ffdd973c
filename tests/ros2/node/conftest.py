"""An engine of ``preset:nano`` and a scene that it was not trained on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapengine.calibration.scenes import RenderedScene, render_scene
from mapengine.runtime import Engine

BUNDLE = Path(__file__).parents[3] / "build" / "ros" / "engine"


@pytest.fixture(scope="session")
def nano() -> Engine:
    """The engine that ``make ros`` has built, or that ``MAPENGINE_ROS_BUNDLE`` names."""
    return Engine.load(os.environ.get("MAPENGINE_ROS_BUNDLE", BUNDLE), "onnxruntime", verify=False)


@pytest.fixture(scope="session")
def scene() -> RenderedScene:
    """Four views of a held-out scene, of the size that the network was trained at."""
    return render_scene(1_000_046, 4, 140, 112)
