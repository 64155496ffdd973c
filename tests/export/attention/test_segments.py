"""A stage that is cut at its attention: joined by plain attention, the segments give what the stage gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from mapengine.export.attention.choice import LAYER, AttentionChoice, KernelChoice, LayerChoice, parse_choice
from mapengine.export.attention.operator import DOMAIN, mark_attention
from mapengine.export.attention.segments import cut_stage
from mapengine.export.graphs.weights import save_model
from mapengine.runtime.bundle.kernel_attention import TOKENS, KernelAttention, kept_keys, keys_axis
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import ExportError, InputError

from ...chain_graphs import cut, half_aggregator, mark, weight_bytes

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def half(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_aggregator(tiny_bundle, tmp_path_factory.mktemp("half"))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def attend(entry: KernelAttention, tensors: Arrays) -> np.ndarray:
    """Plain attention in float64."""
    if entry.packed:
        parts = np.split(tensors[entry.query], 3, axis=2)
    else:
        parts = [tensors[name] for name in (entry.query, entry.key, entry.value)]
    length = parts[0].shape[1]
    query, key, value = (
        part.astype(np.float64).reshape(part.shape[1], entry.num_heads, -1).swapaxes(0, 1) for part in parts
    )
    scores = query @ key.swapaxes(1, 2) / entry.head_dim**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ value
    return out.swapaxes(0, 1).reshape(1, length, -1).astype(entry.dtype)


def inputs(bundle: Path, views: int, rows: int, columns: int) -> Arrays:
    numbers = np.random.default_rng(views)
    axes = {"views": views, "patch_rows": rows, "patch_columns": columns}
    spec = Bundle.open(bundle, verify=False).manifest.stages["aggregator"]
    shapes = {t.name: [axis if isinstance(axis, int) else axes[axis] for axis in t.shape] for t in spec.inputs}
    return {name: numbers.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def joined(segments: Any, attention: Any, given: Arrays) -> Arrays:
    tensors = dict(given)
    for index, segment in enumerate(segments):
        names = [tensor.name for tensor in segment.outputs]
        found = session(segment.path).run(names, {tensor.name: tensors[tensor.name] for tensor in segment.inputs})
        tensors |= dict(zip(names, found, strict=True))
        if index < len(attention):
            tensors[attention[index].out] = attend(attention[index], tensors)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["flash", "flash@0", "int8@4", "flash@0/sparse:0.5@4"])
@pytest.mark.parametrize(("views", "rows", "columns"), [(1, 2, 3), (3, 2, 3), (5, 3, 1)])
def test_segments_joined_by_plain_attention_are_the_stage(
    attention: str, views: int, rows: int, columns: int, tiny_bundle: Path, half: Path, tmp_path: Path
) -> None:
    segments, entries = cut(tiny_bundle, half, tmp_path, attention)
    assert len(segments) == len(entries) + 1
    given = inputs(tiny_bundle, views, rows, columns)
    found = joined(segments, entries, given)
    uncut = session(half)
    names = [output.name for output in uncut.get_outputs()]
    for name, wanted in zip(names, uncut.run(names, given), strict=True):
        assert found[name].shape == wanted.shape
        # Half precision, and attention that adds in another order: twenty units of the last place, as TOLERANCE has it.
        np.testing.assert_allclose(found[name], wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.slow
def test_keys_of_fewer_tokens_cross_a_cut(few_keys_bundle: Path, tmp_path: Path) -> None:
    """Kernels get the keys that the graph keeps, with an axis of their own, whose size follows from the call's."""
    graph = half_aggregator(few_keys_bundle, tmp_path)
    segments, entries = cut(few_keys_bundle, graph, tmp_path, "flash@0/int8@4")
    assert [entry.key_share for entry in entries] == [0.25, 0.5]
    tensors = {tensor.name: tensor for segment in segments for tensor in segment.outputs}
    for entry in entries:
        assert tensors[entry.query].shape[:2] == (1, TOKENS)
        axis = keys_axis(entry.key_share or 1.0)
        assert [tensors[name].shape[:2] for name in (entry.key, entry.value)] == [(1, axis)] * 2
    uncut = session(graph)
    names = [output.name for output in uncut.get_outputs()]
    for views, rows, columns in ((1, 2, 3), (3, 4, 5)):
        given = inputs(few_keys_bundle, views, rows, columns)
        found = joined(segments, entries, given)
        for entry in entries:
            assert found[entry.key].shape[1] == kept_keys(views, rows, columns, 1, entry.key_share or 1.0)
        for name, wanted in zip(names, uncut.run(names, given), strict=True):
            np.testing.assert_allclose(found[name], wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.slow
def test_in_float32_cutting_changes_nothing_but_the_order_of_sums(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=False)
    graph = bundle.stage_path("aggregator")
    given = inputs(tiny_bundle, 3, 2, 3)
    uncut = session(graph)
    names = [output.name for output in uncut.get_outputs()]
    model = ir.load(graph)
    layers = AttentionChoice.parse("flash").layers(_config(tiny_bundle))
    for node in list(model.graph):  # the operator itself takes 16 bits: float32 is for this comparison alone
        if node.op_type == "MultiHeadAttention" and str(node.name).rpartition("/")[0] in layers:
            node.op_type, node.domain = "Attention", DOMAIN
            heads = node.attributes["num_heads"].as_int()
            channels = node.inputs[0].shape[-1]
            for key, value in (("head_dim", channels // heads), ("kernel", "flash"), ("extra_tokens", 1)):
                node.attributes[key] = ir.convenience.convert_attribute(key, value)
            node.outputs[0].dtype = ir.DataType.FLOAT
    marked = tmp_path / "aggregator.onnx"
    save_model(model, marked)
    folder = tmp_path / "segments"
    folder.mkdir()
    segments, entries = cut_stage(marked, folder, bundle.manifest.stages["aggregator"])
    found = joined(segments, entries, given)
    for name, wanted in zip(names, uncut.run(names, given), strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def _config(bundle: Path) -> Any:
    from mapengine.export.model.config_json import parse_config

    return parse_config(Bundle.open(bundle, verify=False).manifest.model.config, "test")


@pytest.mark.slow
def test_every_weight_is_in_one_segment(tiny_bundle: Path, half: Path, tmp_path: Path) -> None:
    segments, _ = cut(tiny_bundle, half, tmp_path, "flash")
    parts = [weight_bytes(segment.path) for segment in segments]
    counts = Counter(name for part in parts for name in part)
    assert set(counts.values()) == {1}
    assert sum(sum(part.values()) for part in parts) == sum(weight_bytes(half).values())


@pytest.mark.slow
def test_only_features_of_all_tokens_cross_a_cut(tiny_bundle: Path, half: Path, tmp_path: Path) -> None:
    segments, entries = cut(tiny_bundle, half, tmp_path, "flash")
    stage = Bundle.open(tiny_bundle, verify=False).manifest.stages["aggregator"]
    known = {tensor.name for tensor in (*stage.inputs, *stage.outputs)}
    crossing = [tensor for segment in segments for tensor in segment.outputs if tensor.name not in known]
    assert crossing
    assert all(tensor.shape[:2] == (1, TOKENS) for tensor in crossing)
    assert {entry.dtype for entry in entries} == {"float16"}


@pytest.mark.slow
def test_frame_wise_layers_stay(tiny_bundle: Path, half: Path, tmp_path: Path) -> None:
    segments, entries = cut(tiny_bundle, half, tmp_path, "flash")
    left = [node.op_type for segment in segments for node in ir.load(segment.path).graph]
    assert left.count("MultiHeadAttention") == 3
    assert [entry.layer for entry in entries] == [f"info_sharing.self_attention_blocks.{n}.attn" for n in (0, 2, 4)]


def test_nothing_to_cut_at(tiny_bundle: Path, half: Path, tmp_path: Path) -> None:
    spec = Bundle.open(tiny_bundle, verify=False).manifest.stages["aggregator"]
    with pytest.raises(ExportError, match="no attention is left to kernels"):
        cut_stage(half, tmp_path, spec)


def test_float32_attention_has_no_kernel(tiny_bundle: Path, tmp_path: Path) -> None:
    graph = Bundle.open(tiny_bundle, verify=False).stage_path("aggregator")
    with pytest.raises(ExportError, match=r"blocks.0.attn: attention is in float32.*--attention native"):
        mark(tiny_bundle, graph, tmp_path / "aggregator.onnx", "flash")


def test_heads_that_no_kernel_has(tiny_bundle: Path, half: Path) -> None:
    model = ir.load(half)
    for node in model.graph:
        if node.op_type == "MultiHeadAttention":
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", 4)
    with pytest.raises(ExportError, match=r"64 channels in 4 heads; kernels have heads of 32, 64, 128"):
        mark_attention(model.graph, {"info_sharing.self_attention_blocks.0.attn": KernelChoice("flash")}, 1)


def test_a_layer_that_is_not_there(half: Path) -> None:
    with pytest.raises(ExportError, match=r"blocks.7.attn: there is no attention that int8 could compute; export"):
        mark_attention(ir.load(half).graph, {"info_sharing.self_attention_blocks.7.attn": KernelChoice("int8")}, 1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", AttentionChoice()),
        ("native", AttentionChoice()),
        ("matmul", AttentionChoice("matmul")),
        ("flash", AttentionChoice(parts=((LayerChoice(KernelChoice("flash")), None),))),
        ("sparse:0.75", AttentionChoice(parts=((LayerChoice(KernelChoice("sparse", 0.75)), None),))),
        ("int8-fp8", AttentionChoice(parts=((LayerChoice(KernelChoice("int8-fp8")), None),))),
        ("sparse-int8:1@2", AttentionChoice(parts=((LayerChoice(KernelChoice("sparse-int8", 1.0)), (2,)),))),
        ("sparse-int8-fp8:0.5", AttentionChoice(parts=((LayerChoice(KernelChoice("sparse-int8-fp8", 0.5)), None),))),
        (
            "int8@0,2/sparse:0.9@4",
            AttentionChoice(
                parts=((LayerChoice(KernelChoice("int8")), (0, 2)), (LayerChoice(KernelChoice("sparse", 0.9)), (4,)))
            ),
        ),
    ],
)
def test_what_is_asked_for(text: str, wanted: AttentionChoice) -> None:
    assert AttentionChoice.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "form", "kernels", "shares"),
    [
        ("native:kv=0.25@0,2", "auto", {}, {0: 0.25, 2: 0.25}),
        ("native:kv=0.25", "auto", {}, {0: 0.25, 2: 0.25, 4: 0.25}),
        ("native:kv=1", "auto", {}, {}),
        ("matmul:kv=0.5@4", "matmul", {}, {4: 0.5}),
        ("int8:kv=0.5@4/native:kv=0.25@2/flash@0", "auto", {0: "flash", 4: "int8"}, {2: 0.25, 4: 0.5}),
        ("attention:kv=0.5@4/native:kv=1e-3@2", "attention", {}, {2: 0.001, 4: 0.5}),
    ],
)
def test_a_share_of_the_keys(
    text: str, form: str, kernels: dict[int, str], shares: dict[int, float], tiny_bundle: Path
) -> None:
    choice, config = AttentionChoice.parse(text), _config(tiny_bundle)
    assert choice.form == form
    assert choice.key_shares(config) == shares
    found = {layer: kernel.kernel for layer, kernel in choice.layers(config).items()}
    assert found == {LAYER.format(block): kernel for block, kernel in kernels.items()}
    assert choice.keeps_all_keys == (not shares)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"native:kv={share}@2", "has no share of the keys above 0 and up to 1")
            for share in ("0", "2", "-1", "", "x")
        ),
        ("int8:kv=nan", "has no share of the keys above 0 and up to 1; write it as in int8:kv=0.25"),
        ("native:kv=0.25:kv=0.5", "has no share of the keys"),
        ("native:kv=0.25@1", r"native:kv=0.25 is asked for in block 1 .*, which it is for, are 0, 2, 4"),
        ("native:kv=0.25@0/int8:kv=0.5@0", "names block 0 twice, for native:kv=0.25 and int8:kv=0.5"),
        ("native:kv=0.25/int8@4", "names block 4 twice"),
        ("sparse:0.9:kv=0.25", "would choose among keys that were chosen before; leave out kv= or use flash:kv=0.25"),
        ("sparse-int8:0.9:kv=0.5@2", "leave out kv= or use int8:kv=0.5"),
        ("matmul:kv=0.25@0/mha:kv=0.25@2", "in 2 forms, matmul and mha; use one of them, or native"),
        ("auto:kv=0.5", "'auto' is no kernel"),
        ("native@2", "'native' is no kernel"),
    ],
)
def test_shares_that_cannot_be_kept(text: str, message: str, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        AttentionChoice.parse(text).key_shares(_config(tiny_bundle))


@pytest.mark.parametrize(
    "text",
    [
        *("", "flush", "flash:1", "sparse", "sparse:0", "sparse:1.5", "sparse:nan", "int8@0/x"),
        *("int8-fp8:0.5", "sparse-fp8:0.5", "sparse-int8", "sparse-int8:2", "sparse-int8-fp8:"),
    ],
)
def test_what_is_no_kernel(text: str) -> None:
    with pytest.raises(InputError, match=r"sparse.*:.*, or auto, native, mha, attention, matmul"):
        AttentionChoice.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flash@", r"names no blocks behind the @"),
        ("flash@a", r"names no blocks behind the @"),
        ("flash@1", r"flash is asked for in block 1 .* over all views, which it is for, are 0, 2, 4"),
        ("flash@6", r"in block 6"),
        ("flash@0/int8@0", r"names block 0 twice, for flash and int8"),
        ("flash/int8@2", r"names block 2 twice"),
    ],
)
def test_blocks_that_no_kernel_can_serve(text: str, message: str, tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        AttentionChoice.parse(text).layers(_config(tiny_bundle))


def test_a_choice_is_written_as_it_is_read() -> None:
    for text in ("flash", "int8", "int8-fp8", "sparse:0.9", "sparse-int8:1", "sparse-int8-fp8:0.75"):
        assert str(parse_choice(text)) == text
