"""Running a network over scenes and tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from mapengine.runtime.bundle.requests import PATCH_SIZE, rounded_to_patches
from mapengine.runtime.errors import ImageSizeError, InputError, warn

from ..scenes import render_scene
from .baseline import ConstantDepth
from .scoring import SceneScore, Values, aggregate, score
from .tasks import HELD_OUT_SEED, Task, select_tasks, task_views
from .truth import EvaluationScene, Truth

DEFAULT_SCENES = 200
"""How many scenes are rendered unless a number is given."""
DEFAULT_SIZE = (140, 112)
"""Width and height in pixels."""

Progress = Callable[[int, int, str], None]
"""Called with the steps done, how many there are, and what was done."""

_RENDERED_AHEAD = 2
_DIGITS = 6  # significant ones, in JSON


class Predictor(Protocol):
    """What can be evaluated: an engine, the PyTorch reference, or any other ``MultiViewInference``."""

    data_norm_type: str

    def infer(
        self, views: Sequence[Mapping[str, Any]], *, use_amp: bool, apply_mask: bool
    ) -> Sequence[Mapping[str, Any]]:
        """See :meth:`mapengine.runtime.inference.MultiViewInference.infer`."""


@dataclass(frozen=True)
class TaskResult:
    """Metrics of one task.

    Attributes:
        name: of the task, or ``constant depth``.
        views: views per scene.
        inputs: what was given, in words.
        scenes: number of scenes.
        metrics: by key of :data:`.scoring.METRICS`; None where a metric does not exist.
    """

    name: str
    views: int
    inputs: str
    scenes: int
    metrics: Values

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rounded = {k: None if v is None else float(f"{v:.{_DIGITS}g}") for k, v in self.metrics.items()}
        return {"views": self.views, "inputs": self.inputs, "scenes": self.scenes, "metrics": rounded}


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Attributes:
        scenes: number of scenes.
        size: width and height of the views in pixels.
        seed: of the first rendered scene; None for other scenes.
        tasks: results of the network, in the order of the tasks.
        baseline: results of :class:`.baseline.ConstantDepth`, one per number of views.
        scores: of every scene, by task; not part of the JSON.
    """

    scenes: int
    size: tuple[int, int]
    seed: int | None
    tasks: tuple[TaskResult, ...]
    baseline: tuple[TaskResult, ...]
    scores: Mapping[str, Sequence[SceneScore]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return ``{"scenes", "size", "seed", "results": {task: ...}, "baseline": {number of views: ...}}``."""
        return {
            "scenes": self.scenes,
            "size": "{}x{}".format(*self.size),
            "seed": self.seed,
            "results": {result.name: result.to_json() for result in self.tasks},
            "baseline": {str(result.views): result.to_json() for result in self.baseline},
        }


def evaluate(
    predictor: Predictor,
    scenes: int | Sequence[EvaluationScene] = DEFAULT_SCENES,
    *,
    tasks: Iterable[str] | None = None,
    seed: int = HELD_OUT_SEED,
    size: tuple[int, int] = DEFAULT_SIZE,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a network as geometry, beside a constant-depth baseline.

    Every scene is rendered once and serves all tasks; a thread renders ahead while the network runs. Predictions are
    not masked and not in reduced precision; errors are counted on every pixel with true depth.

    Args:
        predictor: see :class:`Predictor`.
        scenes: how many scenes to render, or scenes of your own, such as those of :func:`.rgbd.load_rgbd`. A scene with
            fewer views than a task needs does not count for that task.
        tasks: names of :data:`.tasks.TASKS`; by default all of them, as far as the scenes have enough views.
        seed: of the first rendered scene; the others have the numbers after it.
        size: width and height of rendered scenes, multiples of 14.
        progress: see :data:`Progress`.

    Raises:
        InputError: an unknown task, no scene, one that cannot be right, or none with enough views for a named task.
        ParityError: a prediction is not finite.
        ProfileError, BackendError: as ``predictor.infer``.
    """
    chosen = select_tasks(tasks)
    if isinstance(scenes, int):
        _check_rendering(scenes, seed, size)
        source, total = rendered_scenes(scenes, seed, size, max(task.views for task in chosen)), scenes
    else:
        chosen = _served(chosen, scenes, named=tasks is not None)
        source, total = iter(scenes), len(scenes)
    constant = ConstantDepth(predictor.data_norm_type)
    found: dict[str, list[SceneScore]] = {task.name: [] for task in chosen}
    plain: dict[int, list[SceneScore]] = {views: [] for views in sorted({task.views for task in chosen})}
    width, height = size
    for index, scene in enumerate(source):
        truth = Truth.of(scene, f"scene {index}")
        count, height, width = truth.depth_z.shape
        counted = set()  # the baseline does not look at what is given: once per number of views is enough
        for position, task in enumerate(chosen):
            if task.views <= count and truth.valid[: task.views].any():
                where, part = f"scene {index}, {task.name}", truth.first(task.views)
                views = task_views(task, scene, predictor.data_norm_type)
                answer = predictor.infer(views, use_amp=False, apply_mask=False)
                found[task.name].append(score(answer, part, where))
                if task.views not in counted:
                    counted.add(task.views)
                    plain[task.views].append(score(constant.infer(views, apply_mask=False), part, where))
            if progress is not None:
                progress(index * len(chosen) + position + 1, total * len(chosen), task.name)
    return Evaluation(
        scenes=total,
        size=(width, height),
        seed=seed if isinstance(scenes, int) else None,
        tasks=tuple(
            TaskResult(t.name, t.views, t.inputs, len(found[t.name]), aggregate(found[t.name])) for t in chosen
        ),
        baseline=tuple(
            TaskResult("constant depth", views, "nothing", len(scores), aggregate(scores))
            for views, scores in plain.items()
        ),
        scores=found,
    )


def rendered_scenes(count: int, seed: int, size: tuple[int, int], views: int) -> Iterator[EvaluationScene]:
    """Yield the scenes ``seed`` to ``seed + count - 1``, rendered in order and ahead of their use, in a thread."""
    width, height = size
    pool = ThreadPoolExecutor(1)
    try:
        waiting: deque[Future[EvaluationScene]] = deque()
        for number in range(seed, seed + count):
            waiting.append(pool.submit(render_scene, number, views=views, width=width, height=height))
            if len(waiting) > _RENDERED_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def check_size(size: tuple[int, int]) -> None:
    """Refuse a width and height that no network takes (:class:`ImageSizeError`)."""
    near = rounded_to_patches(*size)
    if tuple(size) != near:
        raise ImageSizeError(
            f"size {size[0]}x{size[1]} is not a multiple of {PATCH_SIZE}; the nearest is {near[0]}x{near[1]}"
        )


def _check_rendering(scenes: int, seed: int, size: tuple[int, int]) -> None:
    if isinstance(scenes, bool) or scenes < 1:
        raise InputError(f"scenes is {scenes}; give at least 1")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    check_size(size)
    warn_of_training_seeds(seed)


def warn_of_training_seeds(seed: int) -> None:
    """Warn where a network may have seen what is rendered from ``seed`` on."""
    if seed < HELD_OUT_SEED:
        warn(
            f"scenes with seeds below {HELD_OUT_SEED} are for training, so these figures may flatter a network that "
            "has seen them"
        )


def _served(tasks: list[Task], scenes: Sequence[EvaluationScene], named: bool) -> list[Task]:
    """Return the tasks that some scene has enough views for.

    Raises:
        InputError: no scene; or one of the tasks is not served although it was named.
    """
    if not scenes:
        raise InputError("there is no scene; give at least one")
    most = max(len(scene.images) for scene in scenes)
    served = [task for task in tasks if task.views <= most]
    if named and len(served) < len(tasks):
        task = next(task for task in tasks if task.views > most)
        raise InputError(f"{task.name} needs {task.views} views, and the scenes have at most {most}; leave it out")
    return served
