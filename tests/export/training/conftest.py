"""A small set of scenes and a small network to train on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mapengine.export.model.presets import preset_config
from mapengine.export.training.config import Phase, TrainingConfig
from mapengine.export.training.dataset import SceneStore, render_scenes

SIZE = 28


@pytest.fixture(scope="session")
def scene_folder(shared_folder: Path) -> Path:
    """Scenes that all workers share: what is rendered is not rendered again."""
    folder = shared_folder / "training-scenes"
    with FileLock(f"{folder}.lock"):
        assert len(list(render_scenes(folder, 50, SIZE, SIZE, workers=1))) == 1
    return folder


@pytest.fixture(scope="session")
def scenes(scene_folder: Path) -> SceneStore:
    store = SceneStore(50, SIZE, SIZE)
    for path in scene_folder.iterdir():
        store.append(path)
    return store


@pytest.fixture
def config() -> TrainingConfig:
    changes: dict[str, Any] = {"phases": (Phase(4, 8),), "view_counts": (1, 2, 4), "warmup": 2, "scenes": 50}
    return TrainingConfig(
        model=preset_config("tiny"), width=SIZE, height=SIZE, checkpoint_every=100, evaluate_every=100, **changes
    )
