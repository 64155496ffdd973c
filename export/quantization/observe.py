"""Statistics of what the layers read, by forward hooks on the reference: streamed, and apart for special tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mapengine.calibration.data.cases import Cases, Views
from mapengine.calibration.ranges import Histogram
from mapengine.calibration.ranges.record import UNFINISHED
from mapengine.runtime.errors import CalibrationError, InputError
from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.writing.files import write_npz

from ..model.reference import MapAnything
from .layers import LinearLayer, linear

KINDS = ("patch", "reference", "class", "scale")
"""Patch tokens, patch tokens of the reference view in the aggregator, and the class and scale tokens."""

ROWS_PER_CASE = 48
"""Patch tokens per case and layer that are kept as they are, evenly spread over views and image."""

Array = NDArray[np.float32]


@dataclass
class Observation:
    """What one layer read.

    Attributes:
        tokens: histograms of magnitudes by kind of token.
        largest: (inputs,) largest magnitude per channel, over all tokens.
        rows: samples of patch tokens, each (n, inputs).
    """

    tokens: dict[str, Histogram] = field(default_factory=dict)
    largest: Array | None = None
    rows: list[Array] = field(default_factory=list)


class Observer:
    """Collects observations of some layers; ``with_rows`` also keeps channel maxima and samples."""

    def __init__(self, layers: Mapping[str, LinearLayer], extra_tokens: int, with_rows: bool) -> None:
        self.layers = layers
        self.observations = {name: Observation() for name in layers}
        self.done: list[str] = []
        self._extra = extra_tokens
        self._with_rows = with_rows
        self._views = 1

    def run(
        self,
        model: MapAnything,
        cases: Cases,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: Path | None = None,
        key: str = "",
    ) -> None:
        """Observe the cases that were not observed yet.

        Args:
            model: the network whose layers these are.
            progress: called with the number of finished cases and of all.
            checkpoint: file of unfinished work: read at the start if ``key`` is the same, written after every case.
            key: names model, data and options.

        Raises:
            InputError: an activation is NaN or infinite.
        """
        if checkpoint is not None:
            self._restore(checkpoint, key)
        with self._hooked(model):
            for index, (name, views) in enumerate(cases.views.items()):
                if name not in self.done:
                    self._views = len(views)
                    run_trunk(model, views)
                    self._check_finite(name)
                    self.done.append(name)
                    if checkpoint is not None:
                        self._save(checkpoint, key)
                if progress is not None:
                    progress(index + 1, len(cases.views))

    @contextlib.contextmanager
    def _hooked(self, model: nn.Module) -> Iterator[None]:
        hooks = [
            linear(model, name).register_forward_pre_hook(partial(self._observe, layer))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _observe(self, layer: LinearLayer, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().numpy()
        x = x.reshape(-1, *x.shape[-2:])  # (N, L, C)
        kinds = self._kinds(layer, *x.shape[:2])
        found = self.observations[layer.name]
        for index, kind in enumerate(KINDS):
            chosen = kinds == index
            if chosen.any():
                found.tokens.setdefault(kind, Histogram()).add(x[chosen])
        if not self._with_rows:
            return
        largest = np.abs(x).max(axis=(0, 1))
        found.largest = largest if found.largest is None else np.maximum(found.largest, largest)
        patches = x[kinds <= 1]
        calls = self._views if layer.stage == "image_encoder" else 1  # one view at a time there
        count = max(1, ROWS_PER_CASE // calls)
        found.rows.append(patches[np.linspace(0, len(patches) - 1, min(count, len(patches))).astype(int)].copy())

    def _kinds(self, layer: LinearLayer, sequences: int, length: int) -> NDArray[np.intp]:
        """Return the index into :data:`KINDS` of every token, (sequences, length)."""
        if layer.stage == "image_encoder":  # [class token, patches]
            return np.tile(np.where(np.arange(length) == 0, 2, 0), (sequences, 1))
        framewise = layer.index % 2 == 1
        per_view = length if framewise else (length - 1) // self._views
        view = np.zeros((self._views, per_view), np.intp)  # [patches, class token] of each view
        view[0] = 1
        if self._extra:
            view[:, -self._extra :] = 2
        return view if framewise else np.append(view.reshape(-1), 3)[None]

    def _check_finite(self, case: str) -> None:
        for name, found in self.observations.items():
            if any(histogram.not_finite for histogram in found.tokens.values()):
                raise InputError(
                    f"{name} reads NaN or infinity in the calibration case {case!r}; check the model's weights and "
                    "this case's images"
                )

    def _save(self, path: Path, key: str) -> None:
        arrays: dict[str, Any] = {"key": np.array(key), "done": np.array(self.done)}
        for name, found in self.observations.items():
            for kind, histogram in found.tokens.items():
                arrays |= {f"{name}|{kind}|{part}": value for part, value in histogram.state().items()}
            if found.largest is not None:
                arrays[f"{name}|largest"] = found.largest
                arrays[f"{name}|rows"] = np.concatenate(found.rows)
        write_npz(path, UNFINISHED, arrays)

    def _restore(self, path: Path, key: str) -> None:
        if not path.exists():
            return
        try:
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["key"]) != key:
                    return  # of another model, of other data or of another step: begun anew
                arrays = {name: stored[name] for name in stored.files}
        except Exception as error:  # zipfile and NumPy raise many types on a damaged file
            raise CalibrationError(f"{path}: is no unfinished calibration; remove it and calibrate again") from error
        self.done = [str(name) for name in arrays["done"]]
        for name, found in self.observations.items():
            for kind in KINDS:
                if f"{name}|{kind}|index" in arrays:
                    state = {part: arrays[f"{name}|{kind}|{part}"] for part in ("index", "counts", "largest")}
                    found.tokens[kind] = Histogram.from_state(state)
            if f"{name}|rows" in arrays:
                found.largest, found.rows = arrays[f"{name}|largest"], [arrays[f"{name}|rows"]]


@torch.inference_mode()
def run_trunk(model: MapAnything, views: Views) -> dict[str, Array]:
    """Run image encoder, geometry encoder and aggregator, one view at a time where that is possible.

    Returns:
        The outputs of the image encoder, without geometry, and of the aggregator, named as in the exported stages.
    """
    from mapengine.runtime.backends.host_pipeline import geometry_inputs

    prepared = prepare_views(views, data_norm_type=model.data_norm_type)
    features, extras = [], []
    for image in prepared.images:
        encoded, extra = model.encode_images(torch.from_numpy(image))
        features.append(encoded)
        extras.append(extra)
    outputs: dict[str, Tensor] = {"patch_features": torch.cat(features)}
    fused = outputs["patch_features"].clone()
    for index, known in enumerate(prepared.geometry):
        if known is not None and known.has_any:
            inputs = geometry_inputs([known], 1, prepared.height, prepared.width)
            fused[index] += model.encode_geometry(**{k: torch.from_numpy(v) for k, v in inputs.items()})[0]
    joined = None if extras[0] is None else torch.cat(_present(extras))[None]
    maps, scale = model.aggregate(fused[None], joined)
    outputs |= {f"view_features_{i}": value[0] for i, value in enumerate(maps)}
    outputs["metric_scaling_factor"] = scale[0]
    return {name: value.numpy() for name, value in outputs.items()}


def _present(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]
