"""Tiny stages in every precision and attention form, and plans of them compiled on the CPU, each made once per run."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest
from filelock import FileLock

from mapengine.export.precision import lower_precision
from mapengine.export.tensorrt import BuiltPlan, build_plan, stage_profiles
from mapengine.export.tensorrt.settings import PlanSettings
from mapengine.runtime.backends.tensorrt.flavour import Flavour, load_flavour
from mapengine.runtime.bundle.manifest import TensorSpec
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests

NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
PROFILE = ServedRequests(Range(1, 2, 4), AnySize(14, 140), {"image_encoder": 2, "geometry_encoder": 2, "dense_head": 2})


@dataclass(frozen=True)
class Stage:
    """An ONNX file and its tensors."""

    name: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def read(cls, path: Path) -> Stage:
        graph = ir.load(path).graph

        def specs(values: object) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(v.name, NAMES[v.dtype], tuple(d if isinstance(d, int) else str(d.value) for d in v.shape))
                for v in values  # type: ignore[attr-defined]
            )

        return cls(path.stem, path, specs(graph.inputs), specs(graph.outputs))


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


@pytest.fixture(scope="session")
def stage(shared_folder: Path, exported: Callable[..., Path]) -> Callable[..., Stage]:
    """A stage of ``preset:tiny`` by name, precision and attention form."""

    @functools.cache
    def make(name: str, precision: str = "fp32", attention: str = "mha") -> Stage:
        source = exported(attention) / f"{name}.onnx"
        if precision == "fp32":
            return Stage.read(source)
        target = shared_folder / f"tensorrt-{precision}-{attention}" / f"{name}.onnx"
        with FileLock(f"{shared_folder}/tensorrt-{precision}-{attention}-{name}.lock"):
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                lower_precision(source, target, stage=name, precision=precision, magnitudes=None)
        return Stage.read(target)

    return make


@pytest.fixture(scope="session")
def built(shared_folder: Path, rtx: Flavour, stage: Callable[..., Stage]) -> Callable[..., tuple[Path, BuiltPlan]]:
    """A plan of a tiny stage, compiled by TensorRT-RTX on the CPU with ``PROFILE``.

    For one architecture: for all that the library compiles for by itself, ``()``, it takes twice as long.
    """

    @functools.cache
    def make(
        name: str, precision: str = "fp32", attention: str = "mha", targets: tuple[str, ...] = ("8.9",)
    ) -> tuple[Path, BuiltPlan]:
        made = stage(name, precision, attention)
        plan = shared_folder / f"plan-{precision}-{attention}-{name}-{'-'.join(targets)}.plan"
        record = plan.with_suffix(".pickle")
        with FileLock(f"{plan}.lock"):
            if not record.exists():
                profiles = stage_profiles(PROFILE, name, rtx.name)
                result = build_plan(
                    rtx,
                    made.path,
                    plan,
                    name=name,
                    inputs=made.inputs,
                    outputs=made.outputs,
                    profiles=profiles,
                    settings=PlanSettings(targets),
                )
                record.write_bytes(pickle.dumps(result))
        return plan, pickle.loads(record.read_bytes())

    return make
