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
from typing import Any

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
        _patch_language_once()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def _patch_language_once() -> None:
    """Keep the interpreter from patching ``triton.language`` at every call of a function within a kernel.

    A launch has done that; again and again it takes half of the time.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language, patch = interpreter.tl, interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        names = {id(value) for value in function.__globals__.values()}
        modules = [module for module in (language, language.core) if id(module) in names]
        if any(language.core.is_builtin(module.load) for module in modules):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
