from __future__ import annotations

import functools
import sys
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from mapengine.export.graphs.exporter import export_program
from mapengine.export.graphs.trace import capture_program

pytestmark = pytest.mark.slow

INTERNALS = {"exporter._registration": "ONNXRegistry", "fx.passes.type_promotion": "_TypePromotionInterpreter"}


class Promoted(nn.Module):
    """Whole numbers and truths where there are fractions."""

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.arange(x.shape[0])[:, None]
        return (x + 1).clamp(0, 2) / 3 + whole * 0.5 + (x > 1) * x + (whole == 1)


def graph(export: Any, **options: Any) -> bytes:
    shapes = ({0: Dim("n", max=64)},)
    with torch.inference_mode():
        program = capture_program(Promoted().eval(), (torch.rand(3, 4),), shapes)
    found = export(program, input_names=["x"], output_names=["y"], opset_version=20, **options)
    return ir.to_proto(found.model).graph.SerializeToString()


@functools.cache
def exporters_graph() -> bytes:
    return graph(torch.onnx.export, dynamo=True, verbose=False)


@pytest.mark.parametrize("hidden", [None, *INTERNALS])
def test_the_graph_is_that_of_the_exporter_and_leaves_it_as_it_was(
    hidden: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = exporters_graph()
    modules = {name: sys.modules[f"torch.onnx._internal.{name}"] for name in INTERNALS}
    before = [dict(vars(getattr(modules[name], owner))) for name, owner in INTERNALS.items()]
    if hidden is None:
        assert graph(export_program) == expected
    else:  # as in a version of PyTorch with other internals
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, f"torch.onnx._internal.{hidden}", None)
            assert graph(export_program) == expected
    assert before == [dict(vars(getattr(modules[name], owner))) for name, owner in INTERNALS.items()]
