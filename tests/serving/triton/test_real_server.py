"""Both models behind a real server; `make triton` installs one in an environment of its own, where these tests run."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Engine, InputError
from mapengine.runtime.inputs.normalization import normalize_image
from mapengine.runtime.options import OUTPUTS
from mapengine.serving.triton.repository import RepositoryOptions, write_repository

from ...stage_files import change_manifest
from .real_server import Client, RealServer, image_file, running

utils = pytest.importorskip("tritonclient.utils", reason="needs a Triton server: run `make triton`")
pytestmark = pytest.mark.slow

Tensors = dict[str, Any]
V, H, W = 3, 56, 84
BOUND_BYTES = 32 * 2**20
"""Growth that is still none: allocators keep some memory."""


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small network at small sizes: ``MAPENGINE_TRITON_BUNDLE``, else it is built."""
    built = os.environ.get("MAPENGINE_TRITON_BUNDLE") or request.getfixturevalue("tiny_bundle")
    folder = tmp_path_factory.mktemp("triton") / "bundle"
    shutil.copytree(built, folder)
    change_manifest(folder, lambda document: document["profile"].update(sizes=[[W, H], [H, W]]))
    return folder


@pytest.fixture(scope="module")
def repository(bundle: Path) -> Path:
    write_repository(bundle, bundle.parent / "models", RepositoryOptions(backend="onnxruntime", threads=1))
    return bundle.parent / "models"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RealServer]:
    cache = str(repository.parent / "cache")
    with running(repository, repository.parent / "server.log", MAPENGINE_CACHE=cache) as started:
        yield started


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine.load(bundle, "onnxruntime", threads=1, verify=False)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: RealServer) -> Client:
    return Client.of(server, request.param)


def scene(seed: int = 0) -> Tensors:
    """Images of noise, and everything that may be known of them."""
    draws = np.random.default_rng(seed)
    poses = np.stack([np.eye(4)] * V)
    poses[:, :3, 3] = draws.normal(size=(V, 3))
    camera = np.float32([[80, 0, W / 2], [0, 80, H / 2], [0, 0, 1]])
    return {
        "images": draws.integers(0, 256, (V, H, W, 3), np.uint8),
        "intrinsics": np.stack([camera] * V),
        "depth_z": draws.uniform(1, 3, (V, H, W)).astype(np.float32),
        "camera_poses": poses,
        "is_metric_scale": np.array([True, False, True]),
        "mask": draws.random((V, H, W)) > 0.2,
    }


def views_of(tensors: Tensors, missing: dict[str, list[int]] | None = None) -> list[dict[str, Any]]:
    """The same scene for ``infer``."""
    views = []
    for index, image in enumerate(tensors["images"]):
        view: dict[str, Any] = {"img": normalize_image(image), "data_norm_type": ["dinov2"]}
        for name, values in tensors.items():
            if name != "images" and index not in (missing or {}).get(name, ()):
                view[name] = values[index][None]
        views.append(view)
    return views


def assert_equal(found: Tensors, predictions: list[dict[str, Any]]) -> None:
    """Bit for bit, types and shapes included."""
    assert set(found) == set(predictions[0])
    for name, values in found.items():
        wanted = np.concatenate([view[name] for view in predictions])
        assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape), name
        assert values.tobytes() == wanted.tobytes(), name


def images_only(seed: int = 0) -> Tensors:
    return {"images": scene(seed)["images"]}


def test_arrays_give_the_numbers_of_infer(client: Client, engine: Engine) -> None:
    assert_equal(client.infer("mapanything", images_only()), engine.infer(views_of(images_only())))
    everything = scene()
    assert_equal(client.infer("mapanything", everything), engine.infer(views_of(everything)))


def test_views_may_bring_different_things(client: Client, engine: Engine) -> None:
    missing = {"intrinsics": [1], "depth_z": [0, 1], "camera_poses": [2]}
    flags = {f"has_{name}": np.array([i not in without for i in range(V)]) for name, without in missing.items()}
    found = client.infer("mapanything", scene() | flags)
    assert_equal(found, engine.infer(views_of(scene(), missing)))


def test_parameters_are_options(client: Client, engine: Engine) -> None:
    options = {"apply_confidence_mask": True, "confidence_percentile": 33.3, "minibatch_size": 1}
    assert_equal(client.infer("mapanything", scene(), **options), engine.infer(views_of(scene()), **options))
    found = client.infer("mapanything", images_only(), apply_mask=False)
    assert_equal(found, engine.infer(views_of(images_only()), apply_mask=False))
    assert "mask" not in found


def test_only_what_is_asked_for_comes_back(client: Client, engine: Engine) -> None:
    names = ("camera_poses", "conf")
    for model in ("mapanything", "mapanything_files"):
        tensors = images_only() if model == "mapanything" else files(images_only()["images"])
        found = client.infer(model, tensors, names)
        assert set(found) == set(names)
        assert_equal(found, engine.infer(views_of(images_only()), outputs=names))


def files(images: Any, form: str = "PNG") -> Tensors:
    return {"files": np.array([image_file(image, form) for image in images], dtype=object)}


def test_files_give_the_numbers_of_infer(client: Client, engine: Engine, tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    photos = [
        np.asarray(Image.fromarray(draws.integers(0, 256, (10, 15, 3), np.uint8)).resize(size))
        for size in ((300, 200), (320, 200), (150, 100))
    ]
    camera = np.float32([[250, 0, 150], [0, 250, 100], [0, 0, 1]])
    has = np.array([True, True, False])
    given = files(photos, "JPEG") | {"intrinsics": np.stack([camera] * 3), "has_intrinsics": has}
    views = []
    for index, content in enumerate(given["files"]):
        (tmp_path / f"{index}.jpg").write_bytes(content)
        views.append({"img": Image.open(tmp_path / f"{index}.jpg"), **({"intrinsics": camera} if has[index] else {})})
    options = {"apply_confidence_mask": True, "confidence_percentile": 12.5}
    found = client.infer("mapanything_files", given, **options)
    assert found["pts3d"].shape == (3, H, W, 3)
    assert_equal(found, engine.infer(engine.preprocess(views), **options))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as refusal:
        call()
    return str(refusal.value)


def changed(name: str, change: Callable[[Any], Any]) -> Tensors:
    tensors = scene()
    tensors[name] = change(tensors[name])
    return tensors


def with_value(values: Any, value: float, *place: int) -> Any:
    values = values.copy()
    values[place] = value
    return values


BAD = {
    "a pose that is no number": changed("camera_poses", lambda v: with_value(v, np.nan, 1, 0, 0)),
    "a rotation that is none": changed("camera_poses", lambda v: v * 2),
    "a focal length of zero": changed("intrinsics", lambda v: with_value(v, 0, 2, 0, 0)),
    "negative depth": changed("depth_z", lambda v: -v),
    "depth of another size": changed("depth_z", lambda v: v[:, :-1]),
    "a mask of another size": changed("mask", lambda v: v[:, :, :-3]),
    "depth without a camera": {n: v for n, v in scene().items() if n != "intrinsics"},
    "two calibrations": scene() | {"ray_directions": np.ones((V, H, W, 3), np.float32)},
    "images of no patches": {"images": np.zeros((1, 15, 28, 3), np.uint8)},
    "images of a size that is not served": {"images": np.zeros((1, 28, 28, 3), np.uint8)},
    "no images": {"images": np.zeros((0, H, W, 3), np.uint8)},
}


@pytest.mark.parametrize("tensors", BAD.values(), ids=BAD.keys())
def test_bad_requests_get_the_sentence_of_infer(client: Client, engine: Engine, tensors: Tensors) -> None:
    sentence = refused(lambda: engine.infer(views_of(tensors)))
    with pytest.raises(utils.InferenceServerException) as refusal:
        client.infer("mapanything", tensors)
    assert refusal.value.message() == sentence
    assert refusal.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def test_a_sentence_passes_through_the_model_in_front(client: Client, engine: Engine) -> None:
    given = files(images_only()["images"])
    for parameters, sentence in (
        ({"aply_mask": True}, "there is no option 'aply_mask'; the nearest is 'apply_mask'"),
        ({"confidence_percentile": 101.0}, "confidence_percentile is 101.0; it must be a number, between 0 and 100"),
    ):
        with pytest.raises(utils.InferenceServerException, match=re.escape(sentence)):
            client.infer("mapanything_files", given, **parameters)
    depth = np.ones((V, H, W), np.float32)
    views = [{"img": Image.fromarray(i), "depth_z": depth[0]} for i in images_only()["images"]]
    sentence = refused(lambda: engine.infer(engine.preprocess(views)))
    with pytest.raises(utils.InferenceServerException) as refusal:
        client.infer("mapanything_files", given | {"depth_z": depth})
    assert refusal.value.message() == sentence


# ---- whatever comes in -------------------------------------------------------------------------------------------


def post(server: RealServer, model: str, body: bytes, header: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=60)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, header)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def malformed(index: int) -> tuple[str, bytes, dict[str, str]]:
    """A request that is wrong in one of many ways: model, body and headers."""
    draws = random.Random(index)
    model = draws.choice(("mapanything", "mapanything_files"))
    images, content = scene(index)["images"], image_file(scene(index)["images"][0])
    damaged = bytearray(content)
    for _ in range(20):
        damaged[draws.randrange(40, len(damaged))] = draws.randrange(256)
    length = len(content).to_bytes(4, "little")
    tensor: dict[str, Any] = {"name": "images", "shape": list(images.shape), "datatype": "UINT8"}
    data = images.tobytes()
    if model == "mapanything_files":
        tensor, data = {"name": "files", "shape": [1], "datatype": "BYTES"}, length + content
    way = index % 12
    if way == 0:
        return model, draws.randbytes(draws.randrange(400)), {}
    if way == 1:
        data = draws.randbytes(len(data) - 1 - draws.randrange(100))
    if way == 2:
        tensor["shape"] = draws.choice(([-1], [2**40], [1, 2, 3, 4, 5], [], ["x"], [1.5], None, {"a": 1}))
    if way == 3:
        tensor["datatype"] = draws.choice(("FP32", "INT64", "BYTES" if model == "mapanything" else "BOOL", "", 7, None))
    if way == 4:
        tensor["name"] = draws.choice(("", "image", "\x00", "pts3d", None, 3))
    if way == 5:  # a file that is none, or is broken
        model, tensor = "mapanything_files", {"name": "files", "shape": [1], "datatype": "BYTES"}
        broken = draws.choice((b"", content[: draws.randrange(8, 60)], b"\xff\xd8\xff" + draws.randbytes(80)))
        data = len(broken).to_bytes(4, "little") + broken
    if way == 6:  # lengths that lie
        model, tensor = "mapanything_files", {"name": "files", "shape": [1], "datatype": "BYTES"}
        data = draws.choice((b"\xff\xff\xff\xff" + content, b"\x01", length + content + b"more", b"\0" * 3))
    if way == 7:  # of a size that cannot be
        model = "mapanything"
        height = draws.choice((0, 1, 13, 15, 100))
        tensor = {"name": "images", "shape": [1, height, 14, 3], "datatype": "UINT8"}
        data = bytes(height * 14 * 3)
    tensor["parameters"] = {"binary_data_size": len(data) if way != 8 else draws.choice((0, -1, 2**50, "x", 3))}
    request: dict[str, Any] = {"inputs": [tensor]}
    if way == 9:
        request["outputs"] = draws.choice(([{"name": "nothing"}], [{}], "pts3d", [1], {"name": "pts3d"}))
    if way == 10:
        request["parameters"] = draws.choice(({"size": 1}, {"apply_mask": "no"}, {"amp_dtype": "x"}, [1], {"a": {}}))
    if way == 11:
        request["inputs"] = draws.choice(([], [tensor, tensor], None, "x", {"a": 1}, [tensor, {"name": "mask"}]))
    text = json.dumps(request).encode()
    header = {"Inference-Header-Content-Length": str(len(text))}
    return model, text + data, header


def test_a_hundred_malformed_requests_end_nothing(server: RealServer, engine: Engine) -> None:
    before = server.processes()
    for index in range(120):
        status, answer = post(server, *malformed(index))
        text = answer.decode("utf-8", "replace")
        assert 400 <= status < 600, (index, status, text)  # the server itself answers some with 500
        error = json.loads(text)["error"]
        assert error, index
        assert re.search(r"unexpected \w+(Error|Exception)|Traceback", error) is None, (index, error)
    assert server.processes() == before
    client = Client.of(server, "grpc")
    assert_equal(client.infer("mapanything", images_only()), engine.infer(views_of(images_only())))
    found = client.infer("mapanything_files", files(images_only()["images"]))
    assert_equal(found, engine.infer(views_of(images_only())))


# ---- a server that goes on ---------------------------------------------------------------------------------------


def test_requests_and_refusals_are_counted(server: RealServer) -> None:
    client = Client.of(server, "http")

    def counted() -> tuple[float, ...]:
        return (
            server.metric("nv_inference_request_success", model="mapanything"),
            server.metric("mapengine_refused_requests", model="mapanything"),
            server.metric("mapengine_views", model="mapanything"),
        )

    before = counted()
    for _ in range(3):
        client.infer("mapanything", images_only(), ("cam_trans",))
    for _ in range(2):
        with pytest.raises(utils.InferenceServerException):
            client.infer("mapanything", BAD["negative depth"])
    # Of a request that was answered with an error Triton says that it succeeded.
    until(lambda: counted() == (before[0] + 5, before[1] + 2, before[2] + 3 * V), 10)
    assert server.metric("nv_inference_compute_infer_duration_us", model="mapanything") > 0


def test_load_from_several_clients_gives_the_same_and_grows_nothing(server: RealServer, engine: Engine) -> None:
    cases = [(seed, engine.infer(views_of(scene(seed)))) for seed in range(3)]
    wrong: list[str] = []

    def ask(index: int, seconds: float) -> None:
        client = Client.of(server, ("http", "grpc")[index % 2])
        end, turn = time.monotonic() + seconds, index
        while time.monotonic() < end and not wrong:
            turn += 1
            seed, wanted = cases[turn % len(cases)]
            try:
                if turn % 5 == 0:
                    with pytest.raises(utils.InferenceServerException):
                        client.infer("mapanything_files", {"files": np.array([b"no image"], dtype=object)})
                else:
                    assert_equal(client.infer("mapanything", scene(seed)), wanted)
            except BaseException as error:
                wrong.append(f"{type(error).__name__}: {error}")

    def load(seconds: float) -> int:
        threads = [threading.Thread(target=ask, args=(index, seconds)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert wrong == []
        return server.resident_bytes()

    first = load(3)
    assert load(6) - first < BOUND_BYTES


def until(holds: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.2)


def answer_of(client: Client, model: str, tensors: Tensors) -> Tensors | str:
    try:
        return client.infer(model, tensors)
    except utils.InferenceServerException as error:
        return str(error.message())


def test_a_repository_that_is_written_again_is_loaded_again(server: RealServer, repository: Path, bundle: Path) -> None:
    client = Client.of(server, "http")
    before = server.processes()
    options = RepositoryOptions(backend="onnxruntime", threads=1, max_views=V - 1)
    write_repository(bundle, repository, options)
    until(lambda: isinstance(answer_of(client, "mapanything", images_only()), str))
    sentence = f"the request has {V} views, and this model takes at most {V - 1}"
    assert str(answer_of(client, "mapanything", images_only())).startswith(sentence)
    until(lambda: str(answer_of(client, "mapanything_files", files(images_only()["images"]))).startswith(sentence))
    write_repository(bundle, repository, RepositoryOptions(backend="onnxruntime", threads=1))
    until(lambda: isinstance(answer_of(client, "mapanything", images_only()), dict))
    until(lambda: isinstance(answer_of(client, "mapanything_files", files(images_only()["images"])), dict))
    until(lambda: len(server.processes()) == len(before))
    assert not set(server.processes()) & set(before)


@pytest.mark.parametrize("model", ["mapanything", "mapanything_files"])
def test_a_process_that_is_killed_comes_back(server: RealServer, engine: Engine, model: str) -> None:
    client = Client.of(server, "http")
    tensors = images_only() if model == "mapanything" else files(images_only()["images"])
    before = server.processes()
    lost = {pid for pid, instance in before.items() if instance.name.startswith(f"{model}_0")}
    assert lost
    for pid in lost:
        os.kill(pid, signal.SIGKILL)
    until(lambda: isinstance(answer_of(client, model, tensors), dict))
    assert_equal(client.infer(model, tensors), engine.infer(views_of(images_only())))
    until(lambda: set(server.processes().values()) == set(before.values()))
    assert not set(server.processes()) & lost


def test_models_are_loaded_and_unloaded_by_a_client(repository: Path, engine: Engine) -> None:
    options = ("--model-control-mode=explicit", "--load-model=*", "--log-verbose=0")
    with running(repository, repository.parent / "explicit.log", *options) as server:
        client = Client.of(server, "http")
        assert set(client.infer("mapanything", images_only())) == set(OUTPUTS)
        client.client.unload_model("mapanything")
        until(lambda: not client.client.is_model_ready("mapanything"))
        refusal = answer_of(client, "mapanything_files", files(images_only()["images"]))
        assert isinstance(refusal, str)
        assert "mapanything" in refusal
        client.client.load_model("mapanything")
        assert_equal(client.infer("mapanything", images_only()), engine.infer(views_of(images_only())))
