"""What one shape of request needs on the GPU: buffers, execution contexts, recorded graphs.

The stages hand device buffers to each other, so between the images and the predictions nothing comes back to the host.
A context belongs to one call at a time; ``pipeline.py`` keeps a few of them.

A context always works on the same addresses: chunks of views are copied, on the GPU, between its buffers and those of
all views. A graph is only valid for the addresses and shapes that it was recorded with (TensorRT's guide advises one
context per graph), the copies are small beside a stage's work, and tensors are aligned as TensorRT requires.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import TensorSpec
from ...bundle.requests import PATCH_SIZE
from ...bundle.stages import CHUNKED_LIKE, NORMALIZER, SCENE, tensor_shape
from ...errors import BackendError
from ...inputs.encoded import ImageFeatures
from ...inputs.prepared import ViewGeometry
from ...options import Progress
from ...postprocessing.scene_stage import READS
from ..host_pipeline import chunk_ranges, geometry_inputs
from .call import SCALE, Images, RequestShape, SceneCall, Step, Work
from .driver import Buffer, Device, Event, Pinned, Stream
from .launch import Launch
from .stage import DeviceStage, tensor_bytes
from .timing import DEVICE_TO_HOST, HOST_TO_DEVICE, ON_DEVICE, GpuClock

_WHOLE_NAMES = {"patch_features": "features"}
"""Tensors that have another name where the aggregator reads them, for all views."""

_SLOTS = 2
"""Sets of page-locked buffers: the host fills or reads one while the GPU works with the other."""


class ShapeContext:
    """The GPU side of one :class:`RequestShape`."""

    def __init__(
        self, device: Device, stages: Mapping[str, DeviceStage], request: RequestShape, stream: Stream | None = None
    ) -> None:
        """Make an empty context, to be prepared. ``stream`` is the one that the stages are tied to, if any."""
        self.request = request
        self._device = device
        self._stages = stages
        self._owned: list[Buffer | Pinned | Stream | Event] = []
        self._launches: dict[tuple[str, int], Launch] = {}
        self._buffers: dict[tuple[str, str], Buffer] = {}
        self._pinned: dict[tuple[str, str, int, int], Pinned] = {}
        self._memory: Buffer | None = None
        self._all_kept = False
        """Whether the input ``kept`` of the stage ``scene`` is true everywhere, as most calls have it."""
        aggregator = stages["aggregator"]
        self._whole = {name for name in aggregator.inputs | aggregator.outputs if name != SCALE}
        """Tensors of all views, kept on the GPU."""
        try:
            self._stream: Stream = stream or self._own(device.stream())
            self._marks: list[Event] = [self._own(device.event()) for _ in range(_SLOTS)]
        except BaseException:
            self.close()
            raise

    def is_prepared(self, work: Work) -> bool:
        """Return whether :meth:`prepare` has nothing left to do."""
        return not self._missing(work)

    def prepare(self, work: Work) -> None:
        """Make what a call needs and the context lacks.

        Raises:
            OutOfMemory: the GPU's memory does not suffice.
            ProfileError: the stages were not built for the request.
            BackendError: the library refuses.
        """
        added = {key: self._make_launch(*key) for key in sorted(self._missing(work))}
        self._launches |= added
        needed = max(launch.memory for launch in self._launches.values())
        if self._memory is not None and self._memory.size < needed:
            self._memory.free()
            self._memory = None
        if self._memory is None:
            self._memory = self._own(self._device.allocate(needed))
            added = self._launches
        for launch in added.values():
            launch.use_memory(self._memory)

    def run(
        self,
        work: Work,
        images: Images,
        geometry: Sequence[ViewGeometry],
        features: Sequence[ImageFeatures | None],
        report: Progress | None = None,
        clock: GpuClock | None = None,
        wanted: Collection[str] | SceneCall | None = None,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Run the network on one sample, and post-processing if asked for, after :meth:`prepare`.

        The caller may work with a view while the GPU computes the next ones.

        Args:
            work: what it was prepared for.
            images: taken when they are needed, so that the GPU encodes the first views while others are read.
            geometry: V times what the view brings, of this sample only; only taken where ``work`` says so.
            features: V times what the image encoder gave before, of this sample only; None for what it has to do.
            report: called when the GPU has finished a step, with the stage, views done and views in all.
            clock: times copies and stages on the GPU.
            wanted: the outputs of the dense head that come to the host, all by default; or what post-processing is to
                do.

        Yields:
            Per view, in order, with a leading dimension of 1: the dense head's outputs, and the metric scaling factor
            (1, 1) as ``scale``; or the outputs of ``infer``. The arrays are the caller's.
        """

        def timed(what: str) -> contextlib.AbstractContextManager[None]:
            return contextlib.nullcontext() if clock is None else clock.span(what, self._stream)

        call = wanted if isinstance(wanted, SceneCall) else None
        if call is None:
            found = [name for name in self._stages["dense_head"].outputs if wanted is None or name in wanted]  # type: ignore[operator]
            back: Mapping[str, tuple[str, str]] = {name: ("dense_head", name) for name in found}
        else:
            back = call.back
            with timed(HOST_TO_DEVICE):
                self._upload_options(call)
        with timed(HOST_TO_DEVICE):
            self._put_features(features)
        totals = {"image_encoder": len(work.images), "geometry_encoder": len(work.geometry)}
        done = dict.fromkeys(self._stages, 0)
        scale: NDArray[Any] = np.empty(0)

        def finish(step: Step, slot: int) -> Iterator[dict[str, NDArray[Any]]]:
            if step.stage == "dense_head" or report is not None:
                self._marks[slot].wait()
            if step.stage == "dense_head":
                stays = call is not None and call.on_device is not None
                arrays = {k: self._host(step, *source, slot).array for k, source in back.items() if not stays}
                for position, view in enumerate(step.views):
                    parts = {key: value[position : position + 1] for key, value in arrays.items()}
                    if call is None:
                        yield {key: value.copy() for key, value in parts.items()} | {
                            "scale": scale.reshape(1, 1).copy()
                        }
                    else:
                        yield call.result(view, parts | {SCALE: scale.reshape(1, 1)})
            done[step.stage] += len(step.views)
            if report is not None:
                report(step.stage, done[step.stage], totals.get(step.stage, self.request.views))

        previous: tuple[Step, int] | None = None
        for index, step in enumerate(self._steps(work)):
            slot = index % _SLOTS
            if step.stage in totals:
                values = self._values(step, images, geometry)
                self._marks[slot].wait()  # the buffers that this step fills were used two steps ago
                uploads = self._fill(step, slot, values)
                with timed(HOST_TO_DEVICE):
                    self._upload(step, slot, uploads)
            loaded = self._stages[step.stage]
            with timed(ON_DEVICE):
                self._move(step, loaded.inputs, into_chunk=True)
            if call is not None and SCENE in step.then:
                with timed(HOST_TO_DEVICE):
                    self._upload_kept(step, slot, call)
            for stage in step.launches:
                with timed(stage):
                    self._launches[stage, len(step.views)].run(self._stream)
            with timed(ON_DEVICE):
                self._move(step, loaded.outputs, into_chunk=False)
            downloads = {"aggregator": [("aggregator", SCALE)], "dense_head": list(back.values())}
            if call is not None and call.on_device is not None:
                del downloads["dense_head"]
                if step.stage == "dense_head":
                    with timed(ON_DEVICE):
                        self._keep(step, call)
            with timed(DEVICE_TO_HOST):
                for stage, name in downloads.get(step.stage, ()):
                    source = self._address(stage, len(step.views), name)
                    self._stream.download(source, self._host(step, stage, name, slot))
            if step.stage == "aggregator":
                scale = self._host(step, "aggregator", SCALE, slot).array
            self._marks[slot].record(self._stream)
            if previous is not None:  # one step late: the GPU has this one to go on with
                yield from finish(*previous)
            previous = step, slot
        if previous is not None:
            yield from finish(*previous)

    def encode(self, images: Sequence[NDArray[np.float32]], report: Progress | None = None) -> list[ImageFeatures]:
        """Run the image encoder alone, after :meth:`prepare` for ``encode_only``, on V images (1, 3, H, W)."""
        loaded, found = self._stages["image_encoder"], []
        for step in self._steps(Work(range(len(images)), (), encode_only=True)):
            self._upload(step, 0, self._fill(step, 0, [images[view] for view in step.views]))
            self._launches[step.stage, len(step.views)].run(self._stream)
            for name in loaded.outputs:
                source = self._address(step.stage, len(step.views), name)
                self._stream.download(source, self._host(step, step.stage, name, 0))
            self._marks[0].record(self._stream)
            self._marks[0].wait()
            values = {name: self._host(step, step.stage, name, 0).array for name in loaded.outputs}
            for position in range(len(step.views)):
                parts = {name: value[position : position + 1].astype(np.float32) for name, value in values.items()}
                found.append(ImageFeatures(parts["patch_features"], parts.get("extra_tokens")))
            if report is not None:
                report(step.stage, len(found), len(images))
        return found

    def close(self) -> None:
        """Free everything. Errors are dropped: they were raised where they happened."""
        with contextlib.suppress(BackendError, AttributeError):  # perhaps there is no stream yet
            self._stream.synchronize()
        for launch in self._launches.values():
            with contextlib.suppress(BackendError):
                launch.free()
        self._launches.clear()  # before their memory
        for resource in reversed(self._owned):
            with contextlib.suppress(BackendError):
                resource.free()
        self._owned.clear()

    # What belongs to the context

    def _own(self, resource: Any) -> Any:
        self._owned.append(resource)
        return resource

    def _steps(self, work: Work) -> Iterator[Step]:
        """Yield all launches of a call in order."""
        every = range(self.request.views)
        chunks = self.request.chunks
        stages: list[tuple[str, Sequence[int], int]] = [("image_encoder", work.images, chunks.image_encoder)]
        if not work.encode_only:
            stages += [
                ("geometry_encoder", work.geometry, chunks.geometry_encoder),
                ("aggregator", every, len(every)),
                ("dense_head", every, chunks.dense_head),
            ]
        for stage, views, size in stages:
            then = (SCENE,) if stage == "dense_head" and work.finish else ()
            for start, stop in chunk_ranges(0, len(views), size):
                chunk = views[start:stop]
                in_bytes = stage == "image_encoder" and work.pixels.issuperset(chunk)
                yield Step(stage, chunk, (NORMALIZER,) if in_bytes else (), then)

    def _missing(self, work: Work) -> set[tuple[str, int]]:
        needed = {(stage, len(step.views)) for step in self._steps(work) for stage in step.launches}
        return needed - set(self._launches)

    def _axes(self, stage: str, views: int) -> dict[str, int]:
        leading = next(iter(self._stages[stage].inputs.values())).shape[0]
        return {str(leading): views, "patch_rows": self.request.rows, "patch_columns": self.request.columns}

    def _make_launch(self, stage: str, views: int) -> Launch:
        loaded = self._stages[stage]
        loaded.optimization_profile(self._axes(stage, views))  # refuse before memory is allocated
        addresses = {name: self._address(stage, views, name) for name in loaded.inputs | loaded.outputs}
        return Launch(loaded, self._stream, self._axes(stage, views), addresses)

    def _address(self, stage: str, views: int, name: str) -> int:
        """Return where a stage reads or writes a tensor when it runs on this many views."""
        if self._is_direct(stage, views, name):
            return self._buffer("aggregator", _WHOLE_NAMES.get(name, name)).address
        if stage == SCENE and name in READS:
            return self._buffer("dense_head", READS[name]).address
        if stage == SCENE and name == SCALE:
            return self._buffer("aggregator", SCALE).address
        if stage == NORMALIZER and name == "images":
            return self._buffer("image_encoder", name).address
        return self._buffer(stage, name).address

    def _is_direct(self, stage: str, views: int, name: str) -> bool:
        """Return whether a stage works on the tensor of all views itself; never in place, which TensorRT forbids."""
        return (
            _WHOLE_NAMES.get(name, name) in self._whole and views == self.request.views and stage != "geometry_encoder"
        )

    def _buffer(self, stage: str, name: str) -> Buffer:
        """Return the GPU memory of a tensor, for as many views as the stage takes at once."""
        if (stage, name) not in self._buffers:
            chunk = CHUNKED_LIKE.get(stage, stage)
            views = min(self.request.chunks.to_json().get(chunk, self.request.views), self.request.views)
            size = tensor_bytes(self._stages[stage].tensors[name], self._axes(stage, views))
            self._buffers[stage, name] = self._own(self._device.allocate(size))
        return self._buffers[stage, name]

    def _host(self, step: Step, stage: str, name: str, slot: int) -> Pinned:
        """Return the page-locked copy of a tensor of a stage, for a step's views, that comes from the host or goes
        there."""
        key = stage, name, len(step.views), slot
        if key not in self._pinned:
            spec = self._stages[stage].tensors[name]
            shape = tensor_shape(spec, self._axes(stage, len(step.views)))
            self._pinned[key] = self._own(self._device.pinned(shape, spec.dtype))
        return self._pinned[key]

    # One call

    def _values(self, step: Step, images: Images, geometry: Sequence[ViewGeometry]) -> list[Any]:
        """Return what a step takes from the host, view by view."""
        if step.stage == "geometry_encoder":
            return [geometry[view] for view in step.views]
        return [images.pixels(view) if step.before else images.normalized(view) for view in step.views]

    def _fill(self, step: Step, slot: int, views: Sequence[Any]) -> list[tuple[str, str]]:
        """Write the inputs of a step into page-locked memory and return them, as a stage and the name of its tensor."""
        if step.stage == "image_encoder":
            source = (NORMALIZER, "pixels") if step.before else (step.stage, "images")
            np.concatenate(views, out=self._host(step, *source, slot).array, casting="same_kind")
            return [source]
        sides = self.request.rows * PATCH_SIZE, self.request.columns * PATCH_SIZE
        inputs = geometry_inputs(views, 1, *sides)
        for name, value in inputs.items():
            self._host(step, step.stage, name, slot).array[...] = value
        return [(step.stage, name) for name in inputs]

    def _upload(self, step: Step, slot: int, tensors: Sequence[tuple[str, str]]) -> None:
        """Copy the inputs of a step to the GPU."""
        for stage, name in tensors:
            self._stream.upload(self._host(step, stage, name, slot), self._address(stage, len(step.views), name))

    def _upload_options(self, call: SceneCall) -> None:
        """Copy the options of post-processing to the GPU, in a buffer of its own that the last call has read."""
        pinned = self._host(Step("dense_head", [0]), SCENE, "options", 0)
        pinned.array[...] = call.options
        self._stream.upload(pinned, self._buffer(SCENE, "options").address)

    def _upload_kept(self, step: Step, slot: int, call: SceneCall) -> None:
        """Copy to the GPU where the views of a step count, unless that is everywhere and the GPU knows it."""
        kept = [call.kept[view] for view in step.views]
        everywhere = all(mask is None for mask in kept)
        if everywhere and self._all_kept:
            return
        if everywhere:  # as many views as a step can have, so that it holds for every later one
            step = Step(step.stage, range(min(self.request.chunks.dense_head, self.request.views)))
        pinned = self._host(step, SCENE, "kept", slot)
        for target, mask in zip(pinned.array, kept if not everywhere else [None] * len(step.views), strict=True):
            target[...] = True if mask is None else mask[0]
        self._stream.upload(pinned, self._buffer(SCENE, "kept").address)
        self._all_kept = everywhere

    def _keep(self, step: Step, call: SceneCall) -> None:
        """Copy a step's results to the arrays that outlast the call."""
        assert call.on_device is not None
        scale = {SCALE: ("aggregator", SCALE)}
        for name, (stage, tensor) in {**call.back, **scale}.items():
            spec = self._stages[stage].tensors[tensor]
            size = tensor_bytes(spec, self._axes(stage, 1))
            source = self._address(stage, len(step.views), tensor)
            for position, view in enumerate(step.views):
                target = call.on_device[view].get(name)
                if target is not None:
                    place = source + (0 if name == SCALE else position * size)
                    self._stream.move(place, target.address + call.sample * size, size)

    def _put_features(self, features: Sequence[ImageFeatures | None]) -> None:
        """Copy known features of views to where the aggregator reads them."""
        loaded = self._stages["image_encoder"]
        for view, known in enumerate(features):
            if known is None:
                continue
            self._marks[0].wait()  # one page-locked copy serves all views
            step = Step("image_encoder", [view])
            for name, value in (("patch_features", known.patches), ("extra_tokens", known.extra)):
                if value is None:
                    continue
                pinned = self._host(step, step.stage, name, 0)
                pinned.array[...] = value
                size = tensor_bytes(loaded.tensors[name], self._axes("image_encoder", 1))
                whole = self._buffer("aggregator", _WHOLE_NAMES.get(name, name)).address
                self._stream.upload(pinned, whole + view * size)
            self._marks[0].record(self._stream)

    def _move(self, step: Step, tensors: Mapping[str, TensorSpec], *, into_chunk: bool) -> None:
        """Copy a step's views between the tensors of all views and the buffers that the stage works on."""
        for name, spec in tensors.items():
            whole = _WHOLE_NAMES.get(name, name)
            if whole not in self._whole or self._is_direct(step.stage, len(step.views), name):
                continue
            size = tensor_bytes(spec, self._axes(step.stage, 1))
            chunk, every = self._buffer(step.stage, name).address, self._buffer("aggregator", whole).address
            for position, first, count in _runs(step.views):
                inside, outside = chunk + position * size, every + first * size
                source, target = (outside, inside) if into_chunk else (inside, outside)
                self._stream.move(source, target, count * size)


def _runs(views: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of consecutive views as (position in ``views``, first view, how many)."""
    start = 0
    for index in range(1, len(views) + 1):
        if index == len(views) or views[index] != views[index - 1] + 1:
            yield start, views[start], index - start
            start = index
