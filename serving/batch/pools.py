"""What the scenes of a batch are handed to: processes of this machine, or a pool of actors of Ray Data.

Both call :func:`.worker.answer`, which does the work; a pool only brings scenes to workers, and replaces those that
end. An answer that is lost on its way costs nothing: the scene's result is found where it was written.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any, Protocol

from mapengine.runtime.errors import BackendError, BackendUnavailableError, InputError, one_line
from mapengine.runtime.system.children import WorkerPool

from .job import MOST_ATTEMPTS, Job
from .worker import Answer, answer

_QUEUED = 2
"""Calls per worker that are handed out ahead."""
_TOGETHER = 8
"""Most scenes of one call to a worker, which saves one while it reconstructs the next."""
_BLOCK = 16
_BLOCKS = 4000


def together(count: int, workers: int) -> int:
    """Return how many of ``count`` scenes a worker gets at a time: few enough that all workers end together."""
    return max(1, min(_TOGETHER, count // (16 * workers)))


class Pool(Protocol):
    """Does scenes of a job."""

    def run(self, job: Job, offsets: Iterable[int], count: int) -> Generator[Answer, None, None]:
        """Yield an answer for each of ``count`` places in the job's file of scenes, as they come.

        When it is closed before its end, workers end with what they are doing.

        Raises:
            MapEngineError: no worker stays alive.
        """
        ...


class LocalPool:
    """Processes of this machine, with an engine each."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def run(self, job: Job, offsets: Iterable[int], count: int) -> Generator[Answer, None, None]:
        """As :meth:`Pool.run`."""
        rest = iter(offsets)
        deaths, most = 0, (MOST_ATTEMPTS + 1) * (self._workers + 1)
        size = together(count, self._workers)
        with WorkerPool(min(self._workers, max(1, count))) as pool:
            waiting: dict[Future[list[Answer]], list[int]] = {}
            while True:
                while len(waiting) < _QUEUED * self._workers and (some := list(islice(rest, size))):
                    waiting[pool.submit(answer, job, some)] = some
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    some = waiting.pop(future)
                    try:
                        found = future.result()
                    except BackendError as error:  # the process ended; the next one looks at what is left of the scene
                        deaths += 1
                        if deaths > most:
                            raise BackendError(
                                f"worker after worker ends without a result; the last: {error}"
                            ) from error
                        waiting[pool.submit(answer, job, some)] = some
                        continue
                    deaths = 0
                    yield from found


class SceneActor:
    """What Ray keeps in a process of a node."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Do the scenes of a batch of rows."""
        return {"answer": [pickle.dumps(found) for found in answer(self._job, rows["offset"].tolist())]}


class RayPool:
    """Actors on the nodes of a Ray cluster, as many as its processors (or GPUs) allow."""

    def __init__(self, address: str, on_gpu: bool) -> None:
        """Connect to the cluster at ``address``; ``local`` starts one on this machine.

        Raises:
            BackendUnavailableError: Ray is not installed.
            InputError: there is no cluster.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is computed here is nobody's business
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what ends a run is raised, the rest is Ray's own
        try:
            import ray
        except ModuleNotFoundError as error:
            raise BackendUnavailableError(
                "--ray needs ray, which is not installed; run: pip install 'mapengine[ray]'"
            ) from error
        self._on_gpu = on_gpu
        self._connected = not ray.is_initialized()
        if not self._connected:
            return
        options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises many kinds
            raise InputError(f"--ray {address}: there is no cluster: {one_line(error)}; check the address") from error

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster, where it was joined here."""
        import ray

        if self._connected:
            ray.shutdown()

    def processors(self) -> int:
        """Return how many the smallest node with any has."""
        import ray

        counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        return min([count for count in counts if count], default=1)

    def run(self, job: Job, offsets: Iterable[int], count: int) -> Generator[Answer, None, None]:
        """As :meth:`Pool.run`."""
        import pyarrow as pa
        import ray
        from ray.data import DataContext

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # an answer leaves its actor at once, not with the last of its block
        threads = job.threads or 1
        resources: dict[str, Any] = {"num_gpus": 1} if self._on_gpu else {"num_cpus": threads}
        each = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = sum(int(node.get("GPU", 0)) if self._on_gpu else int(node.get("CPU", 0)) // threads for node in each)
        if not most:
            what = "GPU" if self._on_gpu else f"{threads} processors for --threads"
            raise InputError(f"--ray: no node of the cluster has {what}; give another cluster, or fewer")
        size = together(count, most)
        rows = size * max(1, min(_BLOCK, count // _BLOCKS) // size)
        rest = iter(offsets)
        blocks = [pa.table({"offset": block}) for block in iter(lambda: list(islice(rest, rows)), [])]
        scenes = ray.data.from_arrow(blocks).map_batches(
            SceneActor,
            fn_constructor_args=(job,),
            batch_size=size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, count)),
            **resources,
        )
        try:
            for row in scenes.iter_rows():
                yield pickle.loads(row["answer"])
        except ray.exceptions.RayError as error:
            raise BackendError(
                f"--ray: the cluster gave up: {one_line(error)}; see its logs, and run it again"
            ) from error
