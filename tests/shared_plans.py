"""TensorRT plans that tests, workers and runs share: the library takes seconds for each.

A plan is found again by everything that its compilation reads: the graph, the files that it refers to, tensors,
profiles and settings. What is computed before and after (graphs, checks, layers, manifests) is computed in every test.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mapengine.export.tensorrt import builder
from mapengine.export.tensorrt.compile import MESSAGE, Compiled, PlanRequest
from mapengine.export.tensorrt.progress import Fraction
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.bundle.onnx_files import read_onnx
from mapengine.runtime.typed_json.codec import decode, encode

from .shared_folders import folder_of_code

ROOT = Path(__file__).parents[1]
SOURCES = (
    *(ROOT / "export" / "tensorrt").glob("*.py"),
    ROOT / "runtime" / "backends" / "tensorrt" / "flavour.py",
    Path(__file__),
)
REQUESTS: dict[str, Any] = {
    "views": (1, 2, 4),
    "resolutions": [(56, 42), (42, 56)],
    "settings": PlanSettings(("8.9",)),
}
"""What tests ask ``build_engine`` for where it does not matter, so that they have plans to share. For one architecture
the library needs half of the time that it needs for all."""

Compile = Callable[[PlanRequest, Fraction], tuple[Compiled, int | None]]


def share_plans(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep the plans that builds compile in ``folder``, and return them again for the same request."""
    shared = folder_of_code(folder, SOURCES, ["tensorrt-rtx"])
    patch.setattr(builder, "compile_elsewhere", _shared(builder.compile_elsewhere, shared))


def _shared(compile_elsewhere: Compile, folder: Path) -> Compile:
    def compile_once(request: PlanRequest, report: Fraction) -> tuple[Compiled, int | None]:
        kept = folder / f"{_digest(request)}.plan"
        facts = kept.with_suffix(".json")
        with FileLock(f"{kept}.lock"):
            if not facts.exists():
                compiled, memory = compile_elsewhere(request, report)
                shutil.copyfile(request.plan, kept)
                facts.write_text(json.dumps([encode(compiled), memory]), encoding="utf-8")
                return compiled, memory
        shutil.copyfile(kept, request.plan)
        document, memory = json.loads(facts.read_text(encoding="utf-8"))
        report(1.0, "done")
        return decode(Compiled, document, MESSAGE), memory

    return compile_once


def _digest(request: PlanRequest) -> str:
    graph = Path(request.onnx)
    digest = hashlib.sha256(json.dumps(encode(replace(request, onnx="", plan="")), sort_keys=True).encode())
    content = graph.read_bytes()
    for part in (content, *((graph.parent / name).read_bytes() for name in sorted(read_onnx(content).locations))):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
