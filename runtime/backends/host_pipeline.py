"""Runs the four stages of a bundle over prepared views, in chunks, and assembles the raw predictions.

The numbers do not depend on the chunk sizes beyond float32 rounding. Arrays are float32 and view-major: entry
``v * B + b`` is view ``v`` of sample ``b``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.stages import ADDED_STAGES, StageSpec
from ..bundle.store import Bundle
from ..inputs.encoded import ImageFeatures
from ..inputs.prepared import MODALITIES, PreparedViews, ViewGeometry
from ..options import Progress
from .checked_stage import CheckedStage
from .contract import Array, ChunkSizes, StagePipeline, StageRunner


class Pipeline(StagePipeline):
    """The loaded stages, keyed by name. Holds no state of a call, so threads may share it."""

    def __init__(self, stages: Mapping[str, StageRunner], chunks: ChunkSizes | None = None) -> None:
        self._stages = stages
        self.chunks = chunks or ChunkSizes()

    def stream(
        self,
        prepared: PreparedViews,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
        heads: Collection[str] | None = None,
    ) -> Generator[dict[str, Array], None, None]:
        """See :meth:`StagePipeline.stream`."""
        sizes = chunks or self.chunks
        report = progress or (lambda stage, done, total: None)
        views, batch = len(prepared.views), prepared.batch
        features, extra = self._encode_images(prepared, sizes.image_encoder, report)
        self._add_geometry(features, prepared, sizes.geometry_encoder, report)
        per_sample = [self._aggregate(features, extra, sample, batch) for sample in range(batch)]
        del features, extra
        report("aggregator", views, views)
        scale = np.stack([np.asarray(outputs["metric_scaling_factor"]).reshape(1) for outputs in per_sample])
        for raw in self._decode(per_sample, views, sizes.dense_head, report):
            yield {name: value for name, value in {**raw, "scale": scale}.items() if heads is None or name in heads}

    def encode(
        self, images: Sequence[NDArray[Any]], chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[ImageFeatures]:
        """See :meth:`StagePipeline.encode`."""
        chunk = (chunks or self.chunks).image_encoder
        report = progress or (lambda stage, done, total: None)
        batch = len(images[0])
        result = []
        for start, stop in chunk_ranges(0, len(images), chunk):
            outputs = self._run_encoder(images[start:stop])
            for position in range(0, (stop - start) * batch, batch):
                # Copies: a part would keep the chunk alive.
                parts = {name: value[position : position + batch].copy() for name, value in outputs.items()}
                result.append(ImageFeatures(parts["patch_features"], parts.get("extra_tokens")))
            report("image_encoder", stop, len(images))
        return result

    def _run_encoder(self, images: Sequence[NDArray[Any]]) -> dict[str, Array]:
        inputs = np.concatenate(images).astype(np.float32, copy=False)
        return self._stages["image_encoder"].run({"images": inputs})

    def _encode_images(self, prepared: PreparedViews, chunk: int, report: Progress) -> tuple[Array, Array | None]:
        """Return the features of all views, view-major; only those that are not known are computed. An image is taken
        when it is encoded: others may still be read meanwhile."""
        images, known = prepared.images, prepared.features
        views, batch = len(images), prepared.batch
        missing = [view for view, features in enumerate(known) if features is None]
        buffers: dict[str, Array] = {}

        def put(view: int, name: str, part: Array) -> None:
            if name not in buffers:
                buffers[name] = np.empty((views * batch, *part.shape[1:]), np.float32)
            buffers[name][view * batch : (view + 1) * batch] = part

        for view, features in enumerate(known):
            if features is not None:
                put(view, "patch_features", features.patches)
                if features.extra is not None:
                    put(view, "extra_tokens", features.extra)
        for start, stop in chunk_ranges(0, len(missing), chunk):
            part = missing[start:stop]
            outputs = self._run_encoder([images[view] for view in part])
            for position, view in enumerate(part):
                for name, value in outputs.items():
                    put(view, name, value[position * batch : (position + 1) * batch])
            report("image_encoder", stop, len(missing))
        return buffers["patch_features"], buffers.get("extra_tokens")

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
        """Yield the raw head outputs of one view after the other, each with leading dimension B."""
        names = [f"view_features_{i}" for i in range(4)]
        for start, stop in chunk_ranges(0, views, chunk):
            inputs = {}
            for name in names:
                maps = [outputs[name][start:stop] for outputs in per_sample]
                if len(maps) == 1:  # as they are, without a copy
                    inputs[name] = maps[0]
                else:
                    stacked = np.stack(maps, axis=1)  # (n, B, h, w, C)
                    inputs[name] = stacked.reshape(-1, *stacked.shape[2:])
            outputs = self._stages["dense_head"].run(inputs)
            batch = len(per_sample)
            for offset in range(0, (stop - start) * batch, batch):
                yield {name: value[offset : offset + batch] for name, value in outputs.items()}
            report("dense_head", stop, views)


def geometry_inputs(
    views: Sequence[ViewGeometry], batch: int, height: int, width: int, dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Return the inputs of the geometry encoder for a chunk of views, view-major.

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
    """Divide ``start`` to ``stop`` into ranges of at most ``chunk``, as (start, stop)."""
    return [(first, min(first + chunk, stop)) for first in range(start, stop, chunk)]


class HostBackend(ABC):
    """A backend whose stages take and give NumPy arrays."""

    name: str
    version: str
    device: str
    compute_capability: str | None = None
    recovers = False
    """Whether a stage works again by itself when there is memory again."""

    @abstractmethod
    def load_stage(self, name: str, path: Path, arithmetic: str = "fp32") -> StageRunner:
        """Load a checked stage file.

        Args:
            name: of the stage.
            path: its file.
            arithmetic: of the bundle (:attr:`..bundle.manifest.Manifest.arithmetic`), see :data:`BF16_STAGES`.

        Raises:
            BackendError: the library refuses the file.
        """

    def renew(self) -> None:
        """Forget what the library shares between stages, after one has failed."""
        return

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> StagePipeline:
        """See :class:`Backend`."""
        # What is around the network stays in NumPy on a processor: the same values in a fifth of the time that the
        # stage of post-processing takes (docs/results/cpu-choices.md), because only what is near a depth jump gets
        # normals, and in a third of that of normalising images. Decided here alone.
        stages = {
            name: CheckedStage(
                self.name,
                name,
                spec,
                partial(self._load_checked, bundle, name),
                room=self._room(spec),
                failed=self.renew,
            )
            for name, spec in bundle.manifest.stages.items()
            if name not in ADDED_STAGES
        }
        return Pipeline(stages, chunks)

    def _load_checked(self, bundle: Bundle, name: str) -> StageRunner:
        with bundle.unchanged():  # when a stage is loaded again, there may be another bundle
            return self.load_stage(name, bundle.stage_path(name), bundle.manifest.arithmetic)

    def _room(self, spec: StageSpec) -> int | None:
        """Return the bytes that loading a stage takes, generously: its files are mapped, and its weights packed."""
        return None if self.recovers else 2 * sum(record.bytes for record in spec.files()) + 64 * 2**20
