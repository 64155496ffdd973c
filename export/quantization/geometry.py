"""How much of a network's accuracy as geometry is left when it rounds, over rendered scenes with exact geometry."""

from __future__ import annotations

from collections.abc import Iterator

from mapengine.calibration.evaluation import METRICS, evaluate
from mapengine.calibration.evaluation.tasks import HELD_OUT_SEED
from mapengine.calibration.scenes import RenderedScene, render_scene
from mapengine.runtime.errors import InputError

from ..reference import MapAnything

TASKS = ("image-only-1", "image-only-4", "depth", "mixed", "all")
"""Of :data:`mapengine.calibration.evaluation.TASKS`: one and more views, and every kind of input."""
FIRST_SEED = 600_000
"""Of the scenes: none that is calibrated with, and none that an evaluation holds out."""
LEAST_SHARE = 0.02
"""A share (of inliers, or under a curve) that is smaller in float32 already says nothing of rounding."""

_VIEWS = 4
_SHARES = frozenset(metric.key for metric in METRICS if metric.form.endswith("%"))


class GeometryQuality:
    """The least part of a metric that is kept, over all metrics of all tasks; at most 1.

    Of a share (inliers, area under a recall curve, overlap of masks) ``found / float32`` is kept, of an error
    ``float32 / found``. Shares below :data:`LEAST_SHARE` and errors of 0 in float32 are left out.

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
        self._wanted = dict(self._measure(reference))
        self.kept: dict[tuple[str, str], float] = {}

    def __call__(self, model: MapAnything) -> float:
        self.kept = {}
        for (task, key), found in self._measure(model):
            wanted = self._wanted[task, key]
            if key in _SHARES and wanted >= LEAST_SHARE:
                self.kept[task, key] = found / wanted
            elif key not in _SHARES and wanted > 0:
                self.kept[task, key] = wanted / max(found, 1e-30)
        return min([1.0, *self.kept.values()])

    def _measure(self, model: MapAnything) -> Iterator[tuple[tuple[str, str], float]]:
        scenes: list[RenderedScene] = self._scenes
        for result in evaluate(model, scenes, tasks=TASKS).tasks:
            for key, value in result.metrics.items():
                if value is not None:
                    yield (result.name, key), value


def describe(scenes: int, size: tuple[int, int]) -> str:
    """What :class:`GeometryQuality` is, in words."""
    return f"geometry over the rendered scenes {FIRST_SEED} to {FIRST_SEED + scenes - 1}, {size[0]}x{size[1]}"
