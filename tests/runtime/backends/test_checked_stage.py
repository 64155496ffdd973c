"""What a library returns is held against the manifest, and a stage that failed is loaded again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mapengine.runtime.backends.checked_stage import CheckedStage
from mapengine.runtime.backends.libraries import library_error
from mapengine.runtime.bundle.stages import StageSpec, TensorSpec
from mapengine.runtime.errors import BackendError, ManifestError

Arrays = Mapping[str, NDArray[Any]]

IMAGES = TensorSpec("images", "float32", ("views", 3, "14*patch_rows", "14*patch_columns"))
FEATURES = TensorSpec("features", "float32", ("views", "patch_rows", "patch_columns", 5))
SPEC = StageSpec(None, inputs=(IMAGES,), outputs=(FEATURES, TensorSpec("scale", "float32", (1,))), segments=())
INPUTS = {"images": np.zeros((2, 3, 28, 42), np.float32)}
RIGHT = {"features": np.ones((2, 2, 3, 5), np.float32), "scale": np.ones(1, np.float32)}


class Library:
    """Loads stages that answer with ``outputs``."""

    def __init__(self) -> None:
        self.outputs: Any = RIGHT
        self.loaded = 0

    def load(self) -> Any:
        self.loaded += 1
        return self

    def run(self, inputs: Arrays) -> Any:
        if isinstance(self.outputs, Exception):
            raise self.outputs
        return self.outputs


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def stage(library: Library) -> CheckedStage:
    return CheckedStage("openvino", "image_encoder", SPEC, library.load)


def test_right_results_pass_as_they_are(stage: CheckedStage, library: Library) -> None:
    assert stage.run(INPUTS) is RIGHT
    library.outputs = {**RIGHT, "features": np.ones((7, 1, 4, 5), np.float32)}
    assert stage.run({"images": np.zeros((7, 3, 14, 56), np.float32)})["features"].shape == (7, 1, 4, 5)
    assert library.loaded == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"features": np.empty(0, np.float32)}, "features is 0 of float32 instead of 2x2x3x5 of float32"),
        ({"features": np.empty((0, 2, 3, 5), np.float32)}, "features is 0x2x3x5"),
        ({"features": np.ones((2, 2, 3, 4), np.float32)}, "features is 2x2x3x4"),
        ({"features": np.ones((1, 2, 3, 5), np.float32)}, "features is 1x2x3x5"),
        ({"features": RIGHT["features"].astype(np.float64)}, "features is 2x2x3x5 of float64"),
        ({"scale": np.float32(1)}, "scale is one number of float32 instead of 1 of float32"),
        ({"scale": np.empty((0,), np.float32)}, "scale is 0 of float32"),
    ],
)
def test_another_shape_or_dtype_is_a_failure_after_which_the_stage_is_loaded_again(
    wrong: Arrays, said: str, stage: CheckedStage, library: Library
) -> None:
    library.outputs = {**RIGHT, **wrong}
    for loaded in (1, 2):
        with pytest.raises(BackendError, match=r"^openvino failed in the stage image_encoder without") as hit:
            stage.run(INPUTS)
        assert said in str(hit.value)
        assert "use fewer or smaller views in one call" in str(hit.value)
        assert library.loaded == loaded
    library.outputs = RIGHT
    assert stage.run(INPUTS) is RIGHT
    assert library.loaded == 3


def test_a_result_that_is_missing_is_named(stage: CheckedStage, library: Library) -> None:
    library.outputs = {"features": RIGHT["features"]}
    with pytest.raises(BackendError, match="its result scale is missing"):
        stage.run(INPUTS)


def test_a_failure_of_the_library_stays_as_it_is_and_the_stage_is_loaded_again(
    stage: CheckedStage, library: Library
) -> None:
    library.outputs = BackendError("openvino failed in the stage image_encoder: something")
    with pytest.raises(BackendError, match=r"something$"):
        stage.run(INPUTS)
    library.outputs = RIGHT
    stage.run(INPUTS)
    stage.run(INPUTS)
    assert library.loaded == 2


def test_loading_that_fails_is_tried_again_by_the_next_call(library: Library) -> None:
    answers: list[Any] = [library, BackendError("no memory to load it"), library]

    def load() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    failures: list[int] = []
    stage = CheckedStage("openvino", "image_encoder", SPEC, load, failed=lambda: failures.append(1))
    library.outputs = BackendError("failed")
    with pytest.raises(BackendError, match="failed"):
        stage.run(INPUTS)
    library.outputs = RIGHT
    with pytest.raises(BackendError, match="no memory to load it"):
        stage.run(INPUTS)
    assert stage.run(INPUTS) is RIGHT
    assert failures == [1]  # what was not loaded did not fail in use


def test_a_stage_is_not_loaded_again_where_there_is_no_room_for_it(library: Library) -> None:
    """OpenVINO ends the process there."""
    stage = CheckedStage("openvino", "image_encoder", SPEC, library.load, room=2**60)
    library.outputs = BackendError("failed")
    with pytest.raises(BackendError, match="failed"):
        stage.run(INPUTS)
    with pytest.raises(BackendError, match=r"image_encoder failed before and has to be loaded again, and .* are free"):
        stage.run(INPUTS)
    assert library.loaded == 1


def test_a_library_that_recovers_by_itself_loads_its_stages_once(library: Library) -> None:
    stage = CheckedStage("onnxruntime", "image_encoder", SPEC, library.load, room=None)
    library.outputs = BackendError("failed")
    with pytest.raises(BackendError, match="failed"):
        stage.run(INPUTS)
    library.outputs = RIGHT
    assert stage.run(INPUTS) is RIGHT
    assert library.loaded == 1


def test_threads_that_fail_together_load_the_stage_once(stage: CheckedStage, library: Library) -> None:
    together = threading.Barrier(4)

    def fail(_: Arrays) -> Any:
        together.wait()
        raise BackendError("failed")

    library.run = fail  # type: ignore[method-assign]

    def call(_: int) -> None:
        with pytest.raises(BackendError, match="failed"):
            stage.run(INPUTS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))
        del library.run
        assert list(pool.map(lambda _: stage.run(INPUTS) is RIGHT, range(4))) == [True] * 4
    assert library.loaded == 2


def test_an_axis_that_no_input_has_is_refused_when_the_stage_is_loaded(library: Library) -> None:
    outputs = (TensorSpec("features", "float32", ("views", "14*tokens")),)
    with pytest.raises(ManifestError, match=r"image_encoder gives features the axis 14\*tokens, which none of its inp"):
        CheckedStage("openvino", "image_encoder", StageSpec(None, inputs=(IMAGES,), outputs=outputs), library.load)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("x std::bad_alloc"), RuntimeError("Failed to allocate memory for buffer")]
)
def test_memory_that_ran_out_is_told_from_other_failures(error: Exception) -> None:
    text = str(library_error("onnxruntime failed in the stage aggregator", error, "its words", "build again"))
    assert text.startswith("onnxruntime failed in the stage aggregator, because memory ran out (its words); use fewer")
    assert "build again" not in text
    other = library_error("onnxruntime cannot load it", RuntimeError("x"), "x", "build again")
    assert str(other) == "onnxruntime cannot load it: x; build again"


LIMITED = """
import resource, sys
import numpy as np, psutil
from mapengine.runtime import Engine
from mapengine.runtime.errors import BackendError

engine = Engine.load(sys.argv[1], sys.argv[2], threads=1, verify=False)

def views(count, side):
    image = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
    return [{"img": image, "data_norm_type": [engine.data_norm_type]}] * count

wanted = engine.infer(views(2, 56))
engine.infer(views(2, 56))
held = psutil.Process().memory_info().vms
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[3]) * 2**20, hard))
for _ in range(2):
    try:
        engine.infer(views(16, int(sys.argv[4])))
    except (BackendError, MemoryError) as error:
        print("refused", type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
again = engine.infer(views(2, 56))
assert all(np.array_equal(a[key], b[key]) for a, b in zip(wanted, again) for key in a), "differs afterwards"
print("recovered")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds the address space to a limit")
@pytest.mark.parametrize(("backend", "megabytes", "side"), [("onnxruntime", 24, 392), ("openvino", 60, 518)])
def test_an_engine_recovers_when_memory_is_back(backend: str, megabytes: int, side: int, tiny_bundle: Path) -> None:
    """No stand-in knows how a library fails: it gets too little address space, and then enough again."""
    command = [sys.executable, "-c", LIMITED, str(tiny_bundle), backend, str(megabytes), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.rstrip().endswith("recovered")
    assert done.stdout.count("refused") == 2, done.stdout
    assert "Exception from" not in done.stdout
