from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mapengine.export.graphs.trace import trace_graph
from mapengine.runtime.errors import ExportError


class Rewritten(nn.Module):
    """Every operation that is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        n, _, h, w = x.shape
        swapped = x.reshape(n, 2, 2, h, w).permute(0, 2, 1, 3, 4).reshape(n, 4, h, w)  # moves values in memory
        first, second = self.up(swapped.to(dtype)).chunk(2, dim=1)
        both = (1 - first > 0) & (second > 0)
        return torch.arange(n).to(dtype)[:, None, None, None] + both.to(dtype)


class Decomposed(nn.Module):
    """An operation that the exporter has to break up."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softshrink(1 - x, 0.25)


def graphs(module: nn.Module) -> tuple[ir.Model, ir.Model]:
    """The graph of ``trace_graph`` and that of the exporter alone."""
    options: dict[str, Any] = {
        "dynamic_shapes": ({0: Dim("n", max=64), 2: Dim("h", max=64), 3: Dim("w", max=64)},),
        "input_names": ["x"],
        "output_names": ["y"],
        "opset_version": 20,
    }
    x = torch.rand(3, 4, 5, 7)
    module = module.eval()
    exported = torch.onnx.export(module, (x,), dynamo=True, verbose=False, **options)
    assert exported is not None
    return trace_graph(module, (x,), **options), exported.model


@pytest.mark.slow
@pytest.mark.parametrize("module", [Rewritten(), Decomposed()], ids=["rewritten", "decomposed"])
def test_the_graph_is_that_of_the_exporter(module: nn.Module) -> None:
    found, exported = graphs(module)
    operators, expected = (Counter(node.op_type for node in model.graph) for model in (found, exported))
    assert operators == expected
    session = onnxruntime.InferenceSession(ir.to_proto(found).SerializeToString())
    for shape in ((3, 4, 5, 7), (1, 4, 1, 1), (2, 4, 6, 3)):
        x = torch.rand(shape) * 4 - 2
        (y,) = session.run(None, {"x": x.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(y, module(x).numpy(), atol=1e-6)


class Impossible(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_an_error_of_ours() -> None:
    with pytest.raises(ExportError, match=r"^tracing to ONNX opset 20 failed \("):
        trace_graph(Impossible(), (torch.rand(2),), input_names=["x"], output_names=["y"], opset_version=20)
