"""A stage whose results are held against the manifest, and that is loaded again after a failure.

Where memory runs out, OpenVINO returns empty tensors without an error (2026.4.1, one thread), and the stage may go on
to do so, or to fail, when there is memory again. The one place where results of all libraries on the host are checked;
a GPU backend writes into buffers that have the manifest's shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.stages import StageSpec, axis_sizes, tensor_shape
from ..errors import BackendError, ManifestError
from ..system.machine import free_bytes
from ..system.sizes import gigabytes
from .contract import Arrays, StageRunner
from .libraries import MEMORY_CURE


class CheckedStage:
    """See :class:`.contract.StageRunner`."""

    def __init__(
        self,
        library: str,
        name: str,
        spec: StageSpec,
        load: Callable[[], StageRunner],
        *,
        room: int | None = 0,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Load the stage.

        Args:
            library: for messages. name: of the stage.
            spec: of the stage in the manifest.
            load: loads the stage; called again by the next call after one that failed.
            room: bytes that have to be free then, as OpenVINO ends the process where it compiles with too few; None for
                a library whose stages work again by themselves, and are loaded once.
            failed: called at each failure.

        Raises:
            ManifestError: the shape of a result does not follow from those of the inputs.
        """
        self._library, self._name, self._spec = library, name, spec
        known = axis_sizes(spec.inputs, {tensor.name: (1,) * len(tensor.shape) for tensor in spec.inputs})
        for tensor in spec.outputs:
            unknown = [axis for axis in tensor.shape if isinstance(axis, str) and axis.rpartition("*")[2] not in known]
            if unknown:
                raise ManifestError(
                    f"the stage {name} gives {tensor.name} the axis {unknown[0]}, which none of its inputs has; build "
                    "the bundle again"
                )
        self._load, self._room, self._failed = load, room, failed
        self._loading = threading.Lock()
        self._loaded: StageRunner | None = load()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run the stage.

        Raises:
            BackendError: the library failed, or a result has another shape or dtype than the manifest says.
            BundleError: the stage had to be loaded again, and its bundle is another one by now.
        """
        with self._loading:
            if self._loaded is None:
                self._check_room()
                self._loaded = self._load()
            stage = self._loaded
        try:
            outputs = stage.run(inputs)
            self._check(inputs, outputs)
        except BackendError:
            if self._failed is not None:
                self._failed()
            with self._loading:
                if self._loaded is stage and self._room is not None:
                    self._loaded = None
            raise
        return outputs

    def _check_room(self) -> None:
        free, room = free_bytes(), self._room or 0
        if free < room:
            raise BackendError(
                f"the stage {self._name} failed before and has to be loaded again, and {gigabytes(free)} of memory are "
                f"free where that needs {gigabytes(room)}; give the process more memory"
            )

    def _check(self, inputs: Arrays, outputs: Mapping[str, NDArray[Any]]) -> None:
        axes = axis_sizes(self._spec.inputs, {name: value.shape for name, value in inputs.items()})
        for tensor in self._spec.outputs:
            wanted = (tensor_shape(tensor, axes), tensor.dtype)
            value = outputs.get(tensor.name)
            found = None if value is None else (value.shape, value.dtype.name)
            if found != wanted:
                what = "is missing" if found is None else f"is {_described(found)} instead of {_described(wanted)}"
                raise BackendError(
                    f"{self._library} failed in the stage {self._name} without saying so: its result {tensor.name} "
                    f"{what}, as where memory runs out; {MEMORY_CURE}"
                )


def _described(array: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = array
    return f"{'x'.join(map(str, shape)) or 'one number'} of {dtype}"
