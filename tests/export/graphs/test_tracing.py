from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper, shape_inference

from mapengine.export.graphs import tracing
from mapengine.export.graphs.stages import HEIGHT, WIDTH, make_stages
from mapengine.export.graphs.trace import trace_graph
from mapengine.export.graphs.tracing import export_stages
from mapengine.export.model.network import MapAnythingNetwork
from mapengine.export.model.network.transformer import Attention
from mapengine.export.model.reference import MapAnything
from mapengine.runtime.backends.contract import ChunkSizes, StageRunner
from mapengine.runtime.backends.host_pipeline import Pipeline
from mapengine.runtime.backends.registry import make_backend
from mapengine.runtime.bundle.manifest import STAGES
from mapengine.runtime.errors import ExportError
from mapengine.runtime.inputs.prepared import prepare_views
from mapengine.runtime.inputs.resolutions import RESOLUTION_TABLES
from mapengine.runtime.options import InferOptions

from ...goldens import Case, cases
from ...random_views import Views, assert_close, input_configuration, mixed_views, random_views
from ..conftest import METADATA

Reference = Callable[..., MapAnything]
Exported = Callable[..., Path]

OPSETS = {"mha": 20, "attention": 23, "matmul": 18}
ATTENTION_OPERATORS = {"mha": "MultiHeadAttention", "attention": "Attention", "matmul": "Softmax"}
NETWORKS = {"v1": ("v1_tiny", "config.json"), "no reference view": ("v11_tiny", "config_no_ref_view.json")}

TENSORRT_10_3_OPERATORS = {
    *("Add", "And", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Erf", "Exp", "Expand", "Floor"),
    *("Gather", "Gemm", "Greater", "LayerNormalization", "MatMul", "Min", "Mul", "Range", "ReduceL2", "ReduceMax"),
    *("ReduceMean", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze", "Where"),
}
"""What the matmul form may use. The operator tables of the ONNX parser for TensorRT 9.2 (opset 19) and 10.15 mark each
as supported, so the parser of 10.3 between them reads it (Gelu, for one, is missing in the older table); the
restrictions that the tables add have tests of their own below."""


@pytest.fixture(scope="module")
def tiny(reference: Reference) -> MapAnything:
    return reference("preset:tiny")


@pytest.fixture(scope="module", params=OPSETS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def graphs(form: str, exported: Exported) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(exported(form) / f"{name}.onnx") for name in STAGES}


@pytest.fixture(scope="module")
def load() -> Callable[[Path], Pipeline]:
    pipelines: dict[Path, Pipeline] = {}

    def make(folder: Path) -> Pipeline:
        if folder not in pipelines:
            backend = make_backend("onnxruntime", ["onnxruntime"], 1)
            stages: dict[str, StageRunner] = {
                name: backend.load_stage(name, folder / f"{name}.onnx") for name in STAGES
            }
            pipelines[folder] = Pipeline(stages)
        return pipelines[folder]

    return make


@pytest.fixture(scope="module")
def engine(exported: Exported, load: Callable[[Path], Pipeline]) -> Pipeline:
    """``preset:tiny`` with contrib attention in ONNX Runtime."""
    return load(exported("mha"))


def run(pipeline: Pipeline, views: Views, chunks: ChunkSizes | None = None, **options: bool) -> list[dict[str, Any]]:
    return pipeline.forward(prepare_views(views, InferOptions(**options)), chunks)


def nodes(graphs: dict[str, onnx.ModelProto]) -> Iterator[onnx.NodeProto]:
    for model in graphs.values():
        yield from model.graph.node


# The files


def test_checker_and_strict_shape_inference_pass(graphs: dict[str, onnx.ModelProto]) -> None:
    for model in graphs.values():
        onnx.checker.check_model(model, full_check=True)
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        typed = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
        assert {output for node in model.graph.node for output in node.output if output} <= typed
        assert not model.functions


def test_tensors_and_axes_are_those_of_the_contract(graphs: dict[str, onnx.ModelProto], tiny: MapAnything) -> None:
    def described(values: Any) -> list[tuple[str, int, list[int | str]]]:
        return [
            (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        ]

    stages = make_stages(tiny)
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        graph = graphs[name].graph
        assert graph.name == name
        for values, specs in ((graph.input, stage.inputs), (graph.output, stage.outputs)):
            assert described(values) == [(spec.name, TensorProto.FLOAT, list(spec.axes)) for spec in specs]


def test_manifest_describes_the_files(tiny_bundle: Path) -> None:
    from mapengine.runtime.bundle.store import Bundle

    manifest = Bundle.open(tiny_bundle).manifest
    for name, stage in manifest.stages.items():
        model = onnx.load(tiny_bundle / stage.file.file)
        assert model.opset_import[0].version == stage.opset
        for values, specs in ((model.graph.input, stage.inputs), (model.graph.output, stage.outputs)):
            found = [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]
            assert found == [(spec.name, spec.shape) for spec in specs], name
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata == {
            "mapengine.stage": name,
            "mapengine.model": "preset:tiny",
            "mapengine.revision": "",
            "mapengine.weights_sha256": manifest.model.weights_sha256,
            "mapengine.version": manifest.created_by,
        }


def test_metadata_is_in_the_file(form: str, graphs: dict[str, onnx.ModelProto]) -> None:
    for name, model in graphs.items():
        found = {entry.key: entry.value for entry in model.metadata_props}
        assert found["mapengine.stage"] == name
        assert set(METADATA) <= set(found)
        assert form == "mha" or METADATA.items() <= found.items()
        assert model.producer_name == "mapengine"


def test_nothing_of_the_exporting_machine_is_in_the_file(form: str, exported: Exported) -> None:
    root = Path(__file__).parents[3]
    private = {str(root), str(Path.home()), torch.__path__[0], "site-packages", ".py", "pkg.torch", "fx_node", "File "}
    for name in STAGES:
        contents = (exported(form) / f"{name}.onnx").read_bytes()
        assert [text for text in private if text.encode() in contents] == []


def test_opset_and_attention_operator_follow_the_form(
    form: str, graphs: dict[str, onnx.ModelProto], tiny: MapAnything
) -> None:
    config = tiny.config
    assert {model.opset_import[0].version for model in graphs.values()} == {OPSETS[form]}
    domains = {entry.domain for model in graphs.values() for entry in model.opset_import} - {""}
    assert domains == ({"com.microsoft"} if form == "mha" else set())
    wanted = {"image_encoder": config.image_encoder.depth, "aggregator": config.aggregator.depth}
    for name, model in graphs.items():
        counts = Counter(node.op_type for node in model.graph.node)
        for operator in ATTENTION_OPERATORS.values():
            expected = wanted.get(name, 0) if operator == ATTENTION_OPERATORS[form] else 0
            assert counts[operator] == expected, (name, operator)
    for node in nodes(graphs):
        assert node.domain == ("com.microsoft" if node.op_type == "MultiHeadAttention" else "")


def test_no_operator_depends_on_data_or_chance(graphs: dict[str, onnx.ModelProto]) -> None:
    forbidden = {"NonZero", "GatherND", "ScatterND", "ScatterElements", "If", "Loop", "Scan", "Compress", "Dropout"}
    forbidden |= {"RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli"}
    assert {node.op_type for node in nodes(graphs)} & forbidden == set()


def test_integers_are_64_bit_and_everything_else_float32(graphs: dict[str, onnx.ModelProto]) -> None:
    """Token counts pass the range of half precision, and double precision runs at a fraction of the speed on a GPU."""
    for model in graphs.values():
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        types = {
            v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
        assert set(types.values()) <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL}
        for node in model.graph.node:
            if node.op_type == "Cast":
                assert node.attribute[0].i in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL), node.name
            if node.op_type in ("Shape", "Range"):
                assert types[node.output[0]] == TensorProto.INT64, node.name
            if node.op_type in ("Reshape", "Expand", "Gather", "Slice", "Unsqueeze", "Squeeze", "Split"):
                assert all(types[name] == TensorProto.INT64 for name in node.input[1:] if name), node.name


@pytest.mark.slow
def test_matmul_form_keeps_to_the_operators_of_old_parsers(exported: Exported) -> None:
    for name in STAGES:
        model = onnx.load(exported("matmul") / f"{name}.onnx")
        assert model.opset_import[0].version <= 20
        assert {node.op_type for node in model.graph.node} <= TENSORRT_10_3_OPERATORS
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            if node.op_type in ("Conv", "ConvTranspose", "LayerNormalization"):
                assert set(node.input[1:]) <= constants, f"{node.name}: weights must be stored"
            if node.op_type in ("Squeeze", "Unsqueeze", "ReduceL2", "ReduceMax", "ReduceMean"):
                assert set(node.input[1:]) <= constants, f"{node.name}: axes must be stored"
            if node.op_type == "Slice":
                assert set(node.input[3:]) <= constants, f"{node.name}: axes and steps must be stored"
            if node.op_type == "Resize":
                assert attributes["mode"] == b"linear"
                assert attributes["coordinate_transformation_mode"] == b"align_corners"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["attention", "matmul"])
def test_layers_for_our_kernels_are_mha_in_every_form(form: Any, tiny: MapAnything, tmp_path: Path) -> None:
    aggregator = replace(tiny.config.aggregator, depth=3, taps=(0, 1))
    network = MapAnythingNetwork(replace(tiny.config, aggregator=aggregator)).eval()
    layer = "info_sharing.self_attention_blocks.0.attn"
    (written,) = export_stages(network, tmp_path, attention=form, mha_layers=[layer], stages=["aggregator"])
    operators = (*ATTENTION_OPERATORS.values(),)
    found = {
        node.name.rpartition("/")[0]: node.op_type
        for node in onnx.load(written.path).graph.node
        if node.op_type in operators
    }
    assert {name for name, operator in found.items() if operator == "MultiHeadAttention"} == {layer}
    # One over the tokens of a view, and one over all as well.
    assert [operator for name, operator in found.items() if name != layer] == [ATTENTION_OPERATORS[form]] * 2


@pytest.mark.slow
def test_attention_form_keeps_to_what_tensorrt_takes(exported: Exported) -> None:
    """TensorRT's parser reads Attention with four-dimensional inputs only: three-dimensional ones name their heads."""
    layers = 0
    for name in STAGES:
        for node in onnx.load(exported("attention") / f"{name}.onnx").graph.node:
            if node.op_type == "Attention":
                layers += 1
                assert len(node.input) == 3
                assert len(node.output) == 1
                names = {entry.name for entry in node.attribute}
                assert not names & {"q_num_heads", "kv_num_heads", "softcap", "qk_matmul_output_mode"}, names
    assert layers


def test_node_names_tell_the_layer(graphs: dict[str, onnx.ModelProto], tiny: MapAnything) -> None:
    modules = dict(tiny.named_modules())
    layers = {"MatMul", "Gemm", "Conv", "ConvTranspose", "LayerNormalization", *ATTENTION_OPERATORS.values()}
    for stage, model in graphs.items():
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        for node in model.graph.node:
            module, _, operator = node.name.partition("/")
            assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator), node.name
            assert module in modules or module == stage, node.name
            if node.op_type in layers:
                assert module in modules, node.name
    attention = [node.name.partition("/")[0] for node in nodes(graphs) if node.op_type in ATTENTION_OPERATORS.values()]
    assert set(attention) == {name for name, module in modules.items() if isinstance(module, Attention)}


def test_weights_carry_upstreams_names(graphs: dict[str, onnx.ModelProto], tiny: MapAnything) -> None:
    expected = tiny.state_dict()
    found = Counter[str]()
    for model in graphs.values():
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if tensor.name in expected:
                found[tensor.name] += 1
                want = expected[tensor.name].numpy()
                # Linear layers are stored transposed where they are a MatMul, the scale token with its batch axes.
                same = any(np.array_equal(values.reshape(-1), x.reshape(-1)) for x in (want, want.T))
                assert same, tensor.name
            elif values.dtype.kind == "f":
                assert values.size <= tiny.encoder.model.grid, tensor.name  # scalars and the indices of the grid
    assert found == Counter(dict.fromkeys(expected, 1))


@pytest.mark.slow
def test_exporting_leaves_the_network_as_it_was(tiny: MapAnything, exported: Exported) -> None:
    exported("matmul")
    assert {module.form for module in tiny.modules() if isinstance(module, Attention)} == {"sdpa"}


def test_failed_trace_is_one_sentence(tiny: MapAnything, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("cannot trace this")

    monkeypatch.setattr(tracing, "trace_graph", trace_graph)  # not the one that the tests share
    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ExportError, match=r"^image_encoder: tracing to ONNX opset 20 failed \(cannot trace this\)"):
        export_stages(tiny, tmp_path)
    assert {module.form for module in tiny.modules() if isinstance(module, Attention)} == {"sdpa"}
    assert list(tmp_path.iterdir()) == []


# The numbers


@pytest.mark.parametrize("count", [*range(1, 10), *(pytest.param(count, marks=pytest.mark.slow) for count in (48, 64))])
@pytest.mark.parametrize("mix", [random_views, mixed_views], ids=["all inputs", "mixed"])
def test_any_view_count_is_exact(count: int, mix: Callable[..., Views], engine: Pipeline, tiny: MapAnything) -> None:
    views = mix(count, width=42, height=28)
    assert_close(run(engine, views), tiny.predict(views))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_image_only_input_has_no_nan(count: int, engine: Pipeline, tiny: MapAnything) -> None:
    """Where absent geometry is multiplied away instead of left out, its 0 / 0 survives."""
    views = random_views(count, "")
    assert_close(run(engine, views), tiny.predict(views))


@pytest.mark.slow
@pytest.mark.parametrize("size", RESOLUTION_TABLES[518].values(), ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_of_the_table_is_exact(size: tuple[int, int], engine: Pipeline, tiny: MapAnything) -> None:
    views = random_views(1, width=size[0], height=size[1])
    assert_close(run(engine, views), tiny.predict(views))


@pytest.mark.parametrize("size", [(14, 14), (14, 518), (42, 14), (98, 70)], ids=str)
def test_odd_and_smallest_grids_are_exact(size: tuple[int, int], engine: Pipeline, tiny: MapAnything) -> None:
    views = random_views(2, width=size[0], height=size[1])
    assert_close(run(engine, views), tiny.predict(views))


@pytest.mark.parametrize("configuration", range(64))
def test_all_input_configurations_are_exact(configuration: int, engine: Pipeline, tiny: MapAnything) -> None:
    views, options = input_configuration(configuration)
    expected = tiny.infer(views, apply_mask=False, **options)
    found = run(engine, views, **options)
    assert_close(found, [{key: view[key].numpy() for key in found[0]} for view in expected])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
def test_chunks_are_exact(chunk: int, engine: Pipeline, tiny: MapAnything) -> None:
    views = mixed_views(7)
    expected = tiny.predict(views)
    assert_close(run(engine, views, ChunkSizes(chunk, chunk, chunk)), expected)
    for stage in ("image_encoder", "geometry_encoder", "dense_head"):
        assert_close(run(engine, views, ChunkSizes(**{stage: chunk})), expected)


@pytest.mark.parametrize("given", ["", "kdp"])
def test_batches_are_exact(given: str, engine: Pipeline, tiny: MapAnything) -> None:
    views = random_views(3, given, batch=2)
    expected = tiny.predict(views)
    assert_close(run(engine, views), expected)
    assert_close(run(engine, views, ChunkSizes(2, 2, 2)), expected)


@pytest.mark.parametrize("case", cases("v11_tiny"), ids=str)
def test_inputs_of_the_golden_cases_are_exact(case: Case, engine: Pipeline, tiny: MapAnything) -> None:
    views = case.inputs()
    assert_close(run(engine, views), tiny.predict(views))


@pytest.mark.slow
def test_attention_forms_agree(
    form: str, exported: Exported, load: Callable[[Path], Pipeline], tiny: MapAnything
) -> None:
    pipeline = load(exported(form))
    for views in (random_views(1, ""), mixed_views(5), mixed_views(12, 70, 28)):
        assert_close(run(pipeline, views), tiny.predict(views))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_other_networks_are_exact(
    network: str, exported: Exported, load: Callable[[Path], Pipeline], reference: Reference
) -> None:
    model, pipeline = reference(*NETWORKS[network]), load(exported("mha", *NETWORKS[network]))
    for views in (random_views(1, ""), random_views(3, ""), mixed_views(5), random_views(2, width=70, height=70)):
        assert_close(run(pipeline, views), model.predict(views))


@pytest.mark.slow
def test_v1_has_no_extra_tokens(exported: Exported) -> None:
    folder = exported("mha", *NETWORKS["v1"])
    encoder = onnx.load(folder / "image_encoder.onnx").graph
    aggregator = onnx.load(folder / "aggregator.onnx").graph
    assert [value.name for value in encoder.output] == ["patch_features"]
    assert [value.name for value in aggregator.input] == ["features"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (1, 12, 37), (3, 5, 4)])
def test_every_stage_alone_is_exact(
    stage: str, count: int, rows: int, columns: int, form: str, exported: Exported, tiny: MapAnything
) -> None:
    described = make_stages(tiny)[stage]
    sizes = {described.leading_axis: count, "patch_rows": rows, "patch_columns": columns}
    sizes |= {HEIGHT: 14 * rows, WIDTH: 14 * columns}
    inputs = [spec.example(sizes) for spec in described.inputs]
    backend = make_backend("onnxruntime", ["onnxruntime"], 1)
    runner = backend.load_stage(stage, exported(form) / f"{stage}.onnx")
    found = runner.run({spec.name: value.numpy() for spec, value in zip(described.inputs, inputs, strict=True)})
    with torch.inference_mode():
        expected = described.module(*inputs)
    for spec, value in zip(described.outputs, expected, strict=True):
        want = value.numpy()
        assert found[spec.name].shape == want.shape == tuple(a if isinstance(a, int) else sizes[a] for a in spec.axes)
        assert np.abs(found[spec.name] - want).max() <= 2e-5 * max(1, np.abs(want).max()), spec.name
