"""Traces of stages that tests, workers and runs share: tracing is most of the time of a build.

A trace is found again by the operations that the stage runs, the weights it uses, and the code that decides how it is
traced. Whatever follows the trace (names, metadata, precision, files) is computed in every test.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

EXPORT = Path(__file__).parents[1] / "export"
SOURCES = (*(EXPORT / "model" / "network").glob("*.py"), EXPORT / "graphs" / "stages.py")


def share_traces(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep what ``torch.onnx.export`` returns in ``folder``, and return it again for a stage that computes the same."""
    code = hashlib.sha256(repr([importlib.metadata.version(name) for name in ("torch", "onnxscript")]).encode())
    for source in sorted(SOURCES):
        code.update(source.read_bytes())
    current = folder / code.hexdigest()[:16]
    current.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if other != current:  # of older code
            shutil.rmtree(other, ignore_errors=True)
    patch.setattr(torch.onnx, "export", _shared(torch.onnx.export, current))


def _shared(trace: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    def export(module: nn.Module, examples: tuple[Tensor, ...], **options: Any) -> Any:
        path = folder / f"{_digest(module, examples, options)}.onnx"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                program = trace(module, examples, **options)
                ir.save(program.model, path.with_suffix(".partial"))
                path.with_suffix(".partial").rename(path)
        return SimpleNamespace(model=ir.load(path))

    return export


def _digest(module: nn.Module, examples: tuple[Tensor, ...], options: dict[str, Any]) -> str:
    """Digest of all that decides a trace: the operations with their constants, the weights they use, the options."""
    found = _Operations(module)
    with torch.inference_mode(), found:
        module(*examples)
    found.digest.update(repr(sorted(options.items())).encode())
    return found.digest.hexdigest()[:32]


class _Operations(TorchDispatchMode):
    """Digests the operations that run, and the names and values of the parameters among their arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.digest = hashlib.sha256()
        self._known = {id(value): name for name, value in (*module.named_parameters(), *module.named_buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.digest.update(str(func).encode())
        self._add([args, kwargs])
        return func(*args, **(kwargs or {}))

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.digest.update(f"{value.dtype} {tuple(value.shape)} {self._known.get(id(value))}".encode())
            if id(value) in self._known:
                self.digest.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, (list, tuple)):
            for part in value:
                self._add(part)
        elif isinstance(value, dict):
            self._add(sorted(value.items()))
        else:
            self.digest.update(repr(value).encode())
