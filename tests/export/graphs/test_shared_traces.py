"""The tests' own cache of traces tells stages apart that compute different things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mapengine.export.graphs import trace, tracing

from ...shared_traces import share_traces

NAMES = {"input_names": ["x"], "output_names": ["y"]}


class Small(nn.Module):
    def __init__(self, factor: float = 2.0, weight: float = 1.0, first: str = "a") -> None:
        super().__init__()
        self.factor = factor
        for name in sorted(("a", "b"), key=lambda name: name != first):
            self.register_parameter(name, nn.Parameter(torch.tensor([weight])))
        self.first = first
        self.unused = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * getattr(self, self.first) + self.factor


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[nn.Module]:
    """The modules that are traced and not read from the cache."""
    modules: list[nn.Module] = []

    def trace(module: nn.Module, examples: tuple[Tensor, ...], **options: Any) -> ir.Model:
        modules.append(module)
        graph = ir.Graph([], [], nodes=[], opset_imports={"": options["opset_version"]}, name=f"trace {len(modules)}")
        return ir.Model(graph, ir_version=10)

    monkeypatch.setattr(tracing, "trace_graph", trace)
    share_traces(monkeypatch, tmp_path)
    return modules


def export(module: nn.Module, rows: int = 2, opset_version: int = 20) -> str:
    return str(tracing.trace_graph(module, (torch.ones(rows, 3),), **NAMES, opset_version=opset_version).graph.name)


def test_the_same_stage_is_traced_once(traced: list[nn.Module]) -> None:
    assert export(Small()) == export(Small()) == "trace 1"
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Small(factor=3.0), {}),
        (Small(weight=1.5), {}),
        (Small(first="b"), {}),
        (nn.Sequential(Small(), nn.ReLU()), {}),
        (Small(), {"rows": 4}),
        (Small(), {"opset_version": 18}),
    ],
)
def test_another_stage_is_traced_again(module: nn.Module, options: dict[str, int], traced: list[nn.Module]) -> None:
    export(Small())
    assert export(module, **options) == "trace 2"
    assert len(traced) == 2


class Layers(nn.Module):
    """Weights that the exporter stores transposed, expanded to a matrix, or as they are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.token = nn.Parameter(torch.rand(1, 32))
        self.square = nn.Linear(32, 32)
        self.scale = nn.Parameter(torch.full((32,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.square(x + self.token.expand(1, 1, 32)[0])


class Mixed(Layers):
    """One constant of the trace is computed from several weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.square(self.token)[0]


@pytest.mark.slow
def test_networks_that_differ_in_their_weights_share_a_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    share_traces(monkeypatch, tmp_path)
    x = torch.rand(2, 32)

    def right(module: nn.Module) -> bool:
        model = tracing.trace_graph(module.eval(), (x,), **NAMES, opset_version=20)
        (found,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x.numpy()})
        with torch.inference_mode():
            return np.allclose(found, module(x).numpy(), atol=1e-5)

    def traces() -> int:
        return len(list(tmp_path.rglob("*.onnx")))

    assert right(Layers(1))
    assert right(Layers(2))
    assert traces() == 1
    uniform = Layers(3)
    nn.init.zeros_(uniform.square.weight)
    assert right(uniform)
    assert traces() == 2
    assert right(Mixed(1))
    assert right(Mixed(2))
    assert traces() == 4


@pytest.mark.slow
def test_a_process_captures_a_program_once_for_all_opsets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    captured: list[nn.Module] = []
    capture = trace.capture_program

    def counted(module: nn.Module, *more: Any) -> Any:
        captured.append(module)
        return capture(module, *more)

    def traced(module: nn.Module, opset_version: int) -> bytes:
        model = tracing.trace_graph(module.eval(), (torch.ones(2, 32),), **NAMES, opset_version=opset_version)
        assert model.opset_imports[""] == opset_version
        return ir.to_proto(model).SerializeToString()

    monkeypatch.setattr(tracing, "trace_graph", trace.trace_graph)
    monkeypatch.setattr(trace, "capture_program", counted)
    fresh = [traced(Layers(1), version) for version in (20, 18, 23)]
    assert len(captured) == 3
    share_traces(monkeypatch, tmp_path)
    assert [traced(Layers(1), version) for version in (20, 18, 23)] == fresh
    assert len(captured) == 4
    traced(Mixed(1), 20)
    assert len(captured) == 5
