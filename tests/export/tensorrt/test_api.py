"""One code path for every TensorRT: the names that it uses exist in all of them, or where a guard lets it through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorrt_rtx

from ...tensorrt_api import RELEASES, RTX, load, members

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted([*(ROOT / "export" / "tensorrt").glob("*.py"), *(ROOT / "runtime/backends/tensorrt").glob("*.py")])

OBJECTS = {
    "builder": ("Builder",),
    "cache": ("ITimingCache", "IRuntimeCache"),
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "context": ("IExecutionContext",),
    "engine": ("ICudaEngine",),
    "inspector": ("EngineInspector",),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "runtime": ("Runtime",),
    "shapes": ("IOptimizationProfile",),
}
"""What a variable of this name is wherever TensorRT is used."""
OWN = {"compile.py": {"tensor": ("ITensor",)}, "messages.py": {"error": ("ParserError",)}}
"""And in one file only."""
GUARDED = {"runtime_cache.py": "Flavour.create_runtime_cache gives None but for TensorRT-RTX"}
"""Files that only one flavour reaches, and why."""
NOT_OURS = {("context", "Context"), ("runtime", "pipeline")}


def uses(source: str, objects: dict[str, tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], str, str, int]]:
    """Every use of a TensorRT name: possible classes, member ("" for the class itself), text of the function, line."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]

    def function(node: ast.AST) -> str:
        around = [f for f in functions if f.lineno <= node.lineno <= (f.end_lineno or 0)]  # type: ignore[attr-defined]
        return ast.unparse(max(around, key=lambda f: f.lineno)) if around else ""

    def is_library(node: ast.AST) -> bool:
        return (isinstance(node, ast.Name) and node.id == "trt") or (
            isinstance(node, ast.Attribute) and node.attr == "library"
        )

    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if is_library(node.value) and node.attr[0].isupper():
            yield (node.attr,), "", function(node), node.lineno
        elif isinstance(node.value, ast.Attribute) and is_library(node.value.value):
            yield (node.value.attr,), node.attr, function(node), node.lineno
        elif isinstance(node.value, ast.Name | ast.Attribute):
            name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr.lstrip("_")
            if name in objects and (name, node.attr) not in NOT_OURS:
                yield objects[name], node.attr, function(node), node.lineno


def problem(classes: tuple[str, ...], member: str, function: str) -> str | None:
    """Why a use is wrong; None if it is not."""
    if member.startswith("__"):
        return None
    lacking = []
    for release in RELEASES:
        known = load(release)
        if not any(name in known and (not member or member in known[name]) for name in classes):
            lacking.append(release)
    if not lacking:
        return None
    if RTX in lacking and len(lacking) == len(RELEASES):
        return f"{'/'.join(classes)}.{member} exists nowhere"
    guarded = "is_rtx" in function or "hasattr" in function or "getattr" in function
    return None if guarded else f"{'/'.join(classes)}.{member} is not in {', '.join(lacking)}, and nothing guards it"


@pytest.mark.slow
def test_every_name_exists_or_is_guarded() -> None:
    problems, seen = [], set()
    for path in SOURCES:
        objects = {**OBJECTS, **OWN.get(path.name, {})}
        for classes, member, function, line in uses(path.read_text(encoding="utf-8"), objects):
            seen.add((classes[0], member))
            reason = problem(classes, member, function)
            if reason and path.name not in GUARDED:
                problems.append(f"{path.relative_to(ROOT)}:{line}: {reason}")
    assert problems == []
    # The search itself works: these calls are the core of a build and a run.
    assert {("Builder", "build_serialized_network"), ("OnnxParser", "parse_from_file")} <= seen
    assert {("Runtime", "deserialize_cuda_engine"), ("IExecutionContext", "execute_async_v3")} <= seen
    assert ("ILogger", "") in seen


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(config):\n    config.builder_optimization_level = 3", None),
        ("def f(config):\n    config.set_compute_capability(1, 0)", "nothing guards"),
        ("def f(flavour, config):\n    if flavour.is_rtx:\n        config.set_compute_capability(1, 0)", None),
        ("def f(builder):\n    builder.build_cuda_engine(1)", "exists nowhere"),
        ("def f(flavour):\n    flavour.library.BuilderFlag.FP16", "not in tensorrt-11.4.0, tensorrt-rtx"),
        ("def f(flavour):\n    flavour.library.ComputeCapability", "nothing guards"),
        ("def f(trt):\n    trt.MemoryPoolType.WORKSPACE", None),
        ("def f(builder):\n    builder.build_serialized_network_to_stream(1)", "not in tensorrt-10.3.0"),
    ],
)
def test_the_checker_itself(code: str, reason: str | None) -> None:
    found = [problem(classes, member, function) for classes, member, function, _ in uses(code, OBJECTS)]
    complaints = [text for text in found if text]
    if reason is None:
        assert complaints == []
    else:
        assert len(complaints) == 1
        assert reason in complaints[0]


def test_the_snapshot_is_what_is_installed() -> None:
    """Only for the release that it was taken from: another may have more."""
    if tensorrt_rtx.__version__.startswith("1.7.1"):
        assert {name: set(names) for name, names in members(tensorrt_rtx).items()} == load(RTX)
    for name, names in load(RTX).items():
        used = {member for member in names if hasattr(getattr(tensorrt_rtx, name, None), member)}
        assert used, f"{name} is gone"
