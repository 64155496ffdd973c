"""From a MapAnything checkpoint to an engine bundle; needs PyTorch and ONNX.

    from mapengine.export import load_model, build_engine

    model = load_model("preset:tiny")
    build_engine(model, "build/engine")

`compile_engine`, which makes a bundle for a GPU from a finished ONNX bundle, works without PyTorch, so nothing is
imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_engine
    from .compile import compile_engine
    from .graphs.tracing import export_stages
    from .model.reference import MapAnything, load_model

__all__ = ["MapAnything", "build_engine", "compile_engine", "export_stages", "load_model"]

_HOMES = {
    "MapAnything": "model.reference",
    "build_engine": "build",
    "compile_engine": "compile",
    "export_stages": "graphs.tracing",
    "load_model": "model.reference",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
