"""The kernels run here in Triton's interpreter, on the CPU.

A Triton function is interpreted or compiled from the moment its module is imported, Triton's own library included. So
both are imported here once with ``TRITON_INTERPRET`` set, before any test module, and what another test may have
imported without it is dropped first.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MODULES = ("dense", "int8", "sparse")
MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]


def _import_interpreted() -> None:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for name in [name for name in sys.modules if f"{name}.".startswith(("triton.", "mapengine.kernels."))]:
            if not name.startswith("triton._C"):  # an extension module cannot be loaded twice
                del sys.modules[name]
        for module in MODULES:
            importlib.import_module(f"mapengine.kernels.{module}")
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


if not MISSING:
    _import_interpreted()


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter also looks at the variable while it runs."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a process of its own, where kernels are compiled and not interpreted."""

    def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
        )

    return run
