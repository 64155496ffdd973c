"""From a PyTorch module to an ONNX graph by running it once: PyTorch's older tracer.

The newer one reasons about the symbolic size of everything. For hundreds of small operations that takes a minute, and
for what this one traces it finds nothing: sizes are whatever the inputs have.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from mapengine.runtime.errors import ExportError

_TIDY = ir.passes.Sequential(
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.DeduplicateInitializersPass(),
    passes.IdentityEliminationPass(),
    passes.CommonSubexpressionEliminationPass(),
    passes.RemoveUnusedNodesPass(),
)
"""What the older tracer leaves to do."""


def record_graph(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    *,
    dynamic_axes: Mapping[str, Mapping[int, str]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset_version: int,
) -> ir.Model:
    """Trace a module without weights, and without branches that depend on values.

    Raises:
        ExportError: it cannot be traced.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says of itself that it is the older one
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "traced.onnx"
            torch.onnx.export(
                module,
                examples,
                path,
                dynamo=False,
                dynamic_axes=dynamic_axes,
                input_names=input_names,
                output_names=output_names,
                opset_version=opset_version,
            )
            model = ir.from_proto(onnx.load(path))
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"tracing to ONNX opset {opset_version} failed ({error}).") from error
    finally:
        logger.setLevel(level)
    _TIDY(model)
    return model
