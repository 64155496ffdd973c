"""What one call asks of the GPU: its shape, the work, the images, and what post-processing is to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bundle.stages import SCENE
from ...inputs.prepared import PreparedViews
from ...options import InferOptions
from ...postprocessing.scene_stage import PASSED_ON, option_values, present_outputs
from ...system.sequences import Each
from ..contract import ChunkSizes
from .device_array import DeviceArray

SCALE = "metric_scaling_factor"
"""The output of the aggregator that the host reads."""


@dataclass(frozen=True)
class RequestShape:
    """The shape of a call for one sample.

    Attributes:
        views: how many. rows, columns: patches of an image.
        chunks: views per call of the chunked stages.
    """

    views: int
    rows: int
    columns: int
    chunks: ChunkSizes


@dataclass(frozen=True)
class Work:
    """What a call has to compute.

    Attributes:
        images, geometry: the views that go through the image encoder and through the geometry encoder.
        pixels: the views whose images a stage can normalise, from bytes.
        encode_only: nothing but the image encoder runs. finish: post-processing runs as a stage.
    """

    images: Sequence[int]
    geometry: Sequence[int]
    pixels: frozenset[int] = frozenset()
    encode_only: bool = False
    finish: bool = False


class Images(Protocol):
    """The images of one sample, which may still be on their way."""

    def pixels(self, view: int) -> NDArray[np.uint8]:
        """Return an image that comes as bytes (1, H, W, 3)."""
        ...

    def normalized(self, view: int) -> NDArray[np.float32]:
        """Return an image normalised (1, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Step:
    """A stage and the views that it works on, and what is launched before and behind it for the same views."""

    stage: str
    views: Sequence[int]
    before: tuple[str, ...] = ()
    then: tuple[str, ...] = ()

    @property
    def launches(self) -> tuple[str, ...]:
        return *self.before, self.stage, *self.then


@dataclass(frozen=True)
class SceneCall:
    """The stage ``scene`` in a call for one sample.

    Attributes:
        options: what the stage reads as such.
        kept: V times (1, H, W) bool, where the view counts; None for everywhere.
        back: the outputs of ``infer`` that come to the host from the GPU, as a stage and the name of its tensor.
        wanted: per view the outputs of ``infer`` that its dictionary has.
        into: per view the arrays that get results, by name.
        on_device: per view the arrays on the GPU that get results in place of those on the host, by name; or None.
        sample: of the batch, for those.

    What is said per view is taken when it is needed.
    """

    options: NDArray[np.floating[Any]]
    kept: Sequence[NDArray[np.bool_] | None]
    back: Mapping[str, tuple[str, str]]
    wanted: Sequence[Collection[str]]
    into: Sequence[Mapping[str, NDArray[Any]]]
    on_device: Sequence[Mapping[str, DeviceArray]] | None = None
    sample: int = 0

    @classmethod
    def of(
        cls,
        prepared: PreparedViews,
        sample: int,
        options: InferOptions,
        outputs: Collection[str],
        into: Sequence[Mapping[str, NDArray[Any]]],
        on_device: Sequence[Mapping[str, DeviceArray]] | None = None,
    ) -> SceneCall:
        """Return the call for one sample; arguments as of :meth:`..contract.StagePipeline.finish`, and
        :attr:`on_device`."""
        part = slice(sample, sample + 1)
        wanted = Each(partial(present_outputs, outputs, options), prepared.masks)
        # Where the outputs do not depend on the views, nothing waits for these.
        names = set(outputs if options.apply_mask else set().union(*wanted)) - {SCALE}
        return cls(
            option_values(options, prepared.height * prepared.width),
            Each(lambda mask: None if mask is None else mask[part], prepared.masks),
            {name: ("dense_head", PASSED_ON[name]) if name in PASSED_ON else (SCENE, name) for name in sorted(names)},
            wanted,
            [{name: array[part] for name, array in own.items()} for own in into],
            on_device,
            sample,
        )

    def result(self, view: int, parts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the dictionary of a view: copies of ``parts``, in the arrays that are there for them; empty if its
        results stay on the GPU."""
        found: dict[str, NDArray[Any]] = {}
        if self.on_device is not None:
            return found
        for name in self.wanted[view]:
            target = self.into[view].get(name)
            if target is None:
                found[name] = parts[name].copy()
            else:
                target[...] = parts[name]
                found[name] = target
        return found
