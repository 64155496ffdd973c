"""The program in C++ makes the same points of a bundle as the engine does, and says what is wrong in a sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from mapengine.calibration.data.samples import SampleView, sample_views
from mapengine.runtime import Engine, Scene
from mapengine.runtime.backends.openvino import OpenVinoBackend

from .documents import ROOT
from .stage_files import change_manifest

pytestmark = [
    pytest.mark.slow,  # it is compiled first
    pytest.mark.skipif(shutil.which("cmake") is None, reason="CMake builds the program, and is not installed"),
]

FLIPS = 0.005
"""Share of mask pixels that rounding may flip, as for the goldens: OpenVINO's own rounds fused products."""

Result = subprocess.CompletedProcess[str]
Maps = NDArray[Any]


@pytest.fixture(scope="module")
def program(shared_folder: Path) -> Path:
    """The program, built once for all worker processes."""
    import nlohmann_json
    from openvino.utils import get_cmake_path

    folder = shared_folder / "cpp"
    with FileLock(f"{folder}.lock"):
        if not (folder / "reconstruct").exists():
            told = [
                f"-DOpenVINO_DIR={get_cmake_path()}",
                f"-DCMAKE_PREFIX_PATH={Path(nlohmann_json.__file__).parent}",
                "-DCMAKE_BUILD_TYPE=None",
            ]
            for command in (["-S", str(ROOT / "examples" / "cpp"), "-B", str(folder), *told], ["--build", str(folder)]):
                done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout + done.stderr
                assert "warning" not in done.stderr
    return folder / "reconstruct"


@pytest.fixture(scope="module")
def samples() -> list[SampleView]:
    """Three views of 56x42 pixels."""
    return sample_views(3, 56, 42)


@pytest.fixture
def images(samples: list[SampleView], tmp_path: Path) -> list[Path]:
    """The images of the views as PPM files."""
    paths = [tmp_path / f"view_{index}.ppm" for index in range(len(samples))]
    for path, view in zip(paths, samples, strict=True):
        Image.fromarray(view.image).save(path)
    return paths


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def run(program: Path, *arguments: object) -> Result:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)


def read_ply(path: Path) -> tuple[bytes, Maps, Maps]:
    """Return header, points (N, 3) float32 and colours (N, 3) uint8."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    vertices = np.frombuffer(body, [("point", "<f4", 3), ("color", "u1", 3)])
    return header, vertices["point"], vertices["color"]


def pixels_of(points: Maps, colors: Maps, scene: Scene) -> Maps:
    """Return which pixels (V, H, W) bool of a scene these points are; they have the order of pixels."""
    every, every_color = scene.points.reshape(-1, 3), scene.colors.reshape(-1, 3)
    found, following = np.zeros(len(every), bool), 0
    for pixel, point in enumerate(every):
        if following < len(points) and (abs(points[following] - point) <= 1e-6 + 1e-5 * abs(point)).all():
            assert (colors[following] == every_color[pixel]).all()
            found[pixel], following = True, following + 1
    assert following == len(points), f"point {following} of {len(points)} is none of Python's"
    return found.reshape(scene.mask.shape)


@pytest.mark.parametrize("chunk", [None, 2], ids=["one at a time, with intrinsics", "two at a time"])
def test_points_colours_and_mask_are_those_of_python(
    program: Path, changed: Path, images: list[Path], samples: list[SampleView], tmp_path: Path, chunk: int | None
) -> None:
    known: dict[str, Any] = {"size": (56, 42)}
    options: list[str] = []
    if chunk is None:
        matrix = known["intrinsics"] = samples[0].intrinsics
        options = ["--intrinsics", ",".join(str(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))]
    else:
        stages = ("image_encoder", "geometry_encoder", "dense_head")
        change_manifest(changed, lambda document: document["profile"].update(chunks=dict.fromkeys(stages, chunk)))

    done = run(program, *options, changed, tmp_path / "cpp.ply", *images)

    assert done.stderr == ""
    assert done.returncode == 0
    header, points, colors = read_ply(tmp_path / "cpp.ply")
    assert done.stdout == f"{tmp_path / 'cpp.ply'}: {len(points)} points of 3 views\n"
    engine = Engine.load(changed, "openvino", verify=False)
    scene = engine.reconstruct(images, **known)
    mask = pixels_of(points, colors, engine.reconstruct(images, apply_mask=False, **known))
    assert (mask != scene.mask).mean() <= FLIPS
    assert 0.1 < mask.mean() < 0.9, "a mask that leaves out nothing, or everything, shows nothing"
    python_header = read_ply(scene.save(tmp_path / "python.ply"))[0].decode()
    told = [line for line in python_header.splitlines() if not line.startswith(("comment view", "comment made by"))]
    assert header.decode().splitlines() == [
        line.replace(f"vertex {scene.mask.sum()}", f"vertex {len(points)}") for line in told
    ]


def test_an_older_result_is_replaced_and_nothing_else(
    program: Path, tiny_bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "scene.ply"
    out.write_bytes(b"ply\nformat binary_little_endian 1.0\ncomment somebody's own\n" + bytes(100))
    refused = run(program, tiny_bundle, out, *images)
    assert sentence(refused) == f"{out}: is there already and is no point cloud of mapengine; choose another name"
    out.write_bytes(out.read_bytes().replace(b"somebody's own", b"mapengine point cloud"))
    before = set(tmp_path.iterdir())
    done = run(program, tiny_bundle, out, images[0])
    assert done.returncode == 0, done.stderr
    assert len(read_ply(out)[1]) > 100
    assert set(tmp_path.iterdir()) == before


def sentence(refused: Result) -> str:
    """Return what an error says, which is one sentence and no more."""
    assert refused.returncode == 1, refused.stdout
    assert refused.stdout == ""
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1
    return refused.stderr.removeprefix("Error: ").rstrip("\n")


def test_without_arguments_it_says_how_it_is_used(program: Path, tiny_bundle: Path) -> None:
    for arguments in ([], ["--help"], [tiny_bundle, "out.ply"], ["--depth", "a", "b", "c"]):
        used = run(program, *arguments)
        assert used.returncode == 2
        assert used.stderr.startswith("usage: reconstruct [--intrinsics fx,fy,cx,cy] BUNDLE OUT.ply IMAGE.ppm...")


PIXELS = bytes(56 * 42 * 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read; check the path"),
        (b"", "is no binary PPM (P6) of 8 bits; convert the image"),
        (b"P5\n56 42\n255\n" + PIXELS, "is no binary PPM (P6) of 8 bits; convert the image"),
        (b"P6\n56 42\n65535\n" + PIXELS * 2, "is no binary PPM (P6) of 8 bits; convert the image"),
        (b"P6\n99999999999999999999 42\n255\n", "is no binary PPM (P6) of 8 bits; convert the image"),
        (b"P6\n56 -42\n255\n", "is no binary PPM (P6) of 8 bits; convert the image"),
        (b"P6\n57 42\n255\n", "is 57x42, and the bundle serves sides from 14 to 518 in steps of 14; resize the image"),
        (b"P6\n56 532\n255\n", "is 56x532, and the bundle serves sides from 14 to 518 in steps of 14; resize the "),
        (b"P6\n56 42\n255\n" + PIXELS[1:], "has not as many pixels as its header says; save the image again"),
        (b"P6\n56 42\n255\n" + PIXELS + b"P", "has not as many pixels as its header says; save the image again"),
        (b"P6 # seen\n28\n42 # small\n255\n" + bytes(28 * 42 * 3), "has another size than"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(
    program: Path, tiny_bundle: Path, images: list[Path], tmp_path: Path, content: bytes | None, said: str
) -> None:
    bad = tmp_path / "bad.ppm"
    if content is not None:
        bad.write_bytes(content)
    refused = run(program, tiny_bundle, tmp_path / "scene.ply", images[0], bad)
    assert sentence(refused).startswith(f"{bad}: {said}")
    assert not (tmp_path / "scene.ply").exists()


def test_pipes_are_not_waited_for(program: Path, tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "manifest.json")
    assert "cannot be read" in sentence(run(program, tiny_bundle, tmp_path / "scene.ply", tmp_path / "pipe"))
    assert "no readable manifest" in sentence(run(program, tmp_path / "folder", tmp_path / "scene.ply", images[0]))
    assert "is there already" in sentence(run(program, tiny_bundle, tmp_path / "pipe", images[0]))


def edit(*keys: Any, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value of the manifest, or takes the key away."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        if value is None:
            del document[keys[-1]]
        else:
            document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit("schema_version", value=99), "the bundle is of version 99, and this program reads"),
        (edit("backends", value=[{"name": "tensorrt"}]), "the bundle is not for OpenVINO; build it again with"),
        (edit("profile"), "manifest.json is damaged ("),
        (edit("profile", "views", "max", value=1), "there are 3 images, and the bundle serves 1 to 1; give as many"),
        (edit("profile", "views", "max", value=-1), "the manifest has -1 where a positive number belongs"),
        (edit("profile", "sizes", value=[[140, 112]]), "is 56x42, and the bundle serves 140x112; resize the image"),
        (edit("model", "data_norm_type", value="radio"), "images are normalised as radio, which is unknown here"),
        (edit("stages", value={}), "the bundle has no stage image_encoder"),
        (edit("stages", "aggregator", "file", value="../x.onnx"), "lists the file ../x.onnx, which is no plain name"),
        (edit("stages", "aggregator", "bytes", value=5), "lacks the file aggregator.onnx, or it has another size"),
        (edit("stages", "image_encoder", "inputs", 0, "name", value="raw"), "the stage image_encoder wants raw, which"),
        (edit("stages", "image_encoder", "outputs", 0, "shape", 3, value=47), "has another patch_features than the"),
        (
            edit("stages", "image_encoder", "inputs", 0, "dtype", value="float16"),
            "a stage has tensors of float16, which",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    program: Path,
    changed: Path,
    images: list[Path],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    said: str,
) -> None:
    change_manifest(changed, change)
    assert said in sentence(run(program, changed, tmp_path / "scene.ply", *images))
    assert not (tmp_path / "scene.ply").exists()


def test_damaged_files_of_a_bundle_are_refused(
    program: Path, changed: Path, images: list[Path], tmp_path: Path
) -> None:
    graph, manifest = changed / "image_encoder.onnx", changed / "manifest.json"
    shutil.copy(changed / "dense_head.onnx", graph)
    change_manifest(changed, edit("stages", "image_encoder", "bytes", value=graph.stat().st_size))
    refused = sentence(run(program, changed, tmp_path / "scene.ply", *images))
    assert refused.startswith("the stage image_encoder failed in OpenVINO (")
    graph.write_bytes(bytes(graph.stat().st_size))  # which a library inside OpenVINO says in its own way as well
    refused = run(program, changed, tmp_path / "scene.ply", *images).stderr.splitlines()[-1]
    assert refused.startswith("Error: the stage image_encoder failed in OpenVINO (")
    graph.unlink()
    assert "lacks the file image_encoder.onnx" in sentence(run(program, changed, tmp_path / "scene.ply", *images))
    manifest.write_bytes(manifest.read_bytes()[:-10])
    refused = sentence(run(program, changed, tmp_path / "scene.ply", *images))
    assert refused.startswith(f"{changed}: manifest.json is damaged (parse error at line ")
    manifest.unlink()
    refused = sentence(run(program, changed, tmp_path / "scene.ply", *images))
    assert refused == f"{changed}: holds no readable manifest.json; name the folder of a bundle"


def test_bfloat16_is_refused_where_the_processor_has_none(
    program: Path, changed: Path, images: list[Path], tmp_path: Path
) -> None:
    change_manifest(changed, edit("precision", value="bf16"))
    done = run(program, changed, tmp_path / "scene.ply", images[0])
    if OpenVinoBackend().has_bf16():
        assert done.returncode == 0
    else:
        assert sentence(done) == "this processor has no bfloat16 products; build the bundle in fp32"


@pytest.mark.parametrize(
    "given", ["", "1,2,3", "1,2,3,4,5", "1 2 3 4", "0,9,5,5", "9,-9,5,5", "nan,9,5,5", "1e99,9,5,5"]
)
def test_intrinsics_that_are_none_are_refused(program: Path, given: str, tmp_path: Path) -> None:
    refused = run(program, "--intrinsics", given, "bundle", tmp_path / "scene.ply", "a.ppm")
    assert sentence(refused).startswith(f"--intrinsics {given}: give fx,fy,cx,cy in pixels of the images")


def test_a_point_cloud_that_cannot_be_written_is_said(
    program: Path, tiny_bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "missing" / "scene.ply"
    assert sentence(run(program, tiny_bundle, out, *images)) == f"{out}: its folder does not exist; make it first"
    out = tmp_path / ("long" * 70 + ".ply")
    refused = sentence(run(program, tiny_bundle, out, images[0]))
    assert refused == f"{out}: cannot be written (File name too long); check the folder and the disk"
    assert len(list(tmp_path.iterdir())) == len(images)
