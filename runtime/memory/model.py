"""How many views fit into memory: a model of a bundle's memory on this machine, measured by a few small calls.

Peak memory of a stage is linear in what it works on: a constant (libraries, weights), a part per patch of one view (the
workspace of a chunk) and a part per patch of all views (features, maps, images; attention in blocks). Attention that is
written as plain products keeps all its weights, which is quadratic, and less so with fewer keys; a bundle says which
one it has. The coefficients
are fitted to measured calls and kept in a readable file in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ..bundle.requests import PATCH_SIZE
from ..errors import MemoryLimitError
from ..system.sizes import gigabytes
from ..typed_json.codec import Fail
from ..typed_json.fields import ADDED, Bounds, Count, EveryKey, Measure, OneOf, Positive
from ..writing.cached_records import cache_path, keep_record, kept_record

STAGES = ("load", "image_encoder", "geometry_encoder", "aggregator", "dense_head")
"""Loading, and the stages of a call."""
_VERSION = 1
_ROOM = "memory"
KINDS = ((False, False), (False, True), (True, False), (True, True))
"""Whether views bring geometry, and whether all predictions are kept."""
_MOST_VIEWS = 2**16
_LARGEST = 2**56
"""More bytes than any machine has."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One measured call: its shape, whether views brought geometry, whether all predictions were kept, and the peak
    bytes by stage."""

    views: Positive
    width: Positive
    height: Positive
    geometry: bool
    collect: bool
    peaks: Annotated[Mapping[Annotated[str, OneOf(STAGES)], Count], EveryKey()]

    def numbers(self) -> Iterator[int]:
        """Yield the numbers that the fit divides by."""
        yield from (self.views, self.width, self.height)
        yield from (peak for stage, peak in self.peaks.items() if self.geometry or stage != "geometry_encoder")


@dataclass(frozen=True)
class MemoryModel:
    """Memory of one bundle on one backend and machine.

    Attributes:
        key: what was measured: digest of the bundle, backend, its version, device.
        attention: form of the attention in the bundle.
        samples: the measured calls.
        key_share: share of the keys that the layer over all views with the most of them keeps.
    """

    key: Mapping[str, str]
    attention: str
    samples: tuple[Sample, ...]
    key_share: Annotated[Measure, ADDED] = 1.0
    version: Annotated[int, Bounds(_VERSION, _VERSION)] = _VERSION

    def peaks(
        self, views: int, width: int, height: int, *, geometry: bool = True, collect: bool = True
    ) -> dict[str, int]:
        """Return the peak bytes of resident memory by stage.

        Args:
            views, width, height: of the call.
            geometry: whether views bring more than images.
            collect: predictions of all views are kept, as ``infer`` does; else one at a time (``infer_stream``).
        """
        result = {}
        for stage in STAGES:
            if stage == "geometry_encoder" and not geometry:
                continue
            fitted = [s for s in self.samples if (s.geometry, s.collect) == (geometry, collect)]
            rows = np.array([self._features(stage, s.views, s.width, s.height) for s in fitted])
            found = np.array([s.peaks[stage] for s in fitted], float)
            wanted = np.array(self._features(stage, views, width, height))
            result[stage] = int(wanted @ _fit(rows, found))
        return result

    def peak(self, *shape: int, **options: bool) -> tuple[str, int]:
        """Return the stage that takes most, and its bytes; arguments as :meth:`peaks`."""
        found = self.peaks(*shape, **options)
        stage = max(found, key=found.__getitem__)
        return stage, found[stage]

    def most_views(self, limit: int, width: int, height: int, **options: bool) -> int:
        """Return how many views fit into ``limit`` bytes; 0 if not even one does."""
        low, high = 0, 1
        while high < _MOST_VIEWS and self.peak(high, width, height, **options)[1] <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.peak(middle, width, height, **options)[1] <= limit
            low, high = (middle, high) if fits else (low, middle)
        return low

    def check(self, limit: int, views: int, width: int, height: int, **options: bool) -> None:
        """Refuse a call that does not fit.

        Raises:
            MemoryLimitError: with the number of views that would.
        """
        stage, needed = self.peak(views, width, height, **options)
        if needed <= limit:
            return
        most = self.most_views(limit, width, height, **options)
        fix = f"give at most {most}" if most else "not even one view fits, so use a smaller size"
        raise MemoryLimitError(
            f"{views} views of {width}x{height} need {gigabytes(needed)} of memory ({stage.replace('_', ' ')}), and "
            f"{gigabytes(limit)} are there; {fix}, or allow more memory"
        )

    def _features(self, stage: str, views: int, width: int, height: int) -> list[float]:
        patches = width * height / PATCH_SIZE**2
        if stage == "load":
            return [1.0, 0.0, 0.0, 0.0]
        products = 0.0
        if self.attention == "matmul":
            keys = patches + (views - 1) * patches * self.key_share  # the reference view keeps all
            products = {"image_encoder": patches**2, "aggregator": views * patches * keys}.get(stage, 0.0)
        return [1.0, views * patches, patches, products]

    def check_fields(self, fail: Fail) -> None:
        """Refuse samples that a model cannot be fitted to."""
        if len({(sample.geometry, sample.collect) for sample in self.samples}) < len(KINDS):
            fail("samples", "must have calls of every kind")
        if any(not 0 < number <= _LARGEST for sample in self.samples for number in sample.numbers()):
            fail("samples", "must have sizes and peaks that a machine can have")
        for geometry, collect in KINDS:
            try:
                peaks = self.peaks(1, PATCH_SIZE, PATCH_SIZE, geometry=geometry, collect=collect).values()
            except (np.linalg.LinAlgError, ArithmeticError, ValueError):
                peaks = ()  # type: ignore[assignment]
            if not peaks or min(peaks) <= 0:
                fail("samples", "cannot be fitted")


def _fit(rows: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fit coefficients that are not negative, by least squares of the relative error; columns that do not vary are left
    out."""
    used = [0, *(c for c in range(1, rows.shape[1]) if np.ptp(rows[:, c]) > 0)]
    while True:
        scaled = rows[:, used] / found[:, None]
        size = np.abs(scaled).max(axis=0)
        solution = np.linalg.lstsq(scaled / size, np.ones(len(found)), rcond=None)[0] / size
        negative = [c for c, value in zip(used, solution, strict=True) if value < 0 and c]
        if not negative:
            break
        used = [c for c in used if c not in negative[:1]]
    coefficients = np.zeros(rows.shape[1])
    coefficients[used] = solution
    return coefficients


def remember_model(model: MemoryModel) -> None:
    """Keep the model in the cache folder. Never raises: without a cache the next plan measures again."""
    keep_record(_ROOM, model)


def known_model(key: Mapping[str, str]) -> MemoryModel | None:
    """Return the model that was measured before; None if there is none, or its file is damaged. Never raises."""
    return kept_record(_ROOM, MemoryModel, key)


def model_path(key: Mapping[str, str]) -> Path | None:
    """Return where the model of ``key`` is kept; None without a cache folder."""
    return cache_path(_ROOM, key)


def table(model: MemoryModel, requests: Sequence[int], width: int, height: int, **options: bool) -> list[list[str]]:
    """Return rows of stage by number of views, and the peak."""
    peaks = [model.peaks(views, width, height, **options) for views in requests]
    rows = [[stage.replace("_", " "), *(gigabytes(p[stage]) for p in peaks)] for stage in STAGES if stage in peaks[0]]
    return [*rows, ["peak", *(gigabytes(max(p.values())) for p in peaks)]]
