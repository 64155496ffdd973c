"""Everything that one shape of request needs on the GPU: buffers, execution contexts, recorded graphs.

The stages hand device buffers to each other, so between the images and the predictions nothing comes back to the host.
A session belongs to one call at a time; ``pipeline.py`` keeps a few of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...manifest import TensorSpec
from ...pipeline import ChunkSizes, chunk_ranges, geometry_inputs
from ...views import ViewGeometry
from .cuda import ALIGNMENT, Buffer, Device, Event, Graph, Pinned, Stream
from .plans import Plan, tensor_bytes, tensor_shape

SCALE = "metric_scaling_factor"
"""The output of the aggregator that goes to the host."""

_SLOTS = 2
"""Sets of page-locked buffers: the host fills or reads one while the GPU works with the other."""


@dataclass(frozen=True)
class Request:
    """The shape of a call for one sample.

    Attributes:
        views: how many. rows, columns: patches of an image.
        geometry: per view, whether it has any.
        chunks: views per call of the chunked stages.
    """

    views: int
    rows: int
    columns: int
    geometry: tuple[bool, ...]
    chunks: ChunkSizes


@dataclass
class _Step:
    """One launch with the copies around it, on fixed addresses."""

    stage: str
    start: int
    stop: int
    plan: Plan | None = None
    context: Any = None
    addresses: dict[str, int] = field(default_factory=dict)
    host: dict[str, Pinned] = field(default_factory=dict)
    """Page-locked copies of the tensors that come from the host or go there."""
    before: list[tuple[int, int, int]] = field(default_factory=list)
    """Copies on the GPU before the launch: source, target, bytes."""
    after: list[tuple[int, int, int]] = field(default_factory=list)
    slot: int = 0
    runs: int = 0
    graph: Graph | None = None

    def launch(self, stream: Stream) -> None:
        """Put the step into the queue: as a graph from its second run on, where the library can be recorded."""
        if self.graph is None and self.runs == 1:
            self._record(stream)
        self.runs += 1
        if self.graph is not None:
            stream.launch(self.graph)
        else:
            self._enqueue(stream)

    def _record(self, stream: Stream) -> None:
        if self.plan is not None and self.plan.captures_graphs:
            return
        # A library that cannot be recorded after all is run as before.
        with contextlib.suppress(BackendError):
            with stream.capture() as graph:
                self._enqueue(stream)
            self.graph = graph

    def _enqueue(self, stream: Stream) -> None:
        for source, target, size in self.before:
            stream.move(source, target, size)
        if self.plan is None:
            return
        for name, address in self.addresses.items():
            if name in self.host and name in self.plan.inputs:
                stream.upload(self.host[name], address)
            if not self.context.set_tensor_address(name, address):
                raise self.plan.failed(f"it refuses the address of {name}")
        self.plan.enqueue(self.context, stream.handle)
        for source, target, size in self.after:
            stream.move(source, target, size)
        for name, pinned in self.host.items():
            if name in self.plan.outputs:
                stream.download(self.addresses[name], pinned)


class Session:
    """The GPU side of one :class:`Request`."""

    def __init__(self, device: Device, plans: Mapping[str, Plan], request: Request) -> None:
        """Allocate everything; a failure gives back what was allocated.

        Raises:
            OutOfMemory: the GPU's memory does not suffice.
            ProfileError: the plans were not built for the request.
            BackendError: the library refuses.
        """
        self._device = device
        self._plans = plans
        self.request = request
        self._owned: list[Buffer | Pinned | Stream | Event] = []
        self._contexts: dict[tuple[str, int], tuple[Any, int]] = {}
        self._steps: list[_Step] = []
        self._local: dict[tuple[str, str], Buffer] = {}
        self._host: dict[tuple[str, str, int, int], Pinned] = {}
        self._failed = False
        try:
            self._stream = self._own(device.stream())
            self._marks = [self._own(device.event()) for _ in range(_SLOTS)]
            self._prepare()
        except BaseException:
            self.close()
            raise

    def run(
        self,
        images: Sequence[NDArray[np.float32]],
        geometry: Sequence[ViewGeometry | None],
        report: Callable[[str, int, int], None] | None = None,
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.float32]]]:
        """Run the network on one sample.

        Args:
            images: V times (1, 3, H, W).
            geometry: V times what the view brings, of this sample only; None for nothing.
            report: called with stage, views done and views in all, each time that something is done. Waiting for that
                costs a little time, so leave it out where nobody looks.

        Yields:
            Per view, in order: the dense head's outputs with a leading dimension of 1, and the metric scaling factor
            (1, 1). The arrays are the caller's.
        """
        inputs = {"image_encoder": images, "geometry_encoder": geometry}
        totals = {"geometry_encoder": sum(self.request.geometry)}
        done = dict.fromkeys(self._plans, 0)
        waiting: _Step | None = None
        self._failed = True  # until the end is reached: an abandoned call leaves work in the queue
        for step in self._steps:
            if step.stage in inputs and step.plan is not None:
                self._marks[step.slot].wait()  # the buffers that this step fills were used two steps ago
                self._fill(step, inputs[step.stage][step.start : step.stop])
            step.launch(self._stream)
            self._marks[step.slot].record(self._stream)
            if step.stage == "dense_head":
                if waiting is not None:
                    yield from self._outputs(waiting)
                waiting = step
            if report is not None and step.plan is not None:
                self._stream.synchronize()
                done[step.stage] += step.stop - step.start
                report(step.stage, done[step.stage], totals.get(step.stage, self.request.views))
        if waiting is not None:
            yield from self._outputs(waiting)
        self._stream.synchronize()
        self._failed = False

    @property
    def is_reusable(self) -> bool:
        """Whether the last call ran to its end."""
        return not self._failed

    def close(self) -> None:
        """Give everything back. Errors are dropped: they were raised where they happened."""
        with contextlib.suppress(BackendError):
            if hasattr(self, "_stream"):
                self._stream.synchronize()
        for step in self._steps:
            if step.graph is not None:
                with contextlib.suppress(BackendError):
                    step.graph.free()
        self._steps.clear()
        self._contexts.clear()  # before their memory
        for resource in reversed(self._owned):
            with contextlib.suppress(BackendError):
                resource.free()
        self._owned.clear()

    # What belongs to the session

    def _own(self, resource: Any) -> Any:
        self._owned.append(resource)
        return resource

    def _tensor(self, spec: TensorSpec, stage: str, views: int) -> Buffer:
        buffer: Buffer = self._own(self._device.allocate(tensor_bytes(spec, self._axes(stage, views))))
        return buffer

    def _pinned(self, spec: TensorSpec, stage: str, views: int) -> Pinned:
        shape = tensor_shape(spec, self._axes(stage, views))
        pinned: Pinned = self._own(self._device.pinned(shape, spec.dtype))
        return pinned

    def _axes(self, stage: str, views: int) -> dict[str, int]:
        leading = next(iter(self._plans[stage].inputs.values())).shape[0]
        return {str(leading): views, "patch_rows": self.request.rows, "patch_columns": self.request.columns}

    def _context(self, stage: str, views: int) -> Any:
        """One context per stage and number of views: a recorded graph holds on to its shapes."""
        if (stage, views) not in self._contexts:
            self._contexts[stage, views] = self._plans[stage].context(self._stream.handle, self._axes(stage, views))
        return self._contexts[stage, views][0]

    def _prepare(self) -> None:
        request, plans = self.request, self._plans
        views = request.views
        aggregator = plans["aggregator"]
        between = {
            name: self._tensor(spec, "aggregator", views)
            for name, spec in (aggregator.inputs | aggregator.outputs).items()
            if name != SCALE
        }
        encoded = between["features"]
        if any(request.geometry):
            # The geometry encoder reads the encoded views and writes the sum: never in place, which is not allowed.
            encoded = self._tensor(aggregator.inputs["features"], "aggregator", views)
        self._add_steps(
            "image_encoder",
            chunk_ranges(0, views, request.chunks.image_encoder),
            {**between, "patch_features": encoded},
        )
        if any(request.geometry):
            for start, stop, given in _runs(request.geometry):
                if given:
                    ranges = chunk_ranges(start, stop, request.chunks.geometry_encoder)
                    self._add_steps("geometry_encoder", ranges, {**between, "patch_features": encoded})
                else:
                    self._add_move(start, stop, encoded, between["features"])
        self._add_steps("aggregator", [(0, views)], between)
        self._add_steps("dense_head", chunk_ranges(0, views, request.chunks.dense_head), between)
        scratch = self._own(self._device.allocate(max(size for _, size in self._contexts.values())))
        for context, _ in self._contexts.values():
            context.set_device_memory(scratch.address, scratch.size)

    def _add_steps(self, stage: str, ranges: Sequence[tuple[int, int]], shared: Mapping[str, Buffer]) -> None:
        """Steps of a stage over ranges of views; ``shared`` are the buffers of all views that they read and write."""
        plan = self._plans[stage]
        largest = min(self.request.chunks.to_json().get(stage, self.request.views), self.request.views)
        for start, stop in ranges:
            slot, count = len(self._steps) % _SLOTS, stop - start
            step = _Step(stage, start, stop, plan, self._context(stage, count), slot=slot)
            for name, spec in (plan.inputs | plan.outputs).items():
                if name in shared:
                    self._bind_part(step, name, spec, shared[name])
                    continue
                if (stage, name) not in self._local:
                    self._local[stage, name] = self._tensor(spec, stage, largest)
                if (stage, name, count, slot) not in self._host:
                    self._host[stage, name, count, slot] = self._pinned(spec, stage, count)
                step.addresses[name] = self._local[stage, name].address
                step.host[name] = self._host[stage, name, count, slot]
            self._steps.append(step)

    def _bind_part(self, step: _Step, name: str, spec: TensorSpec, buffer: Buffer) -> None:
        """Let a step read or write its views' part of a buffer; by way of a copy where the part is not aligned."""
        assert step.plan is not None
        offset = tensor_bytes(spec, self._axes(step.stage, 1)) * step.start if step.start else 0
        size = tensor_bytes(spec, self._axes(step.stage, step.stop - step.start))
        address = buffer.address + offset
        if address % ALIGNMENT == 0:
            step.addresses[name] = address
            return
        staging = self._own(self._device.allocate(size))
        step.addresses[name] = staging.address
        if name in step.plan.inputs:
            step.before.append((address, staging.address, size))
        else:
            step.after.append((staging.address, address, size))

    def _add_move(self, start: int, stop: int, source: Buffer, target: Buffer) -> None:
        """Views without geometry pass the geometry encoder by."""
        spec = self._plans["aggregator"].inputs["features"]
        view = tensor_bytes(spec, self._axes("aggregator", 1))
        step = _Step("geometry_encoder", start, stop, slot=len(self._steps) % _SLOTS)
        step.before.append((source.address + view * start, target.address + view * start, view * (stop - start)))
        self._steps.append(step)

    # One call

    def _fill(self, step: _Step, views: Sequence[Any]) -> None:
        """Put the inputs of a step into its page-locked buffers."""
        assert step.plan is not None
        if step.stage == "image_encoder":
            np.concatenate(views, out=step.host["images"].array, casting="same_kind")
            return
        height, width = step.host["ray_directions"].array.shape[1:3]
        for name, value in geometry_inputs(views, 1, height, width).items():
            step.host[name].array[...] = value

    def _outputs(self, step: _Step) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.float32]]]:
        """Wait for a step of the dense head, and copy its outputs out of the page-locked buffers, view by view."""
        self._marks[step.slot].wait()
        aggregator = next(entry for entry in self._steps if entry.stage == "aggregator")
        scale = aggregator.host[SCALE].array.reshape(1, 1)
        for position in range(step.stop - step.start):
            part = slice(position, position + 1)
            yield {name: pinned.array[part].copy() for name, pinned in step.host.items()}, scale.copy()


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int, bool]]:
    """Stretches of equal flags as (start, stop, flag)."""
    start = 0
    for index in range(1, len(flags) + 1):
        if index == len(flags) or flags[index] != flags[start]:
            yield start, index, flags[start]
            start = index
