"""How much of a network's accuracy as geometry is left when it rounds, over rendered scenes with exact geometry."""

from __future__ import annotations

from mapengine.calibration.evaluation import TaskMetrics, evaluate, kept_parts
from mapengine.calibration.evaluation.tasks import HELD_OUT_SEED
from mapengine.calibration.scenes import RenderedScene, render_scene
from mapengine.runtime.errors import InputError

from ..reference import MapAnything

TASKS = ("image-only-1", "image-only-4", "depth", "mixed", "all")
"""Of :data:`mapengine.calibration.evaluation.TASKS`: one and more views, and every kind of input."""
FIRST_SEED = 600_000
"""Of the scenes: none that is calibrated with, and none that an evaluation holds out."""

_VIEWS = 4


class GeometryQuality:
    """The least part of a metric that is kept, over all metrics of all tasks; at most 1.

    Parts are those of :func:`mapengine.calibration.evaluation.kept_parts`.

    Attributes:
        description: for the calibration's file.
        kept: part by task and metric, of the last measurement.
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
        self._wanted = self._measure(reference)
        self.kept: dict[tuple[str, str], float] = {}

    def __call__(self, model: MapAnything) -> float:
        self.kept = kept_parts(self._measure(model), self._wanted)
        return min([1.0, *self.kept.values()])

    def _measure(self, model: MapAnything) -> TaskMetrics:
        scenes: list[RenderedScene] = self._scenes
        return {result.name: result.metrics for result in evaluate(model, scenes, tasks=TASKS).tasks}


def describe(scenes: int, size: tuple[int, int]) -> str:
    """What :class:`GeometryQuality` is, in words."""
    return f"geometry over the rendered scenes {FIRST_SEED} to {FIRST_SEED + scenes - 1}, {size[0]}x{size[1]}"
