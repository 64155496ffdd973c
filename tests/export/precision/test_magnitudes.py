from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mapengine.export.model.network.transformer import Attention
from mapengine.export.model.reference import MapAnything
from mapengine.export.precision import lower_precision, measure_magnitudes
from mapengine.export.precision.assign import FP16_MAX, FP16_NORMAL, MARGIN
from mapengine.export.precision.magnitudes import add_maxima
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.errors import ExportError, InputError
from mapengine.runtime.inputs.prepared import prepare_views

from ...random_views import random_views
from .conftest import FORMS, Magnitudes, small_cases, stage_paths

Exported = Callable[..., Path]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def by_node(folder: Path, stage: str, magnitudes: Magnitudes) -> dict[str, float]:
    """Largest output of every node."""
    graph = onnx.load(folder / f"{stage}.onnx").graph
    return {node.name: magnitudes[stage][node.output[0]] for node in graph.node if node.output[0] in magnitudes[stage]}


@pytest.mark.slow
def test_every_floating_tensor_is_measured(exported: Exported, magnitudes: Callable[..., Magnitudes]) -> None:
    for form in FORMS:
        for stage in STAGES:
            graph = onnx.load(exported(form) / f"{stage}.onnx").graph
            values = (*graph.input, *graph.value_info, *graph.output)
            wanted = {value.name for value in values if value.type.tensor_type.elem_type in FLOATS}
            wanted -= {tensor.name for tensor in graph.initializer}
            found = magnitudes(form)[stage]
            assert {name for name in found if not name.endswith("/scores")} == wanted
            assert all(0 <= largest < math.inf for largest in found.values())


@pytest.mark.slow
def test_magnitudes_are_those_of_the_reference(
    exported: Exported, magnitudes: Callable[..., Magnitudes], reference: Callable[..., MapAnything]
) -> None:
    """Forward hooks of PyTorch see the same numbers as the graph's own maxima."""
    model = reference("preset:tiny")
    found: dict[str, float] = {}

    def watch(name: str) -> Any:
        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            found[name] = max(found.get(name, 0.0), float(output.abs().max()))

        return keep

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.LayerNorm)
    ]
    try:
        for views in small_cases().values():
            model.predict(views, use_amp=False)
    finally:
        for hook in hooks:
            hook.remove()
    folder = exported("mha")
    measured: dict[str, float] = {}
    for stage in STAGES:
        for node, largest in by_node(folder, stage, magnitudes("mha")).items():
            module, _, operator = node.partition("/")
            if operator in ("Add", "Conv", "ConvTranspose", "Gemm"):  # with its bias
                measured[module] = largest
            elif operator.startswith("LayerNormalization"):
                measured[module] = max(measured.get(module, 0.0), largest)
    assert set(found) <= set(measured)
    # The geometry encoders see the zeros of absent inputs in another number of calls, which changes no maximum.
    assert {name: measured[name] for name in found} == pytest.approx(found, rel=1e-4)


@pytest.mark.slow
def test_scores_are_bounded_tightly(
    magnitudes: Callable[..., Magnitudes], reference: Callable[..., MapAnything]
) -> None:
    """The bound holds for the scores before scaling and is the product of the longest query and key of a head."""
    model = reference("preset:tiny")
    scores: dict[str, float] = {}
    bounds: dict[str, float] = {}

    def watch(name: str, layer: Attention) -> Any:
        def keep(module: torch.nn.Module, inputs: Any, qkv: torch.Tensor) -> None:
            n, length, _ = qkv.shape
            query, key, _ = qkv.reshape(n, length, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            scores[name] = max(scores.get(name, 0.0), float((query @ key.transpose(-1, -2)).abs().max()))
            longest = query.norm(dim=-1).amax(-1) * key.norm(dim=-1).amax(-1)
            bounds[name] = max(bounds.get(name, 0.0), float(longest.max()))

        return keep

    layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    hooks = [layer.qkv.register_forward_hook(watch(name, layer)) for name, layer in layers.items()]
    try:
        for views in small_cases().values():
            model.predict(views, use_amp=False)
    finally:
        for hook in hooks:
            hook.remove()
    for form in ("mha", "attention"):
        measured = {
            name.removesuffix("/scores"): largest
            for stage in ("image_encoder", "aggregator")
            for name, largest in magnitudes(form)[stage].items()
            if name.endswith("/scores")
        }
        assert measured == pytest.approx(bounds, rel=1e-4)
        assert all(scores[name] <= bound * 1.0001 for name, bound in measured.items())
    assert not any(name.endswith("/scores") for stage in STAGES for name in magnitudes("matmul")[stage])


@pytest.mark.slow
def test_more_cases_never_lower_a_magnitude(exported: Exported) -> None:
    stages = stage_paths(exported("mha"))
    one = measure_magnitudes(stages, {"one": random_views(1, "")})
    assert one["geometry_encoder"] == {}  # no case needed it
    both = measure_magnitudes(stages, {"one": random_views(1, ""), "two": random_views(2)})
    assert all(both[stage][name] >= largest for stage, found in one.items() for name, largest in found.items())
    assert both["image_encoder"] != one["image_encoder"]
    assert both["geometry_encoder"]


@pytest.mark.slow
def test_the_folder_is_left_as_it_was(exported: Exported) -> None:
    folder = exported("matmul")
    before = sorted(path.name for path in folder.iterdir())
    seen: list[str] = []
    measure_magnitudes(stage_paths(folder), {"a": random_views(1, ""), "b": random_views(2, "p")}, progress=seen.append)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert seen == ["a", "b"]


def test_refusals(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^there are no cases to measure magnitudes with; give at least one$"):
        measure_magnitudes(stage_paths(exported("mha")), {})
    with pytest.raises(ExportError, match=r"^dense_head: .*dense_head.onnx is missing; export the stage again$"):
        measure_magnitudes({"dense_head": tmp_path / "dense_head.onnx"}, {"one": random_views(1, "")})


def test_nan_and_infinity_are_seen(tmp_path: Path) -> None:
    """A maximum in ONNX may skip NaN."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "root", "y")]
    nodes = [
        helper.make_node("Sqrt", ["x"], ["root"], name="m/Sqrt"),
        helper.make_node("Log", ["root"], ["y"], name="m/Log"),
    ]
    graph = helper.make_graph(nodes, "aggregator", info[:1], info[2:], value_info=info[1:2])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "aggregator.onnx")
    variant = add_maxima(tmp_path / "aggregator.onnx", tmp_path / "maxima.onnx", "aggregator")
    runner = OnnxRuntimeBackend(1).load_stage("aggregator", variant)

    def largest(*values: float) -> dict[str, float]:
        found = runner.run({"x": np.array([values], np.float32)})
        return {name.removeprefix("largest:"): float(v) for name, v in found.items() if name.startswith("largest:")}

    assert largest(4, 1, 0.25) == pytest.approx({"x": 4, "root": 2, "y": math.log(2)})
    assert largest(-4, 1, 0.25) == {"x": 4, "root": math.inf, "y": math.inf}  # NaN in the middle
    assert largest(1, 4, -math.inf) == {"x": math.inf, "root": math.inf, "y": math.inf}
    assert largest(0, 1, 1) == {"x": 1, "root": 1, "y": math.inf}


# What the magnitudes decide


@pytest.mark.slow
@pytest.mark.parametrize(
    ("largest", "kept"),
    [
        (FP16_MAX / MARGIN, False),
        (FP16_MAX / MARGIN * 1.001, True),
        (FP16_NORMAL * MARGIN, False),
        (FP16_NORMAL * MARGIN * 0.999, True),
        (0.0, False),
        (math.inf, True),
    ],
)
def test_a_node_stays_float32_outside_of_the_margin(
    largest: float, kept: bool, exported: Exported, magnitudes: Callable[..., Magnitudes], tmp_path: Path
) -> None:
    """The tensor between two convolutions keeps both, and nothing else."""
    source = exported("mha") / "dense_head.onnx"
    name = "dense_head.1.conv2.0"
    (tensor,) = (node.input[0] for node in onnx.load(source).graph.node if node.name == f"{name}/Conv")
    changed = {**magnitudes("mha")["dense_head"], tensor: largest}
    stage = lower_precision(
        source, tmp_path / "dense_head.onnx", stage="dense_head", precision="fp16", magnitudes=changed
    )
    assert stage.kept_layers == (("dense_head.1", name) if kept else ())
    kinds = {t.name: t.data_type for t in onnx.load(stage.path).graph.initializer}
    assert kinds[f"{name}.weight"] == (TensorProto.FLOAT if kept else TensorProto.FLOAT16)
    assert kinds["dense_head.1.conv1.weight"] == TensorProto.FLOAT16


def test_features_beyond_the_range_pass_as_float32(
    exported: Exported, magnitudes: Callable[..., Magnitudes], tmp_path: Path
) -> None:
    """Both stages measured the same numbers, so that they agree about the type."""
    found = magnitudes("mha")
    dtypes = {}
    for stage in ("aggregator", "dense_head"):
        changed = {**found[stage], "view_features_2": 1e4}
        written = lower_precision(
            exported("mha") / f"{stage}.onnx",
            tmp_path / f"{stage}.onnx",
            stage=stage,
            precision="fp16",
            magnitudes=changed,
        )
        specs = written.outputs if stage == "aggregator" else written.inputs
        dtypes[stage] = {spec.name: spec.dtype for spec in specs if spec.name.startswith("view_features_")}
        assert "view_features_2" in written.kept_layers
    assert dtypes["aggregator"] == dtypes["dense_head"]
    assert [name for name, dtype in dtypes["aggregator"].items() if dtype == "float32"] == ["view_features_2"]


@pytest.mark.slow
def test_headroom_is_sorted_and_named(
    exported: Exported, magnitudes: Callable[..., Magnitudes], tmp_path: Path
) -> None:
    for stage in STAGES:
        source = exported("mha") / f"{stage}.onnx"
        written = lower_precision(
            source, tmp_path / source.name, stage=stage, precision="fp16", magnitudes=magnitudes("mha")[stage]
        )
        factors = [entry.factor for entry in written.headroom]
        assert factors == sorted(factors)
        assert min(factors) >= MARGIN
        graph = onnx.load(source).graph
        known = {node.name for node in graph.node} | {value.name for value in graph.input}
        for entry in written.headroom:
            assert entry.stage == stage
            assert entry.factor == pytest.approx(65504 / entry.largest)
            assert entry.tensor in known or entry.tensor.endswith(".attn/scores")
        assert len({entry.tensor for entry in written.headroom}) == len(factors) > 10


@pytest.mark.parametrize(
    ("value", "kind"), [(7e4, TensorProto.FLOAT), (6e4, TensorProto.FLOAT16), (1e-6, TensorProto.FLOAT)]
)
def test_weights_outside_of_float16_stay_float32(value: float, kind: int, exported: Exported, tmp_path: Path) -> None:
    """Also where no magnitudes were measured: the weights are in the file."""
    model = onnx.load(exported("mha") / "dense_head.onnx")
    name = "dense_head.1.conv1"
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.weight":
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(values / np.abs(values).max() * np.float32(value), tensor.name)
            )
    onnx.save(model, tmp_path / "dense_head.onnx")
    (tmp_path / "low").mkdir()
    written = lower_precision(
        tmp_path / "dense_head.onnx",
        tmp_path / "low" / "dense_head.onnx",
        stage="dense_head",
        precision="fp16",
        magnitudes=None,
    )
    assert written.kept_layers == ((name,) if kind == TensorProto.FLOAT else ())
    assert {t.name: t.data_type for t in onnx.load(written.path).graph.initializer}[f"{name}.weight"] == kind


@pytest.mark.slow
def test_prepared_cases_have_every_modality() -> None:
    """What is not in the cases would not be measured."""
    flags = [
        geometry.flags
        for views in small_cases().values()
        for geometry in prepare_views(views).geometry
        if geometry is not None
    ]
    assert np.concatenate(flags).any(axis=0).all()
