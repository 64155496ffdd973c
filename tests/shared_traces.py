"""Traces of stages that tests, workers and runs share: tracing is most of the time of a build.

A trace is found again by the operations that the stage runs, the names and shapes of the weights it uses, and the code
that decides how it is traced. Networks that differ in their weights alone share a trace: each gets its own weights in
it. A stage that is traced for several opsets by one process is captured once, as only its translation to ONNX differs.
Whatever follows the trace (names, metadata, precision, files) is computed in every test.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from mapengine.export.graphs import trace, tracing

from .shared_folders import folder_of_code

EXPORT = Path(__file__).parents[1] / "export"
GRAPHS = [EXPORT / "graphs" / name for name in ("stages.py", "trace.py", "exporter.py", "recording.py")]
SOURCES = (
    *(EXPORT / "model" / "network").glob("*.py"),
    EXPORT / "model" / "postprocessing.py",
    *GRAPHS,
    Path(__file__),
)

SMALL = 16
"""A weight of at most so many numbers, or of one value throughout, is part of what decides a trace: the exporter leaves
out products with 1, for example."""

PROGRAMS = 16
"""Captured programs that a process keeps; they hold the weights of their networks."""

_MARK = "weight"


def share_traces(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep what ``trace_graph`` returns in ``folder``, and return it again for a stage that computes the same."""
    current = folder_of_code(folder, SOURCES, ["torch", "onnxscript"])
    patch.setattr(tracing, "trace_graph", _shared(tracing.trace_graph, current))
    patch.setattr(tracing, "record_graph", _recorded(tracing.record_graph, current))


def _shared(trace_graph: Callable[..., ir.Model], folder: Path) -> Callable[..., ir.Model]:
    capture_once = _captured_once(trace.capture_program)

    def trace_once(module: nn.Module, examples: tuple[Tensor, ...], **options: Any) -> ir.Model:
        found = _Operations.of(module, examples)
        found.digest.update(repr(sorted(options.items())).encode())
        name = found.digest.hexdigest()[:32]
        shared, own = folder / f"{name}.onnx", folder / f"{name}-{_digest_of_values(found.weights)}.onnx"
        with FileLock(f"{shared}.lock"):
            if not shared.exists() and not own.exists():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(trace, "capture_program", capture_once)
                    model = trace_graph(module, examples, **options)
                target = shared if _mark_weights(model, found.weights) else own
                ir.save(model, target.with_suffix(".partial"))
                target.with_suffix(".partial").rename(target)
        model = ir.load(shared if shared.exists() else own)
        _set_weights(model, found.weights)
        return model

    return trace_once


def _captured_once(capture: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    programs: dict[str, ExportedProgram] = {}

    def capture_once(module: nn.Module, examples: tuple[Tensor, ...], dynamic_shapes: Any) -> ExportedProgram:
        found = _Operations.of(module, examples)
        name = f"{found.digest.hexdigest()} {_digest_of_values(found.weights)} {dynamic_shapes!r}"
        if name not in programs:
            if len(programs) == PROGRAMS:
                del programs[next(iter(programs))]
            programs[name] = capture(module, examples, dynamic_shapes)
        return programs[name]

    return capture_once


def _recorded(record: Callable[..., ir.Model], folder: Path) -> Callable[..., ir.Model]:
    def record_once(module: nn.Module, *arguments: Any, **options: Any) -> ir.Model:
        # It has no weights: what it is made with is all that its graph depends on.
        made_with = [(name, sorted(vars(part).items())) for name, part in module.named_modules() if name]
        key = repr([made_with, sorted(options.items())]).encode()
        kept = folder / f"{hashlib.sha256(key).hexdigest()[:32]}.onnx"
        with FileLock(f"{kept}.lock"):
            if not kept.exists():
                ir.save(record(module, *arguments, **options), kept.with_suffix(".partial"))
                kept.with_suffix(".partial").rename(kept)
        return ir.load(kept)

    return record_once


def _digest_of_values(weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for _, values in sorted(weights.items()):
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _mark_weights(model: ir.Model, weights: Mapping[str, np.ndarray]) -> bool:
    """Note at every constant which weight it is, and whether transposed; false if that cannot be told of each."""
    marked = set()
    for constant in model.graph.initializers.values():
        assert constant.const_value is not None
        values = constant.const_value.numpy()
        folded = ast.literal_eval(constant.metadata_props.get("pkg.onnxscript.optimizer.folded_from", "[]"))
        sources = {str(constant.name), *folded} & set(weights)
        if not sources:
            if not (folded or _decides(values) or values.dtype.kind in "iub"):
                return False  # computed from weights, perhaps
            continue
        weight = weights[name := min(sources)]
        # One that the exporter renamed it has folded, as the transposition of a linear layer.
        forms = (False, True) if constant.name != name and weight.ndim == 2 and min(weight.shape) > 1 else (False,)
        transposed = [form for form in forms if _is(weight, form, values)]
        if len(sources) > 1 or len(transposed) != 1:
            return False
        constant.metadata_props[_MARK] = f"{name} {transposed[0]}"
        marked.add(name)
    return marked == set(weights)


def _is(weight: np.ndarray, transposed: bool, values: np.ndarray) -> bool:
    return np.array_equal((weight.T if transposed else weight).reshape(-1), values.reshape(-1))


def _set_weights(model: ir.Model, weights: Mapping[str, np.ndarray]) -> None:
    """Put the weights of another network in the place of those that were traced."""
    for constant in model.graph.initializers.values():
        name, _, transposed = constant.metadata_props.pop(_MARK, "").partition(" ")
        if name:
            assert constant.const_value is not None
            values = weights[name].T if transposed == "True" else weights[name]
            shaped = np.ascontiguousarray(values.reshape(constant.const_value.shape.numpy()))
            constant.const_value = ir.tensor(shaped, name=constant.name)


def _decides(values: np.ndarray) -> bool:
    return values.size <= SMALL or bool((values == values.flat[0]).all())


class _Operations(TorchDispatchMode):
    """Digests the operations that run, and the names of the weights among their arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self.weights: dict[str, np.ndarray] = {}
        """Values that do not decide the trace."""
        self._known = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}

    @classmethod
    def of(cls, module: nn.Module, examples: tuple[Tensor, ...]) -> _Operations:
        """Run the module."""
        found = cls(module)
        with torch.inference_mode(), found:
            module(*examples)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.digest.update(str(func).encode())
        self._add([args, kwargs])
        return func(*args, **(kwargs or {}))

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            name = self._known.get(id(value))
            self.digest.update(f"{value.dtype} {tuple(value.shape)} {name}".encode())
            if name is not None and name not in self.weights:
                values = value.detach().contiguous().numpy()
                if _decides(values):
                    self.digest.update(values.tobytes())
                else:
                    self.weights[name] = values
        elif isinstance(value, (list, tuple)):
            for part in value:
                self._add(part)
        elif isinstance(value, dict):
            self._add(sorted(value.items()))
        else:
            self.digest.update(repr(value).encode())
