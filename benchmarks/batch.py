"""Measure `mapengine batch`: scenes per second, the time that is not the engine's, the driver's memory. Writes JSON.

    python benchmarks/batch.py --bundle build/engine --json benchmarks/results/batch.json

Rendered scenes are done by one worker and by two, in turn, each on one thread. The engine's time is that of
``Engine.reconstruct_views``, from image files to points; the rest is listing, hashing, saving, and waiting for a scene.
The driver's memory is the peak of a process that lists scenes and notes a result for each, without workers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from mapengine.calibration.data.samples import write_samples
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.system.children import WorkerPool
from mapengine.runtime.system.machine import peak_bytes
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.system.sizes import parse_pixels
from mapengine.runtime.writing.files import write_record
from mapengine.serving.batch.job import Job
from mapengine.serving.batch.pools import LocalPool, together
from mapengine.serving.batch.records import DONE, SceneResult
from mapengine.serving.batch.run import Batch, Tally, run_batch
from mapengine.serving.batch.worker import Answer

BACKEND = "onnxruntime"


class NoPool:
    """Answers for every scene that it is done, and does nothing."""

    def run(self, job: Job, offsets: Iterable[int], count: int) -> Generator[Answer, None, None]:
        """As a pool does."""
        for offset in offsets:
            scene = job.entry_at(offset).id
            yield Answer(SceneResult(scene, DONE, job.digest, "", job.run, 1.0, 1.0, 8, 100_000, 1.0))


def write_scenes(folder: Path, count: int, views: int, size: tuple[int, int]) -> Path:
    """Write a folder of scenes of images, which are one rendered scene under many names."""
    write_samples(folder / "one", views, *size)
    for number in range(count):
        (folder / "scenes" / f"{number:06}").mkdir(parents=True)
        for image in (folder / "one").glob("*.png"):
            shutil.copy(image, folder / "scenes" / f"{number:06}" / image.name)
    return folder / "scenes"


def measured(bundle: Path, scenes: Path, out: Path, workers: int, size: tuple[int, int]) -> dict[str, float]:
    """Do all scenes, and return the rate after the first result, and where the workers' time went."""
    ends: list[float] = []
    results: list[SceneResult] = []

    def note(tally: Tally, answer: Answer) -> None:
        assert answer.result is not None
        assert answer.result.state == DONE, answer.result.error
        ends.append(time.perf_counter())
        results.append(answer.result)

    batch = Batch(bundle, str(scenes), out, {"size": list(size)}, backend=BACKEND, threads=1)
    tally = run_batch(batch, LocalPool(workers), progress=note)
    # What each worker got first, and its engine's start, are no part of it.
    first = workers * together(len(results), workers)
    count = len(results) - first
    wall = ends[-1] - ends[first - 1]
    engine = sum(result.engine_seconds for result in results[first:])
    return {
        "scenes_per_second": count / wall,
        "scenes_per_second_with_start": len(results) / tally.seconds,
        "not_engine": 1 - engine / (workers * wall),
        "milliseconds_of_a_scene": 1e3 * workers * wall / count,
    }


def driver_memory(bundle: Path, scenes: int) -> dict[str, float]:
    """Return peak memory and seconds of a driver that lists so many scenes of 8 views, in a process of its own."""
    with WorkerPool(1) as process:
        found: dict[str, float] = process.submit(list_many, bundle, scenes).result()
    return found


def list_many(bundle: Path, scenes: int) -> dict[str, float]:
    """List scenes in this process, and note a result for each."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "scenes.jsonl"
        with listed.open("w", encoding="utf-8") as file:
            for number in range(scenes):
                inputs = [f"images/{number:06}/{view}.jpg" for view in range(8)]
                file.write(json.dumps({"id": f"scene-{number:06}", "inputs": inputs}) + "\n")
        start = time.perf_counter()
        tally = run_batch(Batch(bundle, str(listed), Path(folder) / "out"), NoPool())
        assert tally.done == scenes
    return {"peak_mb": (peak_bytes() or 0) / 1e6, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", default="140x112", type=parse_pixels)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--listed", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, default=Path("build/batch.json"), help="where to write the record")
    args = parser.parse_args()
    rounds: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder), args.scenes, args.views, args.size)
        for number in range(args.rounds):
            for workers, found in rounds.items():
                out = Path(folder) / f"out-{number}-{workers}"
                found.append(measured(args.bundle, scenes, out, workers, args.size))
                shutil.rmtree(out)
                print(workers, found[-1], flush=True)
    record: dict[str, Any] = {
        "benchmark": "batch",
        "what": "scenes per second by the number of workers, the time that is not the engine's, the driver's memory",
        "model": Bundle.open(args.bundle).manifest.model.id,
        "backend": BACKEND,
        "scenes": args.scenes,
        "views": args.views,
        "size": "{}x{}".format(*args.size),
        "rounds": args.rounds,
        **record_origin("mapengine", "onnxruntime", "numpy", "pyarrow"),
        "results": {
            str(workers): {name: median(each[name] for each in found) for name in found[0]}
            for workers, found in rounds.items()
        },
        "driver": {str(count): driver_memory(args.bundle, count) for count in args.listed},
    }
    write_record(args.json, record)


if __name__ == "__main__":
    main()
