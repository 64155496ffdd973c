"""The library's errors, as recorded, become one sentence that names the node and the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mapengine.export.tensorrt.messages import builder_error, parser_error, useful_line
from mapengine.runtime.errors import ExportError

from ...refusals import refused

CLEANUP = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/dispatch/"
    "checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)
RECORDED = {
    "deconv": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([type.cpp:186: infer_type] Could not infer output "
        "types for operation:    32: deconv: y-(bf16[{ForeignNode[head.up/ConvTranspose]}_shapeInput,4,16,16][]so[3,2])"
    ),
    "fp8": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
        "target(s) sm86, because the model contains HW-specific datatypes: fp8_e4m3. In compileGraph at /_src/x.cpp:2)"
    ),
    "allocation": (
        "[localCheckMacros.cpp::getErrorStr::132] Error Code 2: OutOfMemory (Requested size was 43059732 bytes.)"
    ),
    "tactics": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic "
        "Selection: no tactics to implement the operation within workspace limit. Consider increase the allowed "
        "workspace size if applicable.; [tactic.cpp:264: run] Error during tactic selection. In compileGraph at /_src)"
    ),
    "attention": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1295: attachExceptionMsgToGraph] "
        "MyelinCheckException: decompose_composite_ops.cpp:59: CHECK(composite_op->is_decomposable()) failed. "
        "Attention operation was not supported by a dedicated kernel.  (See https://docs.nvidia.com/x.html)"
    ),
    "current": (
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (In generateForCurrent at /_src/runtime/"
        "cudaDeviceProfile.cpp:221 (cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
    ),
    "profile": (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no "
        "optimization profile has been defined. In validate at /_src/optimizer/api/network.cpp:4023)"
    ),
}


def raise_(error: ExportError) -> None:
    raise error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deconv", "head.up/ConvTranspose|Could not infer output types|--precision"),
        ("fp8", "HW-specific datatypes: fp8_e4m3|leave out the --target"),
        ("allocation", "a kernel asks for 42 MiB|raise --memory-limit"),
        ("tactics", "memory limit|raise --memory-limit"),
        ("attention", "no fused kernel|--attention mha"),
        ("current", "needs a GPU|NVIDIA GPU and its driver"),
        ("profile", "no optimization profile has been defined"),
    ],
)
def test_builder_errors(name: str, words: str) -> None:
    lines = [RECORDED[name], CLEANUP]
    refused(
        ExportError,
        f"aggregator: tensorrt-rtx could not build the plan|{words}",
        lambda: raise_(builder_error("aggregator", "tensorrt-rtx", lines, ["x", "head.up/ConvTranspose"])),
    )


def test_no_reason_at_all() -> None:
    refused(ExportError, "it gives no reason", lambda: raise_(builder_error("aggregator", "tensorrt", [])))
    assert useful_line([CLEANUP, "first", "second"]) == "first"
    assert len(useful_line(["word " * 200])) < 170


def parser_problem(code: str, description: str, node: str, operator: str) -> Any:
    return SimpleNamespace(
        code=lambda: SimpleNamespace(name=code),
        desc=lambda: description,
        node_name=lambda: node,
        node_operator=lambda: operator,
    )


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ("INVALID_NODE", 'creator && "Plugin not found, are the plugin name correct?"', "blocks.0/Foo", "Foo"),
            "does not know the operator Foo of the node blocks.0/Foo|--attention",
        ),
        (
            ("UNSUPPORTED_NODE", "false", "b/DynamicQuantizeLinear", "DynamicQuantizeLinear"),
            "does not know|--attention",
        ),
        (("INVALID_VALUE", "Assertion failed: x > 0.", "a/Reshape", "Reshape"), "at the node a/Reshape (Reshape)"),
        (("MODEL_DESERIALIZE_FAILED", "Failed to parse the ONNX model.", "", ""), "Failed to parse|export the stage"),
    ],
)
def test_parser_errors(error: tuple[str, str, str, str], words: str) -> None:
    problem = parser_problem(*error)
    refused(
        ExportError,
        f"aggregator: the parser of tensorrt 10.3.0|{words}",
        lambda: raise_(parser_error("aggregator", "tensorrt", "10.3.0", [problem], [])),
    )


def test_a_parser_that_keeps_no_errors() -> None:
    refused(
        ExportError,
        "something odd",
        lambda: raise_(parser_error("aggregator", "tensorrt", "10.3.0", [], ["something odd"])),
    )
