"""The Python API of several TensorRT releases as recorded names, and libraries made of nothing but these names.

``tests/data/tensorrt_api.json`` holds, per class, the members that 10.3.0, 11.4.0 and TensorRT-RTX 1.7.1 have. It is
generated from the packages' bindings, for which no GPU is needed: a binding imports beside empty shared libraries that
define the functions it looks for (``nm -D --undefined-only``), or, for TensorRT-RTX, as it is installed.

    PYTHONPATH=<unpacked 10.3.0 wheel> python tests/tensorrt_api.py tensorrt_bindings tensorrt-10.3.0 tensorrt_api.json
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SNAPSHOT = Path(__file__).parent / "data" / "tensorrt_api.json"
RTX = "tensorrt-rtx-1.7.1"
RELEASES = ("tensorrt-10.3.0", "tensorrt-11.4.0", RTX)
CLASSES = (
    "Builder", "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType", "EngineInspector",
    "EngineInvalidityDiagnostics", "EngineValidity", "ErrorCode", "ExecutionContextAllocationStrategy",
    "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ITensor", "ITimingCache",
    "LayerInformationFormat", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorIOMode",
)  # fmt: skip
"""What a builder or a runtime may touch."""


def members(library: Any) -> dict[str, list[str]]:
    """Public members of the classes of an imported library."""
    found = {}
    for name in CLASSES:
        if hasattr(library, name):
            found[name] = sorted(m for m in dir(getattr(library, name)) if not m.startswith("_"))
    return found


@functools.cache
def load(release: str) -> dict[str, set[str]]:
    """Members per class of a release."""
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return {
        name: set(releases["all"]) | set(releases[release])
        for name, releases in snapshot.items()
        if release in releases
    }


def strict_library(release: str, behaviour: Mapping[str, Mapping[str, Any]]) -> Any:
    """A module with the classes and members of a release, and an ``AttributeError`` for every other name.

    Args:
        behaviour: what members do, per class; those without fail when they are used.
    """
    return SimpleNamespace(
        __version__=release.rpartition("-")[2],
        **{name: _strict_class(name, names, behaviour.get(name, {})) for name, names in load(release).items()},
    )


def _strict_class(name: str, names: set[str], behaviour: Mapping[str, Any]) -> type:
    unknown = {key for key in behaviour if not key.startswith("__")} - names

    def set_known(self: Any, key: str, value: Any) -> None:
        if key not in names and not key.startswith("_") and type(self).__name__ == name:
            raise AttributeError(f"{name} has no {key}")
        object.__setattr__(self, key, value)

    def missing(key: str) -> Any:
        def fail(*arguments: Any) -> Any:
            raise AssertionError(f"{name}.{key} is not expected to be called")

        return fail

    stubs = {key: missing(key) for key in names}
    return type(
        name, (), {**stubs, "__setattr__": set_known, **{k: v for k, v in behaviour.items() if k not in unknown}}
    )


def _add(binding: str, release: str, path: Path) -> None:
    """Add a release to a snapshot."""
    snapshot = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    releases = {
        name: {r: set(names) | set(known["all"]) for r, names in known.items() if r != "all"}
        for name, known in snapshot.items()
    }
    for name, names in members(importlib.import_module(binding)).items():
        releases.setdefault(name, {})[release] = set(names)
    result = {}
    for name, known in sorted(releases.items()):
        common = set.intersection(*known.values())
        result[name] = {"all": sorted(common), **{r: sorted(names - common) for r, names in sorted(known.items())}}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in result.items())
    path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    _add(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
