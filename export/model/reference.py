"""The PyTorch reference: ``load_model`` and ``infer`` with the contract of the engine, in torch tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapengine.runtime.backends.host_pipeline import geometry_inputs
from mapengine.runtime.inference import MultiViewInference
from mapengine.runtime.inputs.prepared import PreparedViews
from mapengine.runtime.options import OUTPUTS, InferOptions, Progress
from mapengine.runtime.postprocessing.scene_stage import (
    PASSED_ON,
    READS,
    option_values,
    present_outputs,
    runs_in_stage,
)

from .checkpoint import weights_sha256
from .config import ModelConfig
from .hub import resolve_model
from .network import HeadOutputs, MapAnythingNetwork, ViewFeatures
from .postprocessing import PostProcessing

_AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


class MapAnything(MapAnythingNetwork, MultiViewInference):
    """The reference network with its origin and ``infer``. Float32 (or float64 after ``double()``).

    ``infer`` returns tensors on the model's device. ``use_amp`` acts on CUDA only, as mixed precision is slower and
    less exact than float32 on a CPU: there the reference always runs in its parameters' type.
    """

    def __init__(self, config: ModelConfig, model_id: str = "", revision: str | None = None) -> None:
        super().__init__(config)
        self.model_id = model_id
        self.revision = revision
        self.data_norm_type = config.data_norm_type
        self.finishes_in_numpy = False
        """Whether post-processing is the module's twin in NumPy, which is several times faster on a processor."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.scale_token.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.scale_token.dtype

    def weights_hash(self) -> str:
        """Return the SHA-256 over names, shapes and float32 values; independent of the file format."""
        return weights_sha256(self.state_dict())

    def forward(self, views: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run ``infer`` without mask and without reduced precision."""
        return self.infer(views, use_amp=False, apply_mask=False)

    def _dtype(self) -> str:
        return "float64" if self.dtype == torch.float64 else "float32"

    def _output(self, value: NDArray[Any]) -> Tensor:
        return torch.from_numpy(value).to(self.device)

    def _predict(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, heads: Collection[str]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        for _, outputs, scale in self._decoded(prepared, options, progress):
            named = {**outputs._asdict(), "scale": scale}
            yield from _by_view({name: named[name] for name in named if name in heads}, len(scale), prepared.batch)

    def _predict_finished(
        self,
        prepared: PreparedViews,
        options: InferOptions,
        progress: Progress | None,
        outputs: Collection[str],
        into: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    ) -> Iterator[dict[str, NDArray[Any]]] | None:
        if self.finishes_in_numpy or not runs_in_stage(options):
            return None
        return self._finished(prepared, options, progress, outputs)

    @torch.inference_mode()
    def _finished(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None, outputs: Collection[str]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        finish = PostProcessing(self.data_norm_type)
        values = self._tensor(option_values(options, prepared.height * prepared.width, self._dtype()))
        shape = prepared.batch, prepared.height, prepared.width
        for start, heads, scale in self._decoded(prepared, options, progress):
            stop = start + len(scale) // prepared.batch
            kept = [np.ones(shape, bool) if mask is None else mask for mask in prepared.masks[start:stop]]
            inputs = {name: getattr(heads, head) for name, head in READS.items()}
            found = finish(
                **inputs,
                metric_scaling_factor=scale,
                images=self._tensor(np.concatenate(prepared.images[start:stop])),
                kept=torch.from_numpy(np.concatenate(kept)).to(self.device),
                options=values,
            )._asdict()
            found |= {name: getattr(heads, head) for name, head in PASSED_ON.items()}
            found["metric_scaling_factor"] = scale
            views = _by_view({name: found[name] for name in OUTPUTS if name in outputs}, len(scale), prepared.batch)
            for view, mask in zip(views, prepared.masks[start:stop], strict=True):
                present = present_outputs(outputs, options, mask)
                yield {name: value for name, value in view.items() if name in present}

    @torch.inference_mode()
    def _decoded(
        self, prepared: PreparedViews, options: InferOptions, progress: Progress | None
    ) -> Iterator[tuple[int, HeadOutputs, Tensor]]:
        """Yield a chunk of views at a time: the first view, what the heads say, and the scale (N, 1)."""
        views, batch = len(prepared.images), prepared.batch
        report = progress or (lambda stage, done, total: None)
        with self._autocast(options.reduced_precision):
            features, extra = self.encode_images(self._tensor(np.concatenate(prepared.images)))
        features = features.to(self.dtype)
        report("image_encoder", views, views)
        given = [(i, g) for i, g in enumerate(prepared.geometry) if g is not None and g.has_any]
        if given:
            inputs = geometry_inputs([g for _, g in given], batch, prepared.height, prepared.width, self._dtype())
            added = self.encode_geometry(**{name: self._tensor(value) for name, value in inputs.items()})
            rows = [view * batch + sample for view, _ in given for sample in range(batch)]
            features[rows] += added
            report("geometry_encoder", len(given), len(given))
        with self._autocast(options.reduced_precision):
            maps, scale = self.aggregate(
                _per_sample(features, views, batch), None if extra is None else _per_sample(extra, views, batch)
            )
        report("aggregator", views, views)
        maps = ViewFeatures(*(x.transpose(0, 1).reshape(-1, *x.shape[2:]).to(self.dtype) for x in maps))
        chunk = options.head_chunk(views) or 1
        for start in range(0, views, chunk):
            stop = min(start + chunk, views)
            outputs = self.decode(ViewFeatures(*(x[start * batch : stop * batch] for x in maps)))
            yield start, outputs, scale.to(self.dtype).repeat(stop - start, 1)
            report("dense_head", stop, views)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    def _autocast(self, amp_dtype: str | None) -> contextlib.AbstractContextManager[Any]:
        if amp_dtype not in _AMP or self.device.type != "cuda":
            return contextlib.nullcontext()
        return torch.autocast("cuda", _AMP[amp_dtype])


def load_model(model: str | Path, revision: str | None = None, device: str = "cpu") -> MapAnything:
    """Load a network for reference runs and export.

    Args:
        model: Hub id, local folder in upstream's format, weight file with ``config.json`` beside it, or a preset such
            as ``preset:tiny``.
        revision: branch, tag or commit of a Hub repository.
        device: torch device.

    Returns:
        The network in eval mode, float32, every tensor accounted for.

    Raises:
        ModelNotFoundError: nothing of that name, or a Hub id that is neither cached nor reachable.
        ConfigError: a configuration that mapengine does not support.
        CheckpointError: tensors that are missing, unexpected, damaged or of the wrong shape.
    """
    resolved = resolve_model(model, revision)
    with torch.device("meta"):  # nothing is allocated or initialised that the checkpoint replaces
        network = MapAnything(resolved.config, resolved.model_id, resolved.revision)
    network.load_state_dict(resolved.tensors, strict=True, assign=True)
    return network.requires_grad_(False).eval().to(device)


def _per_sample(x: Tensor, views: int, batch: int) -> Tensor:
    """Reorder view-major (V * B, ...) -> (B, V, ...)."""
    return x.reshape(views, batch, *x.shape[1:]).transpose(0, 1)


def _by_view(tensors: Mapping[str, Tensor], count: int, batch: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the arrays of one view after the other from view-major tensors of ``count`` rows."""
    arrays = {name: _array(tensor) for name, tensor in tensors.items()}
    for first in range(0, count, batch):
        yield {name: array[first : first + batch] for name, array in arrays.items()}


def _array(x: Tensor) -> NDArray[Any]:
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()  # NumPy has no bfloat16
