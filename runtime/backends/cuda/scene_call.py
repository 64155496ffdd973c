"""What post-processing on the GPU is to do in one call, and how its results leave the buffers of the context."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.stages import SCENE
from ...inputs.prepared import PreparedViews
from ...options import InferOptions
from ...postprocessing.scene_stage import PASSED_ON, option_values, present_outputs
from ...system.sequences import Each

SCALE = "metric_scaling_factor"
"""The output of the aggregator that the host reads."""


@dataclass(frozen=True)
class SceneCall:
    """The stage ``scene`` in a call for one sample.

    Attributes:
        options: what the stage reads as such.
        kept: V times (1, H, W) bool, where the view counts; None for everywhere.
        back: the outputs of ``infer`` that come to the host from the GPU, as a stage and the name of its tensor.
        wanted: per view the outputs of ``infer`` that its dictionary has.
        into: per view the arrays that get results, by name.

    What is said per view is taken when it is needed.
    """

    options: NDArray[np.floating[Any]]
    kept: Sequence[NDArray[np.bool_] | None]
    back: Mapping[str, tuple[str, str]]
    wanted: Sequence[Collection[str]]
    into: Sequence[Mapping[str, NDArray[Any]]]

    @classmethod
    def of(
        cls,
        prepared: PreparedViews,
        sample: int,
        options: InferOptions,
        outputs: Collection[str],
        into: Sequence[Mapping[str, NDArray[Any]]],
    ) -> SceneCall:
        """Return the call for one sample; arguments as of :meth:`..contract.StagePipeline.finish`."""
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
        )

    def result(self, view: int, parts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the dictionary of a view: copies of ``parts``, in the arrays that are there for them."""
        found = {}
        for name in self.wanted[view]:
            target = self.into[view].get(name)
            if target is None:
                found[name] = parts[name].copy()
            else:
                target[...] = parts[name]
                found[name] = target
        return found
