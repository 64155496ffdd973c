"""Run ``torch.onnx.export`` without what it computes twice, which is half of its time.

It makes its table of ONNX functions anew for every graph, and evaluates the whole program to find where types are
promoted, although the capture has left the value of every node at the node. Both are internals of PyTorch: a version
that has others runs as it is, to the same graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram


def export_program(program: ExportedProgram, **options: Any) -> torch.onnx.ONNXProgram | None:
    """Return the ONNX program of ``program``; ``options`` are those of ``torch.onnx.export``."""
    with _computed_once():
        return torch.onnx.export(program, dynamo=True, verbose=False, **options)


@contextmanager
def _computed_once() -> Iterator[None]:
    try:
        from torch.onnx._internal.exporter import _registration
        from torch.onnx._internal.fx.passes import type_promotion

        registry: Any = _registration.ONNXRegistry
        interpreter: Any = type_promotion._TypePromotionInterpreter
        promoted = _promoted(interpreter._set_current_node, interpreter._maybe_promote_node, type_promotion)
        make_table, run_node = vars(registry)["from_torchlib"], interpreter.run_node
    except (ImportError, AttributeError, KeyError):  # another version of PyTorch
        yield
        return
    try:
        registry.from_torchlib = staticmethod(functools.partial(_table, registry.from_torchlib))
        interpreter.run_node = promoted
        yield
    finally:
        registry.from_torchlib, interpreter.run_node = make_table, run_node


def _promoted(set_current: Any, promote: Any, rules: Any) -> Callable[[Any, fx.Node], Any]:
    rule_of = rules.get_type_promotion_rule

    def run_node(interpreter: Any, node: fx.Node) -> Any:
        with set_current(interpreter, node):
            if rule := rule_of(node, interpreter.type_promotion_table):
                promote(interpreter, node, rule)  # which evaluates what it changes
        if node.op == "call_function" and "val" in node.meta:
            return node.meta["val"]
        return fx.Interpreter.run_node(interpreter, node)

    return run_node


@functools.cache
def _table(make: Callable[..., Any], opset_version: int) -> Any:
    """Return the table that ``make`` makes, one per opset in this process; nothing of ours adds functions to it."""
    return make(opset_version=opset_version)
