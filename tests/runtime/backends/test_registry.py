"""The backends themselves: errors in one line, memory, and the choice among them."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mapengine.runtime.backends.contract import Backend
from mapengine.runtime.backends.libraries import is_installed, utf8_path
from mapengine.runtime.backends.registry import make_backend
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendError, BackendUnavailableError, one_line

NAMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    return make_backend(request.param, NAMES, threads=1)


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return "\n" not in text and "Traceback" not in text and 20 < len(text) < 600


def test_what_a_backend_says_of_itself(backend: Backend) -> None:
    assert backend.name in NAMES
    assert backend.version[0].isdigit()
    assert backend.device.startswith("CPU: ")
    assert backend.compute_capability is None


@pytest.mark.slow
def test_stages_return_what_the_manifest_says(backend: Backend, tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle, verify=False).manifest
    runner = backend.load_stage("image_encoder", tiny_bundle / manifest.stages["image_encoder"].file.file)
    images = np.random.default_rng(0).normal(size=(3, 3, 42, 56)).astype(np.float32)
    outputs = runner.run({"images": images})
    assert list(outputs) == [spec.name for spec in manifest.stages["image_encoder"].outputs]
    assert all(value.dtype == np.float32 and len(value) == 3 for value in outputs.values())
    assert outputs["patch_features"].shape[1:3] == (3, 4)
    strided = np.asfortranarray(images)
    np.testing.assert_array_equal(runner.run({"images": strided})["patch_features"], outputs["patch_features"])


@pytest.mark.parametrize(
    "content", [b"", b"no graph at all", b"\x08\x0a\x12\x04junk" * 40], ids=["empty", "text", "junk"]
)
def test_a_stage_that_cannot_be_loaded(backend: Backend, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "aggregator.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=rf"{backend.name} .* cannot load the stage aggregator: .* build the bundle"):
        backend.load_stage("aggregator", path)
    with pytest.raises(BackendError) as caught:
        backend.load_stage("aggregator", tmp_path / "missing.onnx")
    assert one_sentence(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "inputs",
    [
        {"images": np.zeros((1, 3, 42), np.float32)},
        {"images": np.zeros((1, 4, 42, 56), np.float32)},
        {"images": np.zeros((1, 3, 42, 56), np.int64)},
        {"pictures": np.zeros((1, 3, 42, 56), np.float32)},
        {},
    ],
    ids=["rank", "channels", "dtype", "name", "nothing"],
)
def test_a_stage_that_fails(backend: Backend, tiny_bundle: Path, inputs: dict[str, Any]) -> None:
    runner = backend.load_stage("image_encoder", tiny_bundle / "image_encoder.onnx")
    with pytest.raises(BackendError, match=rf"^{backend.name} failed in the stage image_encoder: ") as caught:
        runner.run(inputs)
    assert one_sentence(caught.value)
    # The stage still works.
    assert runner.run({"images": np.zeros((1, 3, 42, 56), np.float32)})["patch_features"].shape[0] == 1


def test_a_backend_that_is_broken_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not is_installed("openvino")
    with pytest.raises(
        BackendUnavailableError,
        match=r"^the backend openvino is not installed; run: pip install",
    ):
        make_backend("openvino", ["openvino"])
    for error in ("ImportError('libfoo.so.1: cannot open shared object file')", "ModuleNotFoundError('x', name='x')"):
        (tmp_path / "openvino.py").write_text(f"raise {error}")
        monkeypatch.delitem(sys.modules, "openvino", raising=False)
        with pytest.raises(BackendUnavailableError, match=r"installed but cannot be imported \((libfoo.so.1: |x).*\)"):
            make_backend("openvino", ["openvino"])
        assert is_installed("openvino")


@pytest.mark.parametrize(
    ("error", "line"),
    [(RuntimeError("first.\nsecond"), "first"), (ValueError(""), "ValueError"), (OSError("  padded \n"), "padded")],
)
def test_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from mapengine.runtime.backends.registry import make_backend

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

bundle, name, views = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
backend = make_backend(name, [name], threads=1)
encoder = backend.load_stage("image_encoder", bundle / "image_encoder.onnx")
aggregator = backend.load_stage("aggregator", bundle / "aggregator.onnx")

def run(count):
    images = np.zeros((1, 3, 112, 140), np.float32)
    features = encoder.run({"images": images})
    features["features"] = features.pop("patch_features")
    inputs = {key: np.repeat(value, count, axis=0) for key, value in features.items()}
    values = [x for x in aggregator.run(inputs).values()]
    assert all(np.isfinite(x).all() for x in values)
    return sum(x.nbytes for x in values)

run(2)
before = peak()
returned = run(views)
print(peak() - before, returned)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_attention_never_holds_all_pairs_of_tokens(tiny_bundle: Path, name: str) -> None:
    """Global attention over L tokens in memory that grows with L, not with its square."""
    views, heads = 96, 2
    tokens = views * (112 // 14) * (140 // 14)
    all_pairs = heads * tokens**2 * 4  # bytes of the scores in float32
    assert all_pairs > 4.5e8
    command = [sys.executable, "-c", MEMORY, str(tiny_bundle), name, str(views)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    growth, returned = map(int, result.stdout.split())
    assert returned > 4 * tokens * 64 * 4  # all four feature maps came back, so the network ran
    assert growth < all_pairs / 4, f"{growth / 1e6:.0f} MB more at {tokens} tokens"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are bytes on Linux alone")
def test_weights_beside_a_graph_in_a_folder_that_is_not_utf8(backend: Backend, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.arange(3, dtype=np.float32), "weight")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "stage", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "s.onnx", save_as_external_data=True, location="s.onnx.data", size_threshold=0)
    folder = tmp_path / os.fsdecode(b"not utf-8 \xff")
    folder.mkdir()
    for name in ("s.onnx", "s.onnx.data"):
        (tmp_path / name).rename(folder / name)
    opened = len(os.listdir("/proc/self/fd"))
    runner = backend.load_stage("aggregator", folder / "s.onnx")
    np.testing.assert_array_equal(runner.run({"x": np.ones((1, 3), np.float32)})["y"], [[1, 2, 3]])
    assert len(os.listdir("/proc/self/fd")) <= opened + 1  # that of the weights, where they are mapped


def test_a_folder_that_a_library_cannot_be_led_to(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"not utf-8 \xff") / "s.onnx"
    for given in (path, tmp_path / "plain"):
        expected = pytest.raises(BackendError, match=r"whose name is not UTF-8, .*; rename it$")
        with expected if given == path else nullcontext(), utf8_path(given, "onnxruntime") as place:
            assert place == str(given)


@pytest.mark.slow
def test_libraries_tell_nobody_that_they_are_used(tmp_path: Path) -> None:
    """ONNX Runtime leaves a file where temporary ones are, and OpenVINO one in the home folder, where they do."""
    script = (
        "import sys\nfrom mapengine.runtime.backends.libraries import import_library\n"
        "for name in ('onnxruntime', 'openvino'): import_library(name)\n"
        "import onnxruntime.capi._pybind_state\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment = {**kept, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert list(tmp_path.rglob("*")) == []
