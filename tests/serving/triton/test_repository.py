"""The model repository on disk: what its configurations say, what it holds, and what it never writes over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime import InputError, OutputError
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BundleError
from mapengine.runtime.options import OUTPUTS
from mapengine.serving.triton.models import gpu_of_instance
from mapengine.serving.triton.repository import RepositoryOptions, write_repository
from mapengine.serving.triton.settings import FILE_BYTES, FILE_PIXELS, Limits, Settings
from mapengine.serving.triton.tensors import ARRAY_INPUTS, FILE_INPUTS, RESULTS

from ...stage_files import change_manifest

Fields = dict[str, list[Any]]


def parsed(text: str) -> Fields:
    """A message in the text format of protocol buffers, every field as the list of its values."""
    tokens = iter(re.findall(r'"[^"]*"|[\w.-]+|[{}\[\]:,]', re.sub(r"(?m)^#.*$", "", text)))

    def message(tokens: Iterator[str]) -> Fields:
        fields: Fields = {}
        for name in tokens:
            if name == "}":
                break
            token = next(tokens)
            if token == "{":
                fields.setdefault(name, []).append(message(tokens))
                continue
            assert token == ":"
            value = next(tokens)
            values = [value]
            if value == "[":
                values = [each for each in iter(lambda: next(tokens), "]") if each != ","]
            fields.setdefault(name, []).extend(each.strip('"') for each in values)
        return fields

    return message(tokens)


def config(folder: Path, model: str) -> Fields:
    return parsed((folder / model / "config.pbtxt").read_text(encoding="utf-8"))


def tensors(fields: list[Fields]) -> dict[str, tuple[str, list[str], bool]]:
    return {f["name"][0]: (f["data_type"][0], f["dims"], f.get("optional") == ["true"]) for f in fields}


def settings(fields: Fields) -> Settings:
    values = {entry["key"][0]: {"string_value": entry["value"][0]["string_value"][0]} for entry in fields["parameters"]}
    return Settings.read({"parameters": values})


@pytest.fixture
def written(bundle_folder: Path, tmp_path: Path) -> Path:
    write_repository(bundle_folder, tmp_path / "models")
    return tmp_path / "models"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_configurations_name_every_tensor_of_infer(written: Path) -> None:
    for name, inputs in (("mapanything", ARRAY_INPUTS), ("mapanything_files", FILE_INPUTS)):
        fields = config(written, name)
        assert (fields["name"], fields["backend"], fields["max_batch_size"]) == ([name], ["python"], ["0"])
        wanted = {t.name: (t.config_type, [str(n) for n in t.dims], t.optional) for t in inputs}
        assert tensors(fields["input"]) == wanted
        assert [t["name"][0] for t in fields["output"]] == list(OUTPUTS)
    first = tensors(config(written, "mapanything")["input"])
    assert first["images"] == ("TYPE_UINT8", ["-1", "-1", "-1", "3"], False)
    assert first["camera_poses"] == ("TYPE_FP64", ["-1", "4", "4"], True)
    assert tensors(config(written, "mapanything_files")["input"])["files"] == ("TYPE_STRING", ["-1"], False)


def test_everything_but_the_images_is_optional() -> None:
    for inputs in (ARRAY_INPUTS, FILE_INPUTS):
        assert [t.optional for t in inputs] == [False, *[True] * (len(inputs) - 1)]
    assert {t.axes[0] for t in (*ARRAY_INPUTS, *FILE_INPUTS, *RESULTS)} == {"V"}


def test_limits_follow_the_bundle(written: Path, bundle_folder: Path) -> None:
    requests = Bundle.open(bundle_folder).manifest.requests
    arrays = settings(config(written, "mapanything"))
    assert (arrays.limits.max_views, arrays.limits.max_pixels) == (requests.views.max, 518 * 518)
    assert arrays.limits.max_bytes >= 32 * 518 * 518 * (3 + 12 + 4 + 1)  # images, rays, depth and mask of all views
    assert (arrays.backend, arrays.threads) == ("auto", None)
    files = settings(config(written, "mapanything_files"))
    assert files.limits == Limits(32, FILE_PIXELS, FILE_BYTES)
    assert files.engine_model == "mapanything"


def test_limits_of_a_bundle_with_few_sizes(bundle_folder: Path, tmp_path: Path) -> None:
    change_manifest(bundle_folder, lambda document: document["profile"].update(sizes=[[140, 112], [112, 140]]))
    write_repository(bundle_folder, tmp_path / "models")
    assert settings(config(tmp_path / "models", "mapanything")).limits.max_pixels == 140 * 112


def test_options_are_written_down(bundle_folder: Path, tmp_path: Path) -> None:
    options = RepositoryOptions("rooms", 3, "cpu", "openvino", 2, max_views=5, max_pixels=1000, max_bytes=10**6)
    write_repository(bundle_folder, tmp_path / "models", options)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "README.md",
        "mapengine.json",
        "rooms",
        "rooms_files",
    ]
    engine, files = (config(tmp_path / "models", name) for name in ("rooms", "rooms_files"))
    assert settings(engine) == Settings(Limits(5, 1000, 10**6), "openvino", 2)
    assert settings(files) == Settings(Limits(5, 1000, 10**6), engine_model="rooms")
    assert engine["instance_group"] == [{"count": ["3"], "kind": ["KIND_CPU"]}]
    assert files["instance_group"] == [{"count": ["4"], "kind": ["KIND_CPU"]}]


def test_bundles_for_gpus_run_on_the_gpus_that_are_named(bundle_folder: Path, tmp_path: Path) -> None:
    def for_gpu(document: dict[str, Any]) -> None:
        document["format"] = "onnx-cuda"
        document["backends"] = [{**document["backends"][0], "name": "onnxruntime-cuda"}]
        sides = {axis: {"min": 14, "opt": 14, "max": 518} for axis in ("height", "width")}
        for stage in document["stages"].values():
            stage["profiles"][0].update(sides)

    change_manifest(bundle_folder, for_gpu)
    for device, gpus in (("auto", ["0"]), ("gpu", ["0"]), ("gpu:1,3", ["1", "3"])):
        write_repository(bundle_folder, tmp_path / "models", RepositoryOptions(device=device))
        group = config(tmp_path / "models", "mapanything")["instance_group"]
        assert group == [{"count": ["1"], "kind": ["KIND_GPU"], "gpus": gpus}]
    assert "--gpus all" in (tmp_path / "models" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"device is cpu, but .* was built for onnxruntime-cuda"):
        write_repository(bundle_folder, tmp_path / "models", RepositoryOptions(device="cpu"))


def test_a_backend_that_the_bundle_is_not_for_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="this bundle is for onnxruntime and openvino, not for tensorrt"):
        write_repository(bundle_folder, tmp_path / "models", RepositoryOptions(backend="tensorrt"))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("number", "visible", "wanted"),
    [("1", None, "1"), ("1", "", "1"), ("1", "2,5", "5"), ("0", "GPU-12ab", "GPU-12ab")],
)
def test_an_instance_sees_its_gpu_alone(number: str, visible: str | None, wanted: str) -> None:
    assert gpu_of_instance(number, visible) == wanted


def test_the_bundle_travels_with_the_repository(written: Path, bundle_folder: Path) -> None:
    assert content(written / "mapanything" / "1" / "bundle") == content(bundle_folder)
    assert Bundle.open(written / "mapanything" / "1" / "bundle").digest == Bundle.open(bundle_folder).digest
    manifest = (bundle_folder / "manifest.json").read_bytes()
    assert (written / "mapanything_files" / "1" / "manifest.json").read_bytes() == manifest


def test_the_readme_says_how_to_start_and_ask(written: Path) -> None:
    text = (written / "README.md").read_text(encoding="utf-8")
    for part in ("docker run", "python -m mapengine.serving.triton .", "mapanything_files", "max_bytes", "NumPy 1.26"):
        assert part in text
    for tensor in (*ARRAY_INPUTS, *FILE_INPUTS, *RESULTS):
        assert f"| `{tensor.name}` | {tensor.dtype} | ({', '.join(map(str, tensor.axes))}) |" in text
    code = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code) == 1
    compile(code[0], "README.md", "exec")


def test_an_older_repository_is_replaced_and_other_models_stay(written: Path, bundle_folder: Path) -> None:
    (written / "other" / "1").mkdir(parents=True)
    (written / "other" / "config.pbtxt").write_text("name: 'other'", encoding="utf-8")
    write_repository(bundle_folder, written, RepositoryOptions("rooms"))
    assert sorted(path.name for path in written.iterdir()) == [
        "README.md",
        "mapengine.json",
        "other",
        "rooms",
        "rooms_files",
    ]


def test_a_repository_of_others_is_filled_but_not_written_over(bundle_folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "models"
    (mine / "mapanything").mkdir(parents=True)
    (mine / "mapanything" / "config.pbtxt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="is there already, and the folder is no Triton model repository"):
        write_repository(bundle_folder, mine)
    assert content(mine) == {"mapanything/config.pbtxt": b"mine"}
    write_repository(bundle_folder, mine, RepositoryOptions("rooms"))
    assert (mine / "mapanything" / "config.pbtxt").read_text(encoding="utf-8") == "mine"


def test_a_changed_configuration_is_not_written_over(written: Path, bundle_folder: Path) -> None:
    path = written / "mapanything" / "config.pbtxt"
    path.write_text(path.read_text(encoding="utf-8").replace('"32"', '"8"'), encoding="utf-8")
    before = content(written)
    with pytest.raises(OutputError, match=r"mapanything/config\.pbtxt: was changed since mapengine wrote it"):
        write_repository(bundle_folder, written)
    assert content(written) == before


def test_a_damaged_bundle_leaves_nothing_behind(bundle_folder: Path, tmp_path: Path, written: Path) -> None:
    before = content(written)
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle_folder, damaged)
    data = damaged / "aggregator.onnx.data"
    data.write_bytes(b"x" * data.stat().st_size)
    for target in (tmp_path / "new", written):
        with pytest.raises(BundleError):
            write_repository(damaged, target)
    assert not (tmp_path / "new").exists()
    assert content(written) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "a/b"}, "name is 'a/b'; give letters"),
        ({"name": ""}, "name is ''"),
        ({"instances": 0}, "instances is 0; give a number from 1 to 64"),
        ({"device": "tpu"}, "device is 'tpu'; give auto, cpu, gpu"),
        ({"device": "gpu:"}, "device is 'gpu:'"),
        ({"device": "gpu:1,"}, "device is 'gpu:1,'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        RepositoryOptions(**options)


@pytest.mark.parametrize("text", ["ten", "0", "-1", "", "1.5"])
def test_a_limit_that_is_no_number_is_named(text: str) -> None:
    values = {"max_views": text, "max_pixels": "1", "max_bytes": "1"}
    with pytest.raises(InputError, match=re.escape(f"config.pbtxt: the parameter max_views is {text!r}")):
        Settings.read({"parameters": {name: {"string_value": value} for name, value in values.items()}})
