"""What loading checks, when, and what it refuses."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime import BackendUnavailableError, Engine, InputError
from mapengine.runtime import engine as engine_module
from mapengine.runtime.backends.host_pipeline import HostBackend, Pipeline
from mapengine.runtime.backends.onnxruntime import OnnxRuntimeBackend
from mapengine.runtime.backends.openvino import OpenVinoBackend
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.checks.golden import write_golden_record
from mapengine.runtime.errors import (
    BundleNotFoundError,
    BundleReplacedError,
    IntegrityError,
    ParityError,
    VersionError,
)
from mapengine.runtime.typed_json.codec import encode

from ..engine_views import close, views_of
from ..stage_files import change_manifest, exchange

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges two folders in one step")


@pytest.mark.slow
def test_the_golden_check_runs_once_per_backend(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    checked: list[str] = []
    original = engine_module.check_golden

    def count(bundle: Any, pipeline: Any, where: str) -> Any:
        checked.append(where.partition(" ")[0])
        return original(bundle, pipeline, where)

    monkeypatch.setattr(engine_module, "check_golden", count)
    Engine.load(tiny_bundle, "onnxruntime", threads=1)
    Engine.load(tiny_bundle, "onnxruntime", threads=1)
    assert checked == ["onnxruntime"]
    Engine.load(tiny_bundle, "openvino", threads=1)
    Engine.load(tiny_bundle, "openvino", threads=1)
    Engine.load(tiny_bundle, "onnxruntime", threads=1)
    assert checked == ["onnxruntime", "openvino"]
    shutil.rmtree(tmp_path / "cache")
    Engine.load(tiny_bundle, "onnxruntime", threads=1)
    assert checked == ["onnxruntime", "openvino", "onnxruntime"]


@pytest.mark.slow
def test_a_failed_golden_check_refuses_and_is_not_remembered(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    run = Pipeline.forward

    def slightly_wrong(*args: Any, **kwargs: Any) -> Any:
        predictions = run(*args, **kwargs)
        predictions[1]["conf"] = predictions[1]["conf"] * np.float32(1.001)
        return predictions

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "forward", slightly_wrong)
        for _ in range(2):
            with pytest.raises(ParityError, match=r"onnxruntime .* wrong results .* conf of view 1"):
                Engine.load(tiny_bundle, "onnxruntime", threads=1)
    Engine.load(tiny_bundle, "onnxruntime", threads=1)


@pytest.mark.parametrize("name", ["aggregator.onnx", "golden.npz"])
def test_an_altered_file_never_reaches_a_backend(
    rewritten: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a backend saw the bundle")

    monkeypatch.setattr(OnnxRuntimeBackend, "load_stage", never)
    folder = rewritten()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{name} differs from the hash"):
        Engine.load(folder, "onnxruntime")
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(IntegrityError, match=f"{name} has {len(data) - 1} bytes"):
        Engine.load(folder, "onnxruntime")
    (folder / name).unlink()
    with pytest.raises(BundleNotFoundError, match=f"lacks the file {name}"):
        Engine.load(folder, "onnxruntime")


def test_a_newer_backend_than_installed_is_refused(rewritten: Callable[..., Path]) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        for entry in manifest["backends"]:
            entry["minimum_version"] = "9999.1"

    with pytest.raises(VersionError, match=r"needs onnxruntime 9999\.1 or newer"):
        Engine.load(rewritten(newer), "onnxruntime")


@pytest.mark.slow
def test_auto_takes_the_fastest_that_is_installed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, rewritten: Callable[..., Path]
) -> None:
    assert available_backends() == ["openvino", "onnxruntime"]
    assert Engine.load(tiny_bundle, threads=1, verify=False).backend == "onnxruntime"

    def large(manifest: dict[str, Any]) -> None:
        manifest["model"]["parameters"] = 10**9

    def only(manifest: dict[str, Any]) -> None:
        manifest["backends"] = [b for b in manifest["backends"] if b["name"] == "onnxruntime"]

    large_bundle = rewritten(large)
    assert Engine.load(large_bundle, threads=1, verify=False).backend == "openvino"
    for gone, bundle, other in (("onnxruntime", tiny_bundle, "openvino"), ("openvino", large_bundle, "onnxruntime")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, gone, None)
            assert Engine.load(bundle, threads=1, verify=False).backend == other
    change_manifest(large_bundle, only)
    assert Engine.load(large_bundle, threads=1, verify=False).backend == "onnxruntime"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"none of the backends .* pip install 'mapengine\[cpu\]'"):
        Engine.load(tiny_bundle)


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_a_backend_that_is_not_installed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=rf"{name} is not installed; run: pip install .*\[{extra}\]"):
        Engine.load(tiny_bundle, name)


@pytest.mark.parametrize("name", ["cuda", "OpenVINO", "", None, 3, ["onnxruntime"]])
def test_an_unknown_backend(tiny_bundle: Path, name: Any) -> None:
    with pytest.raises(InputError, match=r"unknown backend .*; use auto, onnxruntime, .*tensorrt or tensorrt-rtx"):
        Engine.load(tiny_bundle, name)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 10**9])
def test_threads_that_are_no_number_of_threads(tiny_bundle: Path, threads: Any) -> None:
    with pytest.raises(InputError, match=r"threads is .*; give a whole number from 1 to"):
        Engine.load(tiny_bundle, "onnxruntime", threads=threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [None, 2, np.int64(1)])
def test_any_number_of_threads_gives_the_same_result(tiny_bundle: Path, small: Engine, threads: Any) -> None:
    views = views_of(("kdp", ""))
    found = Engine.load(tiny_bundle, "onnxruntime", threads=threads, verify=False).infer(views, apply_mask=False)
    close(found, small.infer(views, apply_mask=False))


def test_verify_measures_parity(engine: Engine) -> None:
    parity = engine.verify()
    assert parity.outputs["pts3d"].max_rel < 1e-4
    assert repr(engine) == f"Engine('preset:tiny', fp32, {engine.backend} on {engine.device})"


@pytest.mark.slow
def test_a_whole_run_without_torch_and_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """As on a machine that has the runtime and one backend only."""
    Image.fromarray(sample_views(1, width=80, height=60)[0].image).save(tmp_path / "a.png")
    script = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "transformers", "onnxscript", "safetensors", "huggingface_hub"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
from mapengine.runtime import Engine, load_images
for backend in ("onnxruntime", "openvino"):
    engine = Engine.load({str(tiny_bundle)!r}, backend, threads=1)
    views = load_images([{str(tmp_path / "a.png")!r}] * 2, resize_mode="fixed_size", size=(56, 42))
    print(backend, engine.infer(views)[1]["pts3d"].shape)
    engine.reconstruct({str(tmp_path)!r}, size=(56, 42)).save({str(tmp_path / "scene.ply")!r})
assert not {{"torch", "onnx", "transformers"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["onnxruntime (1, 42, 56, 3)", "openvino (1, 42, 56, 3)"]
    assert (tmp_path / "scene.ply").stat().st_size > 1000


@pytest.mark.slow
def test_an_opened_bundle_is_hashed_as_a_folder_is(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    opened = Bundle.open(tmp_path / "bundle", verify=False)
    stage = opened.stage_path("dense_head")
    content = stage.read_bytes()
    assert Engine.load(opened, "onnxruntime", verify=False).digest == opened.digest
    stage.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleReplacedError, match=r"dense_head\.onnx was replaced or changed"):
        Engine.load(opened, "onnxruntime")
    with pytest.raises(IntegrityError, match=r"dense_head\.onnx differs from the hash"):
        Engine.load(Bundle.open(tmp_path / "bundle", verify=False), "onnxruntime")


@pytest.mark.slow
def test_a_pickled_engine_is_loaded_again(tiny_bundle: Path, small: Engine, tmp_path: Path) -> None:
    views = views_of(("", "kd"))
    again = pickle.loads(pickle.dumps(Engine.load(tiny_bundle, "onnxruntime", threads=1)))
    assert (again.backend, again.digest) == ("onnxruntime", small.digest)
    close(again.infer(views), small.infer(views))
    folder = tmp_path / "moved"
    shutil.copytree(tiny_bundle, folder)
    pickled = pickle.dumps(Engine.load(folder, "onnxruntime", threads=1))
    shutil.rmtree(folder)
    with pytest.raises(BundleNotFoundError, match="moved"):
        pickle.loads(pickled)


@pytest.mark.slow
def test_an_engine_works_in_a_spawned_process(tiny_bundle: Path) -> None:
    program = """
import multiprocessing, sys
from mapengine.runtime import Engine

def name(engine):
    return engine.backend

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(name, (Engine.load(sys.argv[1], "onnxruntime", threads=1),)))
"""
    path = tiny_bundle.parent / "spawning.py"
    path.write_text(program)
    result = subprocess.run([sys.executable, path, tiny_bundle], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "onnxruntime"), result.stderr


@pytest.fixture(scope="module")
def twins(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny bundle, and one that differs from it in a weight of the heads."""
    folder = tmp_path_factory.mktemp("twins")
    one, other = (Path(shutil.copytree(tiny_bundle, folder / name)) for name in ("one", "other"))
    path = other / "dense_head.onnx"
    model = onnx.load(path)
    bias = next(w for w in model.graph.initializer if w.name.endswith("bias") and len(w.raw_data) >= 64)
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.5).tobytes()
    onnx.save(model, path)
    record = encode(BundleWriter(other).record("dense_head.onnx"))
    change_manifest(other, lambda document: document["stages"]["dense_head"].update(record))
    return one, other


def known(twins: tuple[Path, Path], backend: str) -> dict[str, np.ndarray]:
    """What each computes, by its digest; neither is checked again."""
    expected = {}
    for folder in twins:
        engine = Engine.load(folder, backend, threads=1, verify=False)
        write_golden_record(engine.digest, backend, engine.backend_version, engine.device)
        expected[engine.digest] = depth(engine)
    one, other = expected.values()
    assert not np.array_equal(one, other)
    return expected


def depth(engine: Engine) -> np.ndarray:
    return np.asarray(engine.infer(views_of(("",)), apply_mask=False)[0]["depth_z"])


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    ("backend", "verify"), [(OnnxRuntimeBackend, True), (OnnxRuntimeBackend, False), (OpenVinoBackend, False)]
)
def test_a_bundle_that_is_replaced_while_it_loads(
    twins: tuple[Path, Path], backend: type[HostBackend], verify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the manifest of one and the numbers of the other nothing would be refused: both passed their checks."""
    one, other = twins
    expected = known(twins, backend.name)
    load_stage = backend.load_stage
    places: set[str] = {"aggregator"}

    def replaced(self: Any, name: str, *arguments: Any) -> Any:
        if name in places:
            places.remove(name)
            exchange(one, other)
        return load_stage(self, name, *arguments)

    monkeypatch.setattr(backend, "load_stage", replaced)
    before = Bundle.open(one).digest
    engine = Engine.load(one, backend.name, threads=1, verify=verify)
    assert engine.digest != before
    np.testing.assert_array_equal(depth(engine), expected[engine.digest])
    places |= {"geometry_encoder", "dense_head"}  # and back again
    engine = Engine.load(one, backend.name, threads=1, verify=verify)
    np.testing.assert_array_equal(depth(engine), expected[engine.digest])
    places.add("aggregator")
    with pytest.raises(BundleReplacedError, match="was replaced or changed while the bundle was being read; run it"):
        Engine.load(Bundle.open(one), backend.name, threads=1, verify=verify)


@linux
@pytest.mark.slow
def test_a_bundle_that_is_replaced_every_few_milliseconds(twins: tuple[Path, Path]) -> None:
    expected = known(twins, "onnxruntime")
    ended = threading.Event()
    pauses = random.Random(1)

    def replace() -> None:
        while not ended.wait(pauses.choice((0.002, 0.01, 0.05, 0.2, 0.4))):
            exchange(*twins)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(12):
            with suppress(BundleReplacedError):  # again and again
                engine = Engine.load(twins[0], "onnxruntime", threads=1)
                np.testing.assert_array_equal(depth(engine), expected[engine.digest])
    finally:
        ended.set()
        thread.join()
    engine = Engine.load(twins[0], "onnxruntime", threads=1)
    np.testing.assert_array_equal(depth(engine), expected[engine.digest])


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"not utf-8 \xff", "\u65e5\u672c".encode()])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are bytes on Linux alone")
def test_a_folder_of_any_name(tiny_bundle: Path, tmp_path: Path, name: bytes, small: Engine) -> None:
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(tiny_bundle, folder)
    for backend in ("openvino", "onnxruntime"):
        engine = Engine.load(folder, backend, threads=1)
        assert engine.digest == small.digest
    np.testing.assert_array_equal(depth(engine), depth(small))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are bytes on Linux alone")
def test_a_folder_whose_name_the_locale_cannot_say(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "\u65e5\u672c"))
    script = "import sys; from mapengine.runtime import Engine; print(Engine.load(sys.argv[1], 'onnxruntime').digest)"
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script, folder], env={**os.environ, **plain}, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.strip()) == (0, Bundle.open(tiny_bundle).digest), result.stderr
