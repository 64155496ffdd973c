"""A stage with everything that its launch needs: an execution context at fixed addresses, and a recorded graph."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import BackendError
from .driver import Buffer, Graph, Stream
from .stage import DeviceStage


class Launch:
    """An execution context for one stage and number of views, with its tensors at fixed addresses."""

    def __init__(
        self, stage: DeviceStage, stream: Stream, axes: Mapping[str, int], addresses: Mapping[str, int]
    ) -> None:
        self._stage = stage
        self._context, self.memory = stage.context(stream.handle, axes)
        self._runs = 0
        self._graph: Graph | None = None
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise stage.failed(f"it refuses the address of {name}")

    def use_memory(self, memory: Buffer) -> None:
        """Use ``memory`` from now on, which contexts that run one after the other share."""
        self.free()
        self._runs = 0
        self._context.set_device_memory(memory.address, memory.size)

    def run(self, stream: Stream) -> None:
        """Enqueue the stage: as a graph from its second run on, where that can be recorded."""
        if self._runs == 1 and self._stage.recordable:
            self._graph = self._record(stream)
        self._runs += 1
        if self._graph is not None:
            stream.launch(self._graph)
        else:
            with stream.turn:
                self._stage.enqueue(self._context, stream.handle)

    def _record(self, stream: Stream) -> Graph | None:
        try:
            with stream.capture() as graph:
                self._stage.enqueue(self._context, stream.handle)
        except BackendError:  # what cannot be recorded is run as before
            return None
        return graph

    def free(self) -> None:
        """Give the graph back."""
        if self._graph is not None:
            self._graph.free()
            self._graph = None
