"""What a bundle of ONNX stages is going to be, decided before the first file is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.checks.parity import measure_parity

from ..graphs.tracing import AttentionExport
from ..model.reference import MapAnything
from ..quantization import QuantizedNetwork
from .parity_cases import GOLDEN
from .references import ReferencePredictions
from .tolerances import AUTOCAST_MARGIN, TOLERANCE, check_rounding, rounding_tolerance


@dataclass(frozen=True)
class GraphRecipe:
    """Everything that is decided about the ONNX stages of a bundle.

    Attributes:
        model: float32 reference on the CPU.
        weights_sha256: hash of its weights.
        precision: of the bundle: ``"fp32"``, ``"fp16"``, ``"bf16"``, ``"int8"`` or ``"fp8"``.
        attention: form that it is written in. mha_layers: attention modules that are ``mha`` all the same.
        requests: that the bundle serves.
        backend: that the bundle is checked with; None to run the graphs as they say in ONNX Runtime.
        quantized: the network that is written in 8 bits; None for the other precisions.
        rest: precision of what is not in 8 bits; that of the bundle where nothing is.
        stored: precision of the files. It is float32 for BF16 on a CPU, where the backend rounds.
        reference: what the reference predicts for the inputs of the checks.
        tolerance: allowed difference per output in the golden check, relative to its largest value.
    """

    model: MapAnything
    weights_sha256: str
    precision: str
    attention: AttentionExport
    mha_layers: Collection[str]
    requests: ServedRequests
    backend: str | None
    quantized: QuantizedNetwork | None
    rest: str
    stored: str
    reference: ReferencePredictions
    tolerance: Mapping[str, float]

    @property
    def rounded_by_backend(self) -> bool:
        """Whether the files are float32 and the backend computes in another type."""
        return self.rest != self.stored

    @property
    def rewritten_for_processors(self) -> bool:
        """Whether the graphs are rewritten for the libraries on processors: where both run them in float32, or OpenVINO
        alone runs them."""
        return self.rounded_by_backend or (self.backend is not None and self.precision == "fp32")


def decide_graphs(
    model: MapAnything,
    *,
    precision: str,
    attention: AttentionExport,
    requests: ServedRequests,
    weights_sha256: str,
    backend: str | None = None,
    quantized: QuantizedNetwork | None = None,
    rest: str | None = None,
    mha_layers: Collection[str] = (),
) -> GraphRecipe:
    """Decide what :func:`.onnx.write_onnx_bundle` writes, and measure what its golden check has to allow for.

    Args:
        rest: of int8 and fp8: ``"fp32"``, ``"fp16"`` or ``"bf16"``. By default float32 with a ``backend`` and float16
            without one, as the CPU backends have no float16 kernels.
        model, precision, attention, requests, weights_sha256, backend, quantized, mha_layers: see
            :class:`GraphRecipe`.
    """
    if quantized is None:
        rest = precision
    elif rest is None:
        rest = "fp32" if backend is not None else "fp16"
    stored = "fp32" if rest == "bf16" and backend is not None else rest
    reference = ReferencePredictions(model, requests)
    if stored == rest:
        limits = dict.fromkeys(reference[GOLDEN][0], TOLERANCE[rest])
    else:
        limits = _autocast_tolerance(model, reference)
    if quantized is not None:
        pairs = reference.pairs(quantized.predict)
        added = rounding_tolerance(*pairs, "PyTorch, rounding")  # refuses what is not finite
        check_rounding(*pairs, precision)
        limits = {key: limits[key] + added[key] for key in added}
    return GraphRecipe(
        model=model,
        weights_sha256=weights_sha256,
        precision=precision,
        attention=attention,
        mha_layers=mha_layers,
        requests=requests,
        backend=backend,
        quantized=quantized,
        rest=rest,
        stored=stored,
        reference=reference,
        tolerance=limits,
    )


def _autocast_tolerance(model: MapAnything, reference: ReferencePredictions) -> dict[str, float]:
    """Return the allowed difference per output where the backend rounds to BF16, from what BF16 autocast costs."""
    with torch.autocast("cpu", torch.bfloat16):
        found = model.predict(reference.inputs[GOLDEN], use_amp=False)
    parity = measure_parity({GOLDEN: found}, {GOLDEN: reference[GOLDEN]}, "PyTorch, BF16 autocast")
    return {key: max(TOLERANCE["bf16"], AUTOCAST_MARGIN * output.max_rel) for key, output in parity.outputs.items()}
