"""The interface of a backend: libraries, loaded stages, and pipelines of stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.store import Bundle
from ..inputs.encoded import ImageFeatures
from ..inputs.prepared import PreparedViews
from ..options import InferOptions, Progress
from ..postprocessing.predictions import forward_outputs

BF16_STAGES = ("image_encoder", "aggregator")
"""Stages that a bundle whose ``arithmetic`` is BF16 runs in bfloat16 although its files are float32: the transformers,
as with upstream's autocast. The geometry encoder and the heads stay in float32."""

Arrays = Mapping[str, NDArray[Any]]


class StageRunner(Protocol):
    """One loaded graph. ``run`` may be called from several threads at once."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Run the graph on named inputs and return its named outputs.

        Raises:
            BackendError: the backend failed, with its own words and the stage's name.
        """
        ...


class Backend(Protocol):
    """An inference library on one device."""

    name: str
    version: str
    device: str
    """Name of the device, as shown to people and recorded by the golden check."""
    compute_capability: str | None

    def open_pipeline(self, bundle: Bundle, chunks: ChunkSizes) -> StagePipeline:
        """Load the stages of a checked bundle.

        Raises:
            BackendError: the library refuses a file.
        """
        ...


@dataclass(frozen=True)
class ChunkSizes:
    """Views per call of each chunked stage.

    The defaults are for a CPU: one view fills its caches, more only cost memory (``docs/results/cpu-choices.md``). A
    bundle that was built for small images has more.
    """

    image_encoder: int = 1
    geometry_encoder: int = 1
    dense_head: int = 1

    def to_json(self) -> dict[str, int]:
        """Return the views per call, keyed by stage."""
        return asdict(self)


class StagePipeline(ABC):
    """The loaded stages of a bundle. Threads may share one."""

    chunks: ChunkSizes
    """Views per call of each stage, where a call does not say otherwise."""

    def forward(
        self,
        prepared: PreparedViews,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Array]]:
        """Return the predictions of all views, metric-scaled and unmasked, from the outputs of :meth:`stream`.

        Keys and shapes as in :func:`..postprocessing.predictions.forward_outputs`.
        """
        with closing(self.stream(prepared, chunks, progress)) as views:
            return [forward_outputs(**heads) for heads in views]

    @abstractmethod
    def stream(
        self,
        prepared: PreparedViews,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
        heads: Collection[str] | None = None,
    ) -> Generator[dict[str, Array], None, None]:
        """Yield the outputs of the dense head view by view; a view is decoded when it is asked for.

        Args:
            prepared: V views of B samples.
            chunks: overrides the sizes that the pipeline was made with.
            progress: see :data:`..options.Progress`.
            heads: names of the outputs that the caller reads, all by default; the others may be missing.

        Yields:
            V dictionaries, the arguments of :func:`..postprocessing.predictions.forward_outputs`.

        Raises:
            ProfileError: the stages were not built for so many views, or for their size.
            BackendError: the backend failed.
        """

    @property
    def finishes(self) -> bool:
        """Whether post-processing is a stage of the pipeline: see :meth:`finish`."""
        return False

    def finish(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        outputs: Collection[str],
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
        into: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    ) -> Generator[dict[str, NDArray[Any]], None, None]:
        """Yield what ``infer`` returns of one view after the other, if the pipeline ``finishes``.

        Args:
            prepared, chunks, progress: as in :meth:`stream`.
            options: of the call, without multi-view confidence.
            outputs: names of what the dictionaries hold, without ``img_no_norm``, which the caller has.
            into: per view the arrays that hold the results, by name; what is not among them is new.

        Raises:
            ProfileError, BackendError: as in :meth:`stream`.
        """
        raise NotImplementedError

    @property
    def keeps(self) -> bool:
        """Whether results can stay on a device of the pipeline's own: see :meth:`finish_on_device`."""
        return False

    def finish_on_device(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        outputs: Collection[str],
        data_norm_type: str,
        chunks: ChunkSizes | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Return what ``infer`` returns in arrays on the device, if the pipeline ``finishes`` and ``keeps``.

        Args:
            prepared, options, outputs, chunks, progress: as of :meth:`finish`; ``outputs`` also of plain images.
            data_norm_type: of the images.
        """
        raise NotImplementedError

    def to_device(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Copy arrays to the device, if the pipeline ``keeps``; raises BackendError if its memory does not suffice."""
        raise NotImplementedError

    def device_bytes(self) -> int | None:
        """Return the bytes in use on a device of its own, by all programs; None without one."""
        return None

    def time_device(self) -> Callable[[], dict[str, float]] | None:
        """Time copies and stages on the device from now on; None without one.

        Returns:
            A function for one thread that returns the seconds by stage and direction of copying since its last call.
        """
        return None

    @abstractmethod
    def encode(
        self, images: Sequence[NDArray[Any]], chunks: ChunkSizes | None = None, progress: Progress | None = None
    ) -> list[ImageFeatures]:
        """Run the image encoder alone over V images (B, 3, H, W); V is at least 1.

        Raises:
            ProfileError, BackendError: as :meth:`stream`.
        """


Array = NDArray[np.float32]
