"""Small scenes, and a pool that needs no process."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mapengine.serving.batch.job import Job
from mapengine.serving.batch.run import Batch
from mapengine.serving.batch.worker import Answer, answer

SIZE = "56x42"


class InlinePool:
    """Does scenes in this process, one after the other."""

    def run(self, job: Job, offsets: Iterable[int], count: int) -> Generator[Answer, None, None]:
        """As a pool does."""
        for offset in offsets:
            yield from answer(job, [offset])


def write_scene(folder: Path, seed: int = 0) -> Path:
    """Write two images of noise that no other seed gives."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (2, 42, 56, 3), np.uint8)
    for view in range(2):
        Image.fromarray(noise[view]).save(folder / f"{view}.png", compress_level=1)
    return folder


def write_scenes(folder: Path, count: int) -> Path:
    """Write a folder of scenes ``s000``, ``s001``, ..."""
    for number in range(count):
        write_scene(folder / f"s{number:03}", number)
    return folder


def small_batch(bundle: Path, scenes: Path | str, out: Path, **changes: Any) -> Batch:
    """A batch at a small size, on one thread."""
    options = {"size": SIZE, **changes.pop("options", {})}
    return Batch(bundle, str(scenes), out, options, backend="onnxruntime", threads=1, **changes)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """The table of a batch by id."""
    import pyarrow.parquet as parquet

    return {row["id"]: row for row in parquet.read_table(out / "results.parquet").to_pylist()}


def states_of(out: Path) -> dict[str, str]:
    """The states in the table of a batch by id."""
    return {name: row["state"] for name, row in rows_of(out).items()}


def leftovers(out: Path) -> list[str]:
    """Temporary files and folders that are left in a folder of results."""
    return [path.name for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]
