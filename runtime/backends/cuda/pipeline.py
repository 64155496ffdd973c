"""Runs the stages of a bundle on a GPU: the counterpart of :class:`..host_pipeline.Pipeline`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle.requests import PATCH_SIZE
from ...bundle.stages import NORMALIZER, SCENE, tensor_shape
from ...errors import BackendError
from ...inputs.encoded import ImageFeatures
from ...inputs.normalization import denormalize_image
from ...inputs.prepared import PreparedViews, ViewGeometry
from ...options import OUTPUTS, InferOptions, Progress
from ...postprocessing.predictions import FORWARD_OUTPUTS
from ...postprocessing.scene_stage import PASSED_ON, PLAIN_IMAGE, present_outputs
from ...system.sequences import Each
from ..contract import ChunkSizes, StagePipeline
from .call import SCALE, RequestShape, SceneCall, Work
from .device_array import DeviceArray, Shape, allocate, to_device
from .driver import Device, OutOfMemory, Stream
from .shape_context import ShapeContext
from .stage import DeviceStage
from .timing import GpuClock

_MOST_IDLE = 4
"""Contexts that are kept for the next call: a few shapes are usual, and each holds the memory of its largest stage."""

_UNMASKED = InferOptions(apply_mask=False)


class Caches(Protocol):
    """Kernels that a library compiled for this GPU, on disk for the next process."""

    def save(self) -> None:
        """Write what is new. Never raises."""
        ...


class DevicePipeline(StagePipeline):
    """The stages on one GPU. Threads may share it: a call takes a context that nobody uses, or makes one."""

    def __init__(
        self,
        device: Device,
        stages: Mapping[str, DeviceStage],
        chunks: ChunkSizes,
        caches: Caches | None = None,
        stream: Stream | None = None,
    ) -> None:
        """Use loaded stages.

        Args:
            stages: keyed by name.
            chunks: the most views that their optimization profiles take at once.
            caches: of kernels that the library compiles.
            stream: that the stages always run in; None where any will do.
        """
        self.chunks = chunks
        self._device = device
        self._contexts = _ShapeContexts(device, stages, caches, stream)
        self._stages = stages
        self._normalizes = NORMALIZER in stages
        # Also at the end of the process, as long as the libraries still work.
        self.close = weakref.finalize(self, self._contexts.close)
        """Free the GPU's memory, after the last call. It happens by itself when the object goes away."""

    def stream(
        self,
        prepared: PreparedViews,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
        heads: Collection[str] | None = None,
    ) -> Generator[dict[str, NDArray[Any]], None, None]:
        """See :meth:`.StagePipeline.stream`. Samples run one after the other: several come when all are done.

        Raises:
            OutOfMemory: the GPU's memory does not suffice.
        """
        sizes = self._limited(chunks or self.chunks)
        if prepared.batch == 1:
            yield from self._run(prepared, 0, sizes, progress, heads)
            return
        samples = [list(self._run(prepared, i, sizes, progress, heads)) for i in range(prepared.batch)]
        for parts in zip(*samples, strict=True):
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @property
    def finishes(self) -> bool:
        """See :attr:`.StagePipeline.finishes`; bundles of older versions lack the stage."""
        return self._contexts.finishes

    def forward(
        self,
        prepared: PreparedViews,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, NDArray[Any]]]:
        """See :meth:`.StagePipeline.forward`; from the stage of post-processing where there is one."""
        if not self.finishes:
            return super().forward(prepared, chunks, progress)
        with contextlib.closing(self.finish(prepared, _UNMASKED, FORWARD_OUTPUTS, chunks, progress)) as views:
            return [{name: view[name] for name in FORWARD_OUTPUTS} for view in views]

    def finish(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        outputs: Collection[str],
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
        into: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    ) -> Generator[dict[str, NDArray[Any]], None, None]:
        """See :meth:`.StagePipeline.finish`. Samples run one after the other, as in :meth:`stream`."""
        sizes = self._limited(chunks or self.chunks)
        into = into or [{}] * len(prepared.views)
        if prepared.batch == 1:
            yield from self._run(prepared, 0, sizes, progress, SceneCall.of(prepared, 0, options, outputs, into))
            return
        samples = []
        for sample in range(prepared.batch):
            call = SceneCall.of(prepared, sample, options, outputs, into)
            samples.append(list(self._run(prepared, sample, sizes, progress, call)))
        for parts, own in zip(zip(*samples, strict=True), into, strict=True):
            yield {
                name: own[name] if name in own else np.concatenate([part[name] for part in parts]) for name in parts[0]
            }

    @property
    def keeps(self) -> bool:
        """See :attr:`.StagePipeline.keeps`."""
        return True

    def finish_on_device(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        outputs: Collection[str],
        data_norm_type: str,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """See :meth:`.StagePipeline.finish_on_device`. The arrays are :class:`.device_array.DeviceArray`."""
        sizes = self._limited(chunks or self.chunks)
        made = set(outputs) - {PLAIN_IMAGE}
        results = [self._contexts.allocate(shapes) for shapes in self._result_shapes(prepared, options, made)]
        for sample in range(prepared.batch):
            call = SceneCall.of(prepared, sample, options, made, [{}] * len(results), results)
            for _ in self._run(prepared, sample, sizes, progress, call):
                pass
        if PLAIN_IMAGE in outputs:
            for view, image in zip(results, prepared.images, strict=True):
                view |= self.to_device({PLAIN_IMAGE: denormalize_image(image, data_norm_type)})
        return [{name: view[name] for name in OUTPUTS if name in view} for view in results]

    def _result_shapes(
        self, prepared: PreparedViews, options: InferOptions, outputs: Collection[str]
    ) -> Iterator[dict[str, Shape]]:
        """Yield, view by view, the shapes and types of its results."""
        axes = {"patch_rows": prepared.height // PATCH_SIZE, "patch_columns": prepared.width // PATCH_SIZE}
        for mask in prepared.masks:
            shapes: dict[str, Shape] = {}
            for name in present_outputs(outputs, options, mask):
                stage, tensor = ("dense_head", PASSED_ON[name]) if name in PASSED_ON else (SCENE, name)
                if name == SCALE:
                    shapes[name] = (prepared.batch, 1), np.dtype(np.float32)
                    continue
                spec = self._stages[stage].outputs[tensor]
                leading = str(spec.shape[0])
                shapes[name] = tensor_shape(spec, {**axes, leading: prepared.batch}), np.dtype(spec.dtype)
            yield shapes

    def to_device(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """See :meth:`.StagePipeline.to_device`."""
        return to_device(self._device, arrays)

    def encode(
        self, images: Sequence[NDArray[Any]], chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[ImageFeatures]:
        """See :meth:`.StagePipeline.encode`."""
        batch, _, height, width = images[0].shape
        sizes = self._limited(chunks or self.chunks)
        every = [np.asarray(image[sample : sample + 1], np.float32) for image in images for sample in range(batch)]
        request = RequestShape(len(every), height // PATCH_SIZE, width // PATCH_SIZE, sizes)
        work = Work(range(len(every)), (), encode_only=True)
        with self._device.current(), self._contexts.taken(request, work) as context:
            found = context.encode(every, progress)
        parts = [found[view * batch : (view + 1) * batch] for view in range(len(images))]
        return [
            ImageFeatures(
                np.concatenate([part.patches for part in view]),
                None
                if view[0].extra is None
                else np.concatenate([part.extra for part in view if part.extra is not None]),
            )
            for view in parts
        ]

    def _run(
        self,
        prepared: PreparedViews,
        sample: int,
        chunks: ChunkSizes,
        progress: Progress | None,
        wanted: Collection[str] | SceneCall | None,
    ) -> Generator[dict[str, NDArray[Any]], None, None]:
        """Yield the views of one sample: outputs of the dense head, or of ``infer``.

        The GPU is current for this thread only while the generator runs.
        """
        views_in_all = len(prepared.views)
        images = SampleImages(prepared, sample)
        geometry = Each(partial(_of_sample, prepared, sample), range(views_in_all))
        features = [None if view is None else _features_of(view, sample) for view in prepared.features]
        request = RequestShape(views_in_all, prepared.height // PATCH_SIZE, prepared.width // PATCH_SIZE, chunks)
        work = Work(
            [view for view, known in enumerate(features) if known is None],
            [view for view, brings in enumerate(prepared.brings_geometry) if brings],
            frozenset(view for view, is_bytes in enumerate(prepared.as_bytes) if is_bytes and self._normalizes),
            finish=isinstance(wanted, SceneCall),
        )
        report = progress
        if progress is not None and prepared.batch > 1:
            before, batch, tell = sample, prepared.batch, progress

            def report(stage: str, done: int, total: int) -> None:
                tell(stage, before * total + done, batch * total)

        with contextlib.ExitStack() as held:
            with self._device.current():
                context = held.enter_context(self._contexts.taken(request, work))
                views = context.run(work, images, geometry, features, report, self._contexts.clock, wanted)
            while True:
                with self._device.current():
                    view = next(views, None)
                if view is None:
                    break
                yield view

    def device_bytes(self) -> int | None:
        """See :meth:`.StagePipeline.device_bytes`."""
        with self._device.current():
            free, total = self._device.free_memory()
        return total - free

    def time_device(self) -> Callable[[], dict[str, float]]:
        """See :meth:`.StagePipeline.time_device`."""
        if self._contexts.clock is None:
            self._contexts.clock = GpuClock(self._device)
        return self._contexts.clock.read

    def _limited(self, chunks: ChunkSizes) -> ChunkSizes:
        """Return ``chunks``, each at most what the stage's optimization profiles take."""
        limits = self.chunks.to_json()
        return replace(chunks, **{stage: min(views, limits[stage]) for stage, views in chunks.to_json().items()})


class _ShapeContexts:
    """The shape contexts of a pipeline: those that run, and a few that wait for the next call of their shape."""

    def __init__(
        self, device: Device, stages: Mapping[str, DeviceStage], caches: Caches | None, stream: Stream | None
    ) -> None:
        self._device = device
        self._stages = stages
        self._caches = caches
        self._stream = stream
        self.finishes = SCENE in stages
        self.clock: GpuClock | None = None
        self._idle: list[ShapeContext] = []  # the newest last
        self._running = 0
        self._changed = threading.Condition()
        self._making = threading.Lock()

    @contextlib.contextmanager
    def taken(self, request: RequestShape, work: Work) -> Iterator[ShapeContext]:
        """Lend a context to one call; the block's failure closes it.

        Raises:
            OutOfMemory: the GPU's memory does not suffice, also with no other context there.
        """
        ready = self._take_idle(request, prepared_for=work)
        context = ready or self._make(request, work)
        try:
            yield context
            if ready is None:  # its kernels were compiled now
                with self._device.current():
                    self._save()
        except BaseException:  # also of a stream that is left before its end
            with contextlib.suppress(BackendError), self._device.current():  # a broken GPU takes nothing back
                context.close()
            raise
        else:
            self._keep(context)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def allocate(self, shapes: Mapping[str, Shape]) -> dict[str, DeviceArray]:
        """Return new arrays for results, with the memory of idle contexts if that has to be."""
        with self._device.current():
            try:
                return allocate(self._device, shapes)
            except OutOfMemory:
                self._close_idle()
                return allocate(self._device, shapes)

    def close(self) -> None:
        """Save what the library compiled and free what no call uses. Never raises."""
        with contextlib.suppress(Exception), self._device.current():
            self._save()
            self._close_idle()
            if self.clock is not None:
                self.clock.close()

    def _save(self) -> None:
        if self._caches is not None:
            self._caches.save()

    def _make(self, request: RequestShape, work: Work) -> ShapeContext:
        """Return a new context, or an idle one of this shape with what it lacked, counted as running."""
        # One at a time: two calls could each hold a part of the memory that either needs. Only here does anybody look
        # for memory, so nobody misses the context that is in the making, which is neither idle nor running.
        with self._making:
            context = self._take_idle(request)
            while True:
                context = context or ShapeContext(self._device, self._stages, request, self._stream)
                try:
                    context.prepare(work)
                except OutOfMemory:
                    context.close()
                    context = None
                    if not self._make_room():
                        raise
                except BaseException:
                    context.close()
                    raise
                else:
                    with self._changed:
                        self._running += 1
                    return context

    def _take_idle(self, request: RequestShape, prepared_for: Work | None = None) -> ShapeContext | None:
        """Return an idle context of this shape; with ``prepared_for``, one that lacks nothing, counted as running."""
        with self._changed:  # in one step: a call that is out of memory waits for what it finds idle or running
            for context in reversed(self._idle):
                if context.request == request and (prepared_for is None or context.is_prepared(prepared_for)):
                    self._idle.remove(context)
                    self._running += prepared_for is not None
                    return context
        return None

    def _keep(self, context: ShapeContext) -> None:
        """Keep a context for the next call of its shape, and close the oldest of those that are too many now."""
        with self._changed:
            self._idle.append(context)
            surplus, self._idle = self._idle[:-_MOST_IDLE], self._idle[-_MOST_IDLE:]
            self._changed.notify_all()
        with self._device.current():
            for old in surplus:
                old.close()

    def _make_room(self) -> bool:
        """Free the memory of idle contexts, after waiting for a running one if there is none; False without either."""
        with self._changed:
            if not self._idle and not self._running:
                return False
            running = self._running
            self._changed.wait_for(lambda: self._idle or self._running < running)
        self._close_idle()
        return True

    def _close_idle(self) -> None:
        with self._changed:
            contexts, self._idle = self._idle, []
        for context in contexts:
            context.close()


class SampleImages:
    """The images of one sample of a call, of which each is taken when it is needed."""

    def __init__(self, prepared: PreparedViews, sample: int) -> None:
        self._views = prepared.views
        self._part = slice(sample, sample + 1)

    def __len__(self) -> int:
        return len(self._views)

    def pixels(self, view: int) -> NDArray[np.uint8]:
        """Return an image that comes as bytes (1, H, W, 3)."""
        return self._views[view].image[self._part]

    def normalized(self, view: int) -> NDArray[np.float32]:
        """Return an image normalised (1, 3, H, W)."""
        return np.asarray(self._views[view].normalized[self._part], np.float32)


def _of_sample(prepared: PreparedViews, sample: int, index: int) -> ViewGeometry:
    """Return what a view brings for one sample."""
    view = prepared.geometry[index]
    assert view is not None
    part = slice(sample, sample + 1)
    values = (getattr(view, name) for name in ViewGeometry.__dataclass_fields__)
    return ViewGeometry(*(None if value is None else value[part] for value in values))  # type: ignore[arg-type]


def _features_of(view: ImageFeatures, sample: int) -> ImageFeatures:
    """Return the features of one sample."""
    part = slice(sample, sample + 1)
    return ImageFeatures(view.patches[part], None if view.extra is None else view.extra[part])
