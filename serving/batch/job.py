"""What all workers of a batch are told, and the files that they share with the one that started them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .listing import SceneEntry
from .records import SCENES, folder_name
from .scene_options import options_digest

MOST_ATTEMPTS = 3
"""How many workers may die at work on one scene, before it is given up."""


@dataclass(frozen=True)
class Job:
    """One run of a batch, the same for every scene and worker. Hashable, and small when it is pickled.

    Attributes:
        bundle: path of the bundle. digest: of its manifest.
        backend, threads: as ``Engine.load`` takes them.
        memory: bytes that a worker may take; None for any.
        options: those of all scenes, as JSON.
        formats: that each scene is saved in.
        out: path of the folder of results. place: of the run's temporary folder in it.
        run: name of the run.
    """

    bundle: str
    digest: str
    backend: str
    threads: int | None
    memory: int | None
    options: str
    formats: tuple[str, ...]
    out: str
    place: str
    run: str

    @property
    def todo(self) -> Path:
        """The file with the scenes to do, a line each."""
        return Path(self.place) / "todo.jsonl"

    def folder(self, scene: str) -> Path:
        """Return the folder of a scene's result."""
        return Path(self.out) / SCENES / folder_name(scene)

    def options_of(self, entry: SceneEntry) -> dict[str, Any]:
        """Return the options of a scene: its own, and those of all scenes where it has none."""
        return {**json.loads(self.options), **entry.options}

    def digest_of(self, options: Mapping[str, Any]) -> str:
        """Return the hash of options, and of what else decides a result besides the bundle and the inputs."""
        return options_digest(options, self.backend, self.formats)

    def entry_at(self, offset: int) -> SceneEntry:
        """Return the scene at a byte of the file of scenes to do."""
        with self.todo.open("rb") as file:
            file.seek(offset)
            return SceneEntry.of_line(file.readline())


@dataclass(frozen=True)
class Attempts:
    """A file that outlives a worker: how often work on a scene was begun in this run, and why it was ended."""

    path: Path

    @classmethod
    def of(cls, job: Job, scene: str) -> Attempts:
        """Return that of a scene."""
        return cls(Path(job.place) / f"attempt-{folder_name(scene)}")

    def read(self) -> tuple[int, str]:
        """Return how many there were, and the sentence with which the last ended its worker, if it left one."""
        try:
            count, _, reason = self.path.read_text(encoding="utf-8").partition(" ")
            return int(count), reason
        except (FileNotFoundError, ValueError):
            return 0, ""

    def write(self, count: int, reason: str = "") -> None:
        """Note that so many were begun; complete or not at all.

        Raises:
            FileNotFoundError: the run is over.
        """
        temporary = self.path.with_name(f"{self.path.name}.part")
        temporary.write_text(f"{count} {reason}", encoding="utf-8")
        os.replace(temporary, self.path)

    def clear(self) -> None:
        """Forget them: the scene is done."""
        self.path.unlink(missing_ok=True)
