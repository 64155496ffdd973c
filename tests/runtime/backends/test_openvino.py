"""Memory of OpenVINO stages: weights that are mapped, results that are large, pages that are given back."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from mapengine.runtime.backends.checked_stage import CheckedStage
from mapengine.runtime.backends.contract import StageRunner
from mapengine.runtime.backends.openvino import OpenVinoBackend, cause
from mapengine.runtime.bundle.stages import StageSpec, TensorSpec
from mapengine.runtime.errors import BackendError

WEIGHT = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)  # 16 MiB
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says what is mapped where")


@pytest.fixture
def stage(tmp_path: Path) -> StageRunner:
    """One product, with its weight in ``stage.onnx.data``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "stage",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2048])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "stage.onnx"
    onnx.save(model, path, save_as_external_data=True, location="stage.onnx.data", size_threshold=0)
    return OpenVinoBackend(1).load_stage("stage", path)


def resident_pages(path: Path) -> int:
    """Bytes of a mapped file that lie in memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if "-" in fields[0]:
            ours = fields[-1] == str(path)
        elif ours and fields[0] == "Rss:":
            found += 1024 * int(fields[1])
    return found


@pytest.mark.slow
@linux
def test_a_stage_keeps_none_of_its_file_before_it_runs_nor_after(stage: StageRunner, tmp_path: Path) -> None:
    """The geometry encoder of a call with images alone never runs."""
    assert resident_pages(tmp_path / "stage.onnx.data") < WEIGHT.nbytes / 10
    x = np.ones((3, 2048), np.float32)
    np.testing.assert_allclose(stage.run({"x": x})["y"], x @ WEIGHT, atol=1e-2)
    assert resident_pages(tmp_path / "stage.onnx.data") < WEIGHT.nbytes / 10


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 700])
def test_no_result_changes_when_the_stage_runs_again(stage: StageRunner, rows: int) -> None:
    inputs = [np.random.default_rng(seed).standard_normal((rows, 2048), np.float32) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda x: stage.run({"x": x})["y"], inputs))
    found.append(stage.run({"x": inputs[0]})["y"])
    for x, y in zip([*inputs, inputs[0]], found, strict=True):
        np.testing.assert_allclose(y, x @ WEIGHT, atol=1e-2)
        y += 1  # is the caller's own
    np.testing.assert_allclose(stage.run({"x": inputs[0]})["y"], inputs[0] @ WEIGHT, atol=1e-2)


@pytest.mark.slow
def test_the_results_of_an_earlier_call_are_never_those_of_this_one(
    stage: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory runs out: the library computes nothing, and returns without an error."""
    tensors = (TensorSpec("x", "float32", ("n", 2048)),), (TensorSpec("y", "float32", ("n", 2048)),)
    checked = CheckedStage("openvino", "stage", StageSpec(None, inputs=tensors[0], outputs=tensors[1]), lambda: stage)
    x = np.ones((3, 2048), np.float32)
    kept = checked.run({"x": x})["y"]
    np.testing.assert_allclose(kept, x @ WEIGHT, atol=1e-2)
    with monkeypatch.context() as patch:
        patch.setattr(openvino.InferRequest, "infer", lambda self, *_, **__: self.results)
        with pytest.raises(BackendError, match=r"its result y is 0x2048 of float32 instead of 3x2048"):
            checked.run({"x": 2 * x})
    np.testing.assert_allclose(checked.run({"x": 2 * x})["y"], 2 * x @ WEIGHT, atol=1e-2)
    np.testing.assert_allclose(kept, x @ WEIGHT, atol=1e-2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Exception from src/inference/src/cpp/core.cpp:84:\nException from src/model_reader.cpp:148:\n"
         'Unable to read the model: "x.onnx" is wrong.\n\n', 'Unable to read the model: "x.onnx" is wrong'),
        ("Exception from src/core.cpp:84:\nCheck 'false' failed at src/report.cpp:151:\nFrontEnd API failed:\n"
         "Summary:\n-- No conversion rule found for operations: Nope-19\n",
         "No conversion rule found for operations: Nope-19"),
        ("Exception from src/core.cpp:84:\nCheck 'a > b' failed at src/report.cpp:151:\n", "Check 'a > b' failed"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_cause_of_an_error_is_told(text: str, sentence: str) -> None:
    assert cause(RuntimeError(text)) == sentence


def test_refusals_name_no_line_of_the_librarys_source(stage: StageRunner, tmp_path: Path) -> None:
    model = onnx.load(tmp_path / "stage.onnx", load_external_data=False)
    model.graph.node[0].op_type = "Nope"
    onnx.save(model, tmp_path / "nope.onnx")
    for name, words in (("nope", "No conversion rule found for operations: Nope"), ("stage", r"stage\.onnx\.data")):
        with pytest.raises(BackendError, match=words) as caught:
            OpenVinoBackend(1).load_stage("aggregator", tmp_path / f"{name}.onnx")
        assert ".cpp" not in str(caught.value)
        (tmp_path / "stage.onnx.data").unlink(missing_ok=True)
    with pytest.raises(BackendError) as caught:
        stage.run({"x": np.ones((3, 7), np.float32)})
    assert ".cpp" not in str(caught.value)
