"""Runs the four stages of a bundle over prepared views, in chunks, and assembles the raw predictions.

The numbers do not depend on the chunk sizes beyond float32 rounding. Arrays are float32 and view-major: entry
``v * B + b`` is view ``v`` of sample ``b``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .backends import StageRunner
from .inference import Progress
from .postprocess import forward_outputs
from .views import MODALITIES, PreparedViews, ViewGeometry

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ChunkSizes:
    """Views per call of each chunked stage.

    The defaults are for a CPU: one view fills its caches, more only cost memory (``docs/performance.md``).
    """

    image_encoder: int = 1
    geometry_encoder: int = 1
    dense_head: int = 1

    def to_json(self) -> dict[str, int]:
        """Views per call, keyed by stage."""
        return asdict(self)


class StagePipeline(Protocol):
    """The loaded stages of a bundle. Threads may share one."""

    chunks: ChunkSizes
    """Views per call of each stage, where a call does not say otherwise."""

    def forward(
        self, prepared: PreparedViews, chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[dict[str, Array]]:
        """See :meth:`Pipeline.forward`."""
        ...


class Pipeline:
    """The loaded stages, keyed by name. Holds no state of a call, so threads may share it."""

    def __init__(self, stages: Mapping[str, StageRunner], chunks: ChunkSizes | None = None) -> None:
        self._stages = stages
        self.chunks = chunks or ChunkSizes()

    def forward(
        self, prepared: PreparedViews, chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[dict[str, Array]]:
        """Predictions per view, metric-scaled and unmasked.

        Args:
            prepared: V views of B samples.
            chunks: overrides the sizes that the pipeline was made with.
            progress: see :data:`.inference.Progress`.

        Returns:
            V dictionaries; keys and shapes as in :func:`.postprocess.forward_outputs`.
        """
        sizes = chunks or self.chunks
        report = progress or (lambda stage, done, total: None)
        views, batch = len(prepared.images), prepared.batch
        features, extra = self._encode_images(prepared, sizes.image_encoder, report)
        self._add_geometry(features, prepared, sizes.geometry_encoder, report)
        per_sample = [self._aggregate(features, extra, sample, batch) for sample in range(batch)]
        del features, extra
        report("aggregator", views, views)
        scale = np.stack([np.asarray(outputs["metric_scaling_factor"]).reshape(1) for outputs in per_sample])
        predictions: list[dict[str, Array]] = []
        for raw in self._decode(per_sample, views, sizes.dense_head, report):
            predictions.append(forward_outputs(**raw, scale=scale))
        return predictions

    def _encode_images(self, prepared: PreparedViews, chunk: int, report: Progress) -> tuple[Array, Array | None]:
        views, batch = len(prepared.images), prepared.batch
        features: Array | None = None
        extra: Array | None = None
        for start, stop in chunk_ranges(0, views, chunk):
            images = np.concatenate(prepared.images[start:stop]).astype(np.float32, copy=False)
            outputs = self._stages["image_encoder"].run({"images": images})
            features = _store(features, outputs["patch_features"], views * batch, start * batch)
            if "extra_tokens" in outputs:
                extra = _store(extra, outputs["extra_tokens"], views * batch, start * batch)
            report("image_encoder", stop, views)
        assert features is not None
        return features, extra

    def _add_geometry(self, features: Array, prepared: PreparedViews, chunk: int, report: Progress) -> None:
        """Add geometry features in place; views without geometry cost nothing."""
        given = [(i, g) for i, g in enumerate(prepared.geometry) if g is not None and g.has_any]
        batch = prepared.batch
        for start, stop in chunk_ranges(0, len(given), chunk):
            part = given[start:stop]
            inputs = geometry_inputs([g for _, g in part], batch, prepared.height, prepared.width)
            added = self._stages["geometry_encoder"].run(inputs)["geometry_features"]
            for position, (view, _) in enumerate(part):
                features[view * batch : (view + 1) * batch] += added[position * batch : (position + 1) * batch]
            report("geometry_encoder", stop, len(given))

    def _aggregate(self, features: Array, extra: Array | None, sample: int, batch: int) -> dict[str, Array]:
        inputs = {"features": np.ascontiguousarray(features[sample::batch])}
        if extra is not None:
            inputs["extra_tokens"] = np.ascontiguousarray(extra[sample::batch])
        return self._stages["aggregator"].run(inputs)

    def _decode(
        self, per_sample: list[dict[str, Array]], views: int, chunk: int, report: Progress
    ) -> Iterator[dict[str, Array]]:
        """Raw head outputs of one view after the other, each with leading dimension B."""
        names = [f"view_features_{i}" for i in range(4)]
        for start, stop in chunk_ranges(0, views, chunk):
            inputs = {}
            for name in names:
                stacked = np.stack([outputs[name][start:stop] for outputs in per_sample], axis=1)  # (n, B, h, w, C)
                inputs[name] = stacked.reshape(-1, *stacked.shape[2:])
            outputs = self._stages["dense_head"].run(inputs)
            batch = len(per_sample)
            for offset in range(0, (stop - start) * batch, batch):
                yield {name: value[offset : offset + batch] for name, value in outputs.items()}
            report("dense_head", stop, views)


def geometry_inputs(
    views: Sequence[ViewGeometry], batch: int, height: int, width: int, dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Inputs of the geometry encoder for a chunk of views, view-major.

    What a view lacks is zero and switched off by its flag.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "ray_directions": (height, width, 3),
        "depth": (height, width, 1),
        "depth_log_scale": (1,),
        "rotation": (4,),
        "translation": (3,),
        "translation_log_scale": (1,),
    }
    inputs: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        stacked = np.zeros((len(views), batch, *shape), dtype)
        for i, view in enumerate(views):
            value = getattr(view, name)
            if value is not None:
                stacked[i] = value
        inputs[name] = stacked.reshape(-1, *shape)
    flags = np.stack([view.flags for view in views]).astype(dtype)
    inputs["modality_flags"] = flags.reshape(-1, len(MODALITIES))
    return inputs


def chunk_ranges(start: int, stop: int, chunk: int) -> list[tuple[int, int]]:
    """Stretches of at most ``chunk`` from ``start`` to ``stop``, as (start, stop)."""
    return [(first, min(first + chunk, stop)) for first in range(start, stop, chunk)]


def _store(buffer: Array | None, part: Array, total: int, start: int) -> Array:
    """Copy ``part`` into a buffer of ``total`` entries; the part itself when it is everything."""
    if buffer is None:
        if len(part) == total:
            return part
        buffer = np.empty((total, *part.shape[1:]), np.float32)
    buffer[start : start + len(part)] = part
    return buffer
