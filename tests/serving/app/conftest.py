"""An engine that takes no time, for what surrounds an engine, and files to upload."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Scene
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.serving.app.limits import UploadLimits
from mapengine.serving.app.visits import Visits

WIDTH, HEIGHT = 56, 42


@dataclass
class StandInEngine:
    """Reads its views, and says that each sees a wall two metres ahead.

    Attributes:
        gate: it waits for this before it reads.
        failure: what it raises then, or None.
        calls: names of the views of each call that began.
    """

    manifest: Manifest
    label: str = "preset:wall, fp32 (bundle bricks)"
    where: str = "fingers on a hand"
    gate: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    calls: list[list[str]] = field(default_factory=list)

    def check_call(self, views: Sequence[Any], *, size: Any = None) -> None:
        self.manifest.requests.check_views(len(views))

    def device_bytes(self) -> None:
        return None

    def reconstruct_views(self, views: Sequence[Any], *, size: Any, progress: Any, **_: Any) -> Scene:
        self.calls.append([view.name for view in views])
        assert self.gate.wait(20)
        if self.failure is not None:
            raise self.failure
        width, height = size or (WIDTH, HEIGHT)
        images = [view.resized((width, height)).image for view in views]
        for done in range(len(views)):
            progress("dense_head", done + 1, len(views))
        return wall([np.asarray(image) for image in images], [view.name for view in views])


def wall(images: Sequence[Any], names: Sequence[str]) -> Scene:
    """A scene of equal views of a wall, two metres ahead; the left half of each is less confident."""
    count, (height, width) = len(images), images[0].shape[:2]
    rows, columns = np.indices((height, width)).astype(np.float32)
    rays = np.stack([(columns - width / 2) / 50, (rows - height / 2) / 50, np.ones_like(rows)], axis=-1)
    mask = np.ones((count, height, width), bool)
    mask[:, 0, 0] = False
    return Scene(
        points=np.tile(2 * rays, (count, 1, 1, 1)),
        colors=np.stack(images).astype(np.uint8),
        depth=np.full((count, height, width), 2, np.float32),
        confidence=np.tile(np.where(columns < width / 2, 1, 2).astype(np.float32), (count, 1, 1)),
        mask=mask,
        intrinsics=np.tile(np.array([[50, 0, width / 2], [0, 50, height / 2], [0, 0, 1]], np.float32), (count, 1, 1)),
        poses=np.tile(np.eye(4, dtype=np.float32), (count, 1, 1)),
        names=list(names),
        made_by="preset:wall, fp32 (bundle bricks)",
    )


def photograph(
    color: tuple[int, int, int] = (200, 60, 40), form: str = "PNG", size: tuple[int, int] = (112, 84)
) -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, form)
    return file.getvalue()


@pytest.fixture
def stand_in(manifest: Manifest) -> StandInEngine:
    """An engine that does not wait."""
    engine = StandInEngine(manifest)
    engine.gate.set()
    return engine


@pytest.fixture
def limits() -> UploadLimits:
    return UploadLimits(files=3, size=100_000, pixels=20_000, visits=2)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files are in."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def open_visits(stand_in: StandInEngine, limits: UploadLimits, temporary: Path) -> Iterator[Callable[..., Visits]]:
    """Makes :class:`Visits`, which are closed in the end."""
    opened: list[Visits] = []

    def make(**options: Any) -> Visits:
        visits = Visits(stand_in, options.pop("limits", limits), **options)  # type: ignore[arg-type]
        opened.append(visits)
        return visits

    yield make
    stand_in.gate.set()
    for visits in opened:
        visits.close()
