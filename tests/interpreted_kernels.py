"""Triton's interpreter for the kernels: they run on the CPU.

A Triton function is interpreted or compiled from the moment its module is imported, Triton's own library included. So
all are imported once with ``TRITON_INTERPRET`` set, before any test module, and what another test may have imported
without it is dropped first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys

MODULES = ("dense", "int8", "sparse")
MISSING = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]


@functools.cache
def import_interpreted() -> None:
    """Import the kernels for the interpreter, the first time in a process."""
    if MISSING:
        return
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
