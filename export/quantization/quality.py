"""How good a network is that rounds, against itself in float32: by the outputs of its stages, or as geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mapengine.calibration.data.cases import Views
from mapengine.calibration.evaluation import SceneScore, TaskMetrics, evaluate, retention, retention_errors
from mapengine.calibration.evaluation.metrics import ray_degrees
from mapengine.calibration.evaluation.tasks import HELD_OUT_SEED, select_tasks, task_views
from mapengine.calibration.scenes import RenderedScene, render_scene
from mapengine.runtime.checks.parity import Predictions, measure_parity
from mapengine.runtime.errors import InputError

from ..model.reference import MapAnything
from .observe import run_trunk

TASKS = ("image-only-1", "image-only-4", "depth", "mixed", "all")
"""Of :data:`mapengine.calibration.evaluation.TASKS`: one and more views, and every kind of input."""
FIRST_SEED = 600_000
"""Of the scenes: none that is calibrated with, and none that an evaluation holds out."""
_VIEWS = 4
_RESAMPLES = 100
_COMPARED = 6
"""Scenes that layers are compared on: each costs as many runs of the network as there are tasks, for every layer."""


class Quality(Protocol):
    """Measures a network that may round: 1 is as good as float32, 0.99 keeps 99 % of it.

    Attributes:
        description: what is measured, for the calibration's file.
    """

    description: str

    def __call__(self, model: MapAnything) -> float: ...

    def loss(self, model: MapAnything) -> float:
        """Return how far the network is from float32, 0 for not at all: what layers are compared by. It has to resolve
        what a single layer costs; its unit does not matter."""
        ...


class OutputQuality:
    """One minus the relative error of the outputs of the stages against float32, over some cases.

    The error of an output is the root mean square of its difference over that of its values, so that 0.99 is a
    signal-to-noise ratio of 40 dB. The output that loses most counts.

    Attributes:
        description: for the calibration's file.
        decibels: signal-to-noise ratio by output, of the last measurement.
    """

    description = "outputs of the stages over the calibration data"

    def __init__(self, reference: MapAnything, cases: Mapping[str, Views]) -> None:
        self._cases = dict(cases)
        self._wanted = {name: run_trunk(reference, views) for name, views in self._cases.items()}
        self.decibels: dict[str, float] = {}

    def __call__(self, model: MapAnything) -> float:
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for name, views in self._cases.items():
            for output, found in run_trunk(model, views).items():
                wanted = self._wanted[name][output].astype(np.float64)
                noise[output] = noise.get(output, 0.0) + float(np.square(found - wanted).sum())
                signal[output] = signal.get(output, 0.0) + float(np.square(wanted).sum())
        ratios = {output: noise[output] / max(signal[output], 1e-30) for output in noise}
        self.decibels = {output: -10 * float(np.log10(max(ratio, 1e-30))) for output, ratio in ratios.items()}
        return 1.0 - float(np.sqrt(max(ratios.values())))

    def loss(self, model: MapAnything) -> float:
        """See :class:`Quality`."""
        return 1.0 - self(model)


class GeometryQuality:
    """The least part of a metric that is kept, over all metrics of all tasks, as far as the scenes can tell; at most 1.

    Parts are those of :func:`mapengine.calibration.evaluation.retention`. The best of a hundred parts and the worst
    of them differ by chance as well, most of all recalls of a few pairs of views. So each part counts with two of its
    standard errors added (:func:`mapengine.calibration.evaluation.retention_errors`): what is below a target then is so
    beyond chance. The more scenes, the stricter it is.

    Attributes:
        description: for the calibration's file.
        retention: part by task and metric, of the last measurement.
    """

    def __init__(self, reference: MapAnything, scenes: int, size: tuple[int, int] = (140, 112)) -> None:
        """Render the scenes and judge the float32 network on them.

        Args:
            reference: in float32.
            scenes: how many.
            size: width and height in pixels.

        Raises:
            InputError: a number of scenes or a size that is not rendered.
        """
        if not 1 <= scenes <= HELD_OUT_SEED - FIRST_SEED:
            raise InputError(f"{scenes} scenes are none to measure geometry on; give at least 1")
        self.description = describe(scenes, size)
        self._scenes = [render_scene(FIRST_SEED + index, _VIEWS, *size) for index in range(scenes)]
        self._wanted, self._scores = self._measure(reference)
        self._predicted = self._predict(reference)
        self.retention: dict[tuple[str, str], float] = {}

    def __call__(self, model: MapAnything) -> float:
        found, scores = self._measure(model)
        self.retention = retention(found, self._wanted)
        errors = retention_errors(scores, self._scores, _RESAMPLES)
        return min([1.0, *(part + 2 * errors[name] for name, part in self.retention.items())])

    def loss(self, model: MapAnything) -> float:
        """Return how far predictions move, over how far float32's are from the truth: the largest such ratio of any
        task and quantity (metric scale, depth, rays, rotation), by root mean squares over a few scenes.

        The metrics themselves cannot tell layers apart: a recall of a few scenes jumps, and an error that moves both
        ways hardly changes its mean.
        """
        ratios = [0.0]
        for task, scenes in self._predict(model).items():
            moved = [_moved(*pair) for pair in zip(scenes, self._predicted[task], strict=True)]
            for key in moved[0]:
                off = self._wanted[task][key]
                if off:
                    ratios.append(float(np.sqrt(np.mean([entry[key] ** 2 for entry in moved]))) / off)
        return max(ratios)

    def _predict(self, model: MapAnything) -> dict[str, list[Predictions]]:
        scenes: list[RenderedScene] = self._scenes[:_COMPARED]
        return {
            task.name: [model.predict(task_views(task, s, model.data_norm_type), use_amp=False) for s in scenes]
            for task in select_tasks(TASKS)
        }

    def _measure(self, model: MapAnything) -> tuple[TaskMetrics, Mapping[str, Sequence[SceneScore]]]:
        scenes: list[RenderedScene] = self._scenes
        evaluation = evaluate(model, scenes, tasks=TASKS)
        return {result.name: result.metrics for result in evaluation.tasks}, evaluation.scores


def _moved(found: Predictions, wanted: Predictions) -> dict[str, float]:
    """Return differences of two predictions of the same views, named as the metrics of the errors that they add to."""
    geometry = measure_parity({"": found}, {"": wanted}, "").geometry

    def rays(views: Sequence[Mapping[str, Any]]) -> Any:
        return np.stack([view["ray_directions"] for view in views])

    return {
        "metric_scale_abs_rel": geometry.metric_scale,
        "depth_abs_rel": geometry.depth_abs_rel,
        "ray_degrees": ray_degrees(rays(found), rays(wanted)),
        "rotation_degrees": geometry.rotation_degrees,
    }


def describe(scenes: int, size: tuple[int, int]) -> str:
    """Return what :class:`GeometryQuality` is, in words."""
    last = FIRST_SEED + scenes - 1
    return f"geometry, beyond chance, over the rendered scenes {FIRST_SEED} to {last}, {size[0]}x{size[1]}"
