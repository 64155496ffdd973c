"""The PyTorch baselines of a profile: this project's reference, eager or compiled, and upstream's own package."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mapengine.runtime.errors import BackendUnavailableError, InputError
from mapengine.runtime.inputs.prepared import prepare_raw
from mapengine.runtime.inputs.preprocess import each_resized
from mapengine.runtime.inputs.sources import read_views
from mapengine.runtime.outputs.scene import SCENE_OUTPUTS, Scene
from mapengine.runtime.profiling import Contender
from mapengine.runtime.profiling.subjects import StageClock, phases

from ..model.reference import MapAnything, load_model

BASELINES = ("pytorch", "pytorch-bf16", "pytorch-fp16", "pytorch-compile", "pytorch-compile-bf16", "upstream")
"""Eager float32; with autocast, as upstream uses it; compiled; upstream's package where it is installed."""

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def baseline(name: str, model: str, threads: int | None, device: str | None = None) -> Contender:
    """Open a contender by name.

    Args:
        name: of :data:`BASELINES`.
        model: what ``load_model`` takes; for upstream what its ``from_pretrained`` takes.
        threads: processor threads; by default PyTorch's.
        device: torch device; by default a GPU if PyTorch has one.

    Raises:
        InputError: no such baseline.
    """
    if name not in BASELINES:
        raise InputError(f"there is no baseline {name!r}; use some of {', '.join(BASELINES)}")
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "upstream":
        return Contender("upstream", partial(UpstreamSubject, model, where))
    amp = next((short for short in _AMP if name.endswith(short)), None)
    return Contender(name, partial(TorchSubject, model, amp, "compile" in name, threads, where))


def compile_stages(network: MapAnything) -> None:
    """Let ``torch.compile`` compile every stage of a network when it is called first."""
    for stage in ("encode_images", "encode_geometry", "aggregate", "decode"):
        setattr(network, stage, torch.compile(getattr(network, stage)))


class TorchSubject:
    """This project's reference network; see :class:`mapengine.runtime.profiling.subjects.Subject`."""

    def __init__(self, model: str, amp: str | None, compiled: bool, threads: int | None, device: str) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._network = load_model(model, device=device)
        self._network.finishes_in_numpy = (
            torch.device(device).type == "cpu"
        )  # as the engine's, so that networks compare
        self._amp, self._device = amp, torch.device(device)
        if compiled:
            compile_stages(self._network)
        self.facts: dict[str, Any] = {
            "kind": "pytorch",
            "model": self._network.model_id,
            "weights_sha256": self._network.weights_hash(),
            "config": self._network.config.source,
            "precision": amp or "fp32",
            "backend": "torch.compile" if compiled else "torch eager",
            "backend_version": torch.__version__,
            "device": torch.cuda.get_device_name() if self._device.type == "cuda" else "CPU",
        }

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """See :class:`mapengine.runtime.profiling.subjects.Subject`."""
        start = time.perf_counter()
        raw = read_views(list(files))
        views = list(each_resized(raw, size, partial(prepare_raw, data_norm_type=self._network.data_norm_type)))
        loaded = time.perf_counter()
        clock = StageClock(torch.cuda.synchronize if self._device.type == "cuda" else None)
        autocast = torch.autocast("cpu", _AMP[self._amp]) if self._amp and self._device.type == "cpu" else None
        with autocast or contextlib.nullcontext():
            found = self._network.infer(
                views,
                use_amp=self._amp is not None,
                amp_dtype=self._amp or "fp32",
                outputs=SCENE_OUTPUTS,
                progress=clock,
            )
        predictions = [{key: value.cpu().numpy() for key, value in p.items()} for p in found]
        Scene.from_predictions(predictions, [view.name for view in raw])
        return phases(clock, start, loaded, time.perf_counter())

    def device_seconds(self) -> dict[str, float] | None:
        """Return nothing: PyTorch does not tell."""
        return None

    def device_bytes(self) -> int | None:
        """Return the most memory that PyTorch took on the GPU."""
        return int(torch.cuda.max_memory_allocated()) if self._device.type == "cuda" else None


class UpstreamSubject:
    """Upstream's own package, as its documentation runs it: ``load_images`` and ``infer`` with autocast."""

    def __init__(self, model: str, device: str) -> None:
        if importlib.util.find_spec("mapanything") is None:
            raise BackendUnavailableError("upstream's package is not installed (mapanything)")
        network: Any = importlib.import_module("mapanything.models").MapAnything.from_pretrained(model)
        self._network, self._device = network.to(device).eval(), device
        self._load: Callable[..., Any] = importlib.import_module("mapanything.utils.image").load_images
        self.facts: dict[str, Any] = {"kind": "upstream", "model": model, "precision": "bf16", "backend": "upstream"}
        self.facts |= {"backend_version": torch.__version__, "device": device}

    def call(self, files: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
        """See :class:`mapengine.runtime.profiling.subjects.Subject`."""
        start = time.perf_counter()
        views = self._load(list(files), resize_mode="fixed_size", size=size)
        loaded = time.perf_counter()
        with torch.inference_mode():
            found = self._network.infer(views, memory_efficient_inference=True, use_amp=True, amp_dtype="bf16")
        inferred = time.perf_counter()
        points = [np.asarray(prediction["pts3d"].float().cpu()) for prediction in found]
        end = time.perf_counter()
        assert len(points) == len(files)
        return {
            "pre-processing": loaded - start,
            "network": inferred - loaded,
            "post-processing": end - inferred,
            "total": end - start,
        }

    def device_seconds(self) -> dict[str, float] | None:
        """Return nothing: upstream does not tell."""
        return None

    def device_bytes(self) -> int | None:
        """Return the most memory that PyTorch took on the GPU."""
        return int(torch.cuda.max_memory_allocated()) if self._device.startswith("cuda") else None
