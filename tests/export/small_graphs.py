"""Graphs of a few nodes, written and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def save_graph(path: Path, nodes: Sequence[Any], ends: Sequence[Any], stored: Mapping[str, np.ndarray]) -> None:
    """Write a graph of one input and one output, with its constants."""
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "stage", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)


def run_graph(path: Path, x: np.ndarray) -> np.ndarray:
    """The output of a graph for its input ``x``, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])
