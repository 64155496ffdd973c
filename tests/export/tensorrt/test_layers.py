"""The listing of a plan's layers: recorded pieces in all attention forms and precisions, and the inspector's JSON."""

from __future__ import annotations

import json
import re

import pytest

from mapengine.export.tensorrt.graph import AttentionBlock, GraphProduct, StageGraph
from mapengine.export.tensorrt.layers import LayerReport, parse_inspector, parse_listing, report_layers
from mapengine.runtime.errors import ExportError

from ...goldens import DATA

BLOCK = "encoder.model.blocks.0"
LINEAR = tuple(f"{BLOCK}.{name}/MatMul" for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"))
NODES = {
    "mha": (f"{BLOCK}.attn/MultiHeadAttention",),
    "attention": (f"{BLOCK}.attn/Attention",),
    "matmul": (f"{BLOCK}.attn/MatMul", f"{BLOCK}.attn/Softmax", f"{BLOCK}.attn/MatMul_2"),
}


def sample(name: str) -> str:
    return (DATA / "tensorrt" / f"{name}.txt").read_text(encoding="utf-8")


def report(name: str, form: str, products: tuple[str, ...] = LINEAR) -> LayerReport:
    block = AttentionBlock(f"{BLOCK}.attn", form, NODES[form], None, 2)
    graph = StageGraph((block,), {node: GraphProduct("MatMul", None, 100 + i) for i, node in enumerate(products)})
    return report_layers(parse_listing(sample(name))[0], graph)


@pytest.mark.parametrize(
    ("name", "form", "kernel"),
    [("fp16_mha", "mha", "Half"), ("fp16_matmul", "matmul", "Half"), ("bf16_attention", "attention", "BFloat16")],
)
def test_fused_attention(name: str, form: str, kernel: str) -> None:
    found = report(name, form)
    assert (found.fused, found.unfused) == ((f"{BLOCK}.attn",), ())
    (fused,) = [layer for layer in found.layers if layer.is_fused_attention]
    assert [tensor.dtype for tensor in (*fused.inputs, *fused.outputs)] == [kernel] * 4
    assert "mha" in fused.tactic


@pytest.mark.parametrize(("name", "form"), [("fp32_mha", "mha"), ("fp32_matmul", "matmul")])
def test_unfused_attention(name: str, form: str) -> None:
    found = report(name, form)
    assert (found.fused, found.unfused) == ((), (f"{BLOCK}.attn",))
    record = found.record()
    assert (record.attention, record.fused, record.unfused) == (1, 0, (f"{BLOCK}.attn",))


def test_precision_of_the_products() -> None:
    found = report("fp16_mha", "mha", (*LINEAR, "encoder.model.patch_embed.proj/Conv", "no.such/MatMul"))
    assert found.products[f"{BLOCK}.attn.qkv/MatMul"] == ("Half x Half -> Half",)
    assert found.products[f"{BLOCK}.attn.proj/MatMul"] == ("Half x Half -> Float",)
    assert found.products["encoder.model.patch_embed.proj/Conv"][0].startswith("Half x Half")
    assert found.elsewhere == ("no.such/MatMul",)
    record = found.record()
    assert sum(record.gemms.values()) == 5
    assert record.gemms.keys() == record.macs.keys()
    assert sum(record.macs.values()) == sum(range(100, 105))  # not of the node that no layer names
    assert set(report("fp32_mha", "mha").record().gemms) == {"Float x Float -> Float"}
    assert "BFloat16 x BFloat16 -> BFloat16" in report("bf16_attention", "attention").record().gemms


def test_other_kinds_of_layers() -> None:
    layers, ports = parse_listing(sample("other_kinds"))
    kinds = {layer.kind for layer in layers}
    assert {"signal", "wait", "allocate", "deallocate", "deconv", "runtime_function", "runtime_fusion"} <= kinds
    assert {layer.kind for layer in layers if layer.is_product} == {"deconv", "runtime_fusion"}
    # Fused with the addition to the residual, which is float32 and comes first: the product itself is not.
    (last,) = [layer for layer in layers if layer.name.startswith("__myl_FcAddCastMulAdd")]
    assert [tensor.dtype for tensor in last.inputs] == ["Float", "BFloat16"]
    assert last.datatypes == "BFloat16 x BFloat16 -> Float"
    (up,) = [layer for layer in layers if layer.kind == "deconv"]
    assert up.datatypes == "Half x Half -> Half"
    assert up.origin == ("dense_head.0.input_process.1.0.1/ConvTranspose",)
    assert {port.name: port.dtype for port in ports if not port.is_input}["cam_quats"] == "float32"


def test_tensors_and_profiles() -> None:
    layers, ports = parse_listing(sample("two_profiles"))
    images = ports[0]
    assert (images.name, images.is_input, images.dtype, images.shape) == ("images", True, "float16", (-1, 3, -1, 518))
    assert images.profiles == (
        ((1, 3, 392, 518), (2, 3, 392, 518), (4, 3, 392, 518)),
        ((1, 3, 518, 518), (2, 3, 518, 518), (4, 3, 518, 518)),
    )
    assert [port.profiles for port in ports[1:]] == [(), ()]
    # One fused layer per profile is one fused block.
    assert sum(layer.is_fused_attention for layer in layers) == 2
    block = AttentionBlock(f"{BLOCK}.attn", "MultiHeadAttention", NODES["mha"], None, 2)
    assert report_layers(layers, StageGraph((block,), {})).fused == (f"{BLOCK}.attn",)


def test_a_block_that_only_one_profile_fuses_is_not_fused() -> None:
    layers = (*parse_listing(sample("fp16_mha"))[0], *parse_listing(sample("fp32_mha"))[0])
    block = AttentionBlock(f"{BLOCK}.attn", "MultiHeadAttention", NODES["mha"], None, 2)
    found = report_layers(layers, StageGraph((block,), {LINEAR[0]: GraphProduct("MatMul", None)}))
    assert found.unfused == (f"{BLOCK}.attn",)
    assert found.products[LINEAR[0]] == ("Float x Float -> Float", "Half x Half -> Half")


@pytest.mark.parametrize("text", ["", "Layers:\n", "Layers:\nName: x, Kind: y\n", "nothing of the kind"])
def test_an_unknown_listing_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="form"):
        parse_listing(text)


INSPECTED = {
    # The shape of NVIDIA's documented examples (a convolution), and of a Myelin layer in detailed verbosity.
    "Layers": [
        {
            "Name": "dense_head.conv/Conv + relu/Relu",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {"Name": "x", "Dimensions": [-1, 8, -1, -1], "Format/Datatype": "Row major linear FP16 format."}
            ],
            "Outputs": [
                {"Name": "y", "Dimensions": [-1, 8, -1, -1], "Format/Datatype": "Channel major FP16 format"}
            ],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 576},
            "Bias": {"Type": "Half", "Count": 8},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16",
            "TacticValue": "0x61f0",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: dense_head.conv/Conv]\u001e[ONNX Layer: relu/Relu]",
        },
        {
            "Name": "_gemm_mha_v2_myl0_8",
            "LayerType": "kgen",
            "Inputs": [{"Name": n, "Dimensions": [-1, 64], "Format/Datatype": "Half"} for n in "qkv"],
            "Outputs": [{"Name": "o", "Dimensions": [-1, 64], "Format/Datatype": "Half"}],
            "TacticName": "_gemm_mha_v2_0x1234",
            "StreamId": 0,
            "Metadata": f"[ONNX Layer: {NODES['matmul'][0]}]\u001e[ONNX Layer: {NODES['matmul'][2]}]",
        },
        {
            "Name": "w/MatMul_myl0_3",
            "LayerType": "gemm",
            "Inputs": [{"Name": "a", "Dimensions": [-1, 64], "Datatype": "BFloat16", "Format": "Linear"}],
            "Constants": [{"Name": "w", "Dimensions": [64, 128], "Datatype": "BFloat16", "Format": "Linear"}],
            "Outputs": [{"Name": "b", "Dimensions": [-1, 128], "Datatype": "Float", "Format": "Linear"}],
            "TacticName": "sm80_xmma_gemm",
            "StreamId": 0,
            "Metadata": f"[ONNX Layer: {LINEAR[0]}]",
        },
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip


def test_the_inspectors_json() -> None:
    layers = parse_inspector(json.dumps(INSPECTED))
    block = AttentionBlock(f"{BLOCK}.attn", "Softmax", NODES["matmul"], None, 2)
    products = {"dense_head.conv/Conv": GraphProduct("Conv", None), LINEAR[0]: GraphProduct("MatMul", None)}
    graph = StageGraph((block,), products)
    found = report_layers(layers, graph)
    assert found.fused == (f"{BLOCK}.attn",)
    assert found.products == {
        "dense_head.conv/Conv": ("Half x Half -> Half",),
        LINEAR[0]: ("BFloat16 x BFloat16 -> Float",),
    }
    assert layers[0].origin == ("dense_head.conv/Conv", "relu/Relu")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"Layers": ["only", "names"]}', '{"Layers": [{"LayerType": "gemm"}]}', '{"Layers": 3}'],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="cannot be read"):
        parse_inspector(text)


def test_samples_hold_no_paths() -> None:
    for path in (DATA / "tensorrt").glob("*.txt"):
        assert not re.search(r"(?<!encoder\.model)/[a-z_]+/[a-z_]+/", path.read_text(encoding="utf-8")), path.name


def test_sizes_that_go_to_the_gpu_are_a_layer_without_a_kernel() -> None:
    """As TensorRT-RTX 1.7.1 lists it for an aggregator that chooses its keys."""
    sizes = (
        "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: (Unnamed Layer* "
        "203) [Shuffle]_output, Location: Device, Dimensions: [1], Datatype: Int64, Format: Format not available due "
        "to dynamic shapes }], ParameterType: ShapeH2D, shapeValues0: [-18], TacticValue: 0x0, StreamId: 0, "
        "Metadata: "
    )
    (layer,), _ = parse_listing(sizes)
    assert not layer.is_product
    assert not layer.is_fused_attention
    assert [tensor.dtype for tensor in layer.outputs] == ["Int64"]
    with pytest.raises(ExportError, match="a layer in an unknown form"):
        parse_listing(sizes.replace("ShapeHostToDevice,", "kgen,"))
