from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file

from mapengine.export.model import hub
from mapengine.export.model.checkpoint import weights_sha256
from mapengine.export.model.config_json import read_config
from mapengine.export.model.hub import resolve_model
from mapengine.export.model.presets import load_preset
from mapengine.runtime.errors import CheckpointError, ConfigError, InputError, ModelNotFoundError

V11 = Path(__file__).parents[2] / "data" / "v11_tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "some-org/tiny_model.v1"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty download cache and a Hub that refuses connections; returns the cache."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return cache


def fill_cache(cache: Path, files: tuple[str, ...] = ("config.json", "model.safetensors")) -> Path:
    """The layout that huggingface_hub leaves behind after a download of ``main``."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in files:
        shutil.copy(V11 / file, snapshot)
    return snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "my-model"
    target.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(V11 / file, target)
    return target


@pytest.mark.slow
def test_preset() -> None:
    model = resolve_model("preset:tiny")
    config, tensors = load_preset("tiny")
    assert (model.config, model.model_id, model.revision) == (config, "preset:tiny", None)
    assert weights_sha256(model.tensors) == weights_sha256(tensors)
    with pytest.raises(ModelNotFoundError, match="preset:other: no such preset"):
        resolve_model("preset:other")


@pytest.mark.slow
@pytest.mark.parametrize("as_path", [True, False])
def test_folder_and_file(folder: Path, as_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights_sha256(load_file(V11 / "model.safetensors"))
    torch.save({"model": load_file(V11 / "model.safetensors")}, folder / "weights.pth")
    for target, name in (
        (folder, "my-model"),
        (folder / "model.safetensors", "model.safetensors"),
        (folder / "weights.pth", "weights.pth"),
    ):
        model = resolve_model(target if as_path else str(target))
        assert model.config == read_config(V11 / "config.json")
        assert (weights_sha256(model.tensors), model.model_id, model.revision) == (expected, name, None)
    monkeypatch.chdir(folder.parent)
    assert resolve_model("my-model").model_id == resolve_model("./my-model/").model_id == "my-model"
    monkeypatch.chdir(folder)
    assert resolve_model(".").model_id == "my-model"


def test_config_is_needed_beside_the_weights(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors: no config\.json beside this file"):
        resolve_model(folder / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"my-model: no config\.json in this folder"):
        resolve_model(folder)


def test_unusable_folders(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights in this folder"):
        resolve_model(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        resolve_model(folder)
    data = json.loads((folder / "config.json").read_text())
    data["encoder_config"]["encoder_str"] = "croco"
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="encoder_str"):
        resolve_model(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "./model",
        "/no/such/folder",
        "../x",
        "~/no-such-model",
        "a/b/c",
        "model.pth",
        "org/model.safetensors",
        "x\\y",
        "models/",
        "C:model",
    ],
)
def test_paths_that_do_not_exist_never_reach_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the Hub"))
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        resolve_model(name)
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        resolve_model(Path("org/model"))


@pytest.mark.parametrize("name", ["tiny", "org/", "-org/model", "org/mo del", "org/a--b", "a\0b", "é/b", "x" * 5000])
def test_names_that_mean_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the Hub"))
    with pytest.raises(ModelNotFoundError, match=r"no such file|preset:tiny"):
        resolve_model(name)
    for empty in ("", "  "):
        with pytest.raises(ModelNotFoundError, match="no model named"):
            resolve_model(empty)


def test_revision_belongs_to_hub_ids(folder: Path) -> None:
    for local in (str(folder), "preset:tiny"):
        with pytest.raises(InputError, match="only a Hub id has revisions"):
            resolve_model(local, revision="main")


@pytest.mark.slow
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_cached_download_works_without_network(no_network: Path, revision: str | None) -> None:
    fill_cache(no_network)
    model = resolve_model(REPO, revision=revision)
    assert (model.model_id, model.revision) == (REPO, COMMIT)
    assert weights_sha256(model.tensors) == weights_sha256(load_file(V11 / "model.safetensors"))


@pytest.mark.parametrize("revision", [None, "v2", COMMIT])
def test_not_cached_and_not_reachable_is_one_sentence(revision: str | None) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(REPO, revision=revision)
    message = str(caught.value)
    assert message.startswith(REPO)
    assert "neither in the local cache nor reachable" in message
    assert "HF_HOME" in message
    assert "\n" not in message
    assert revision is None or revision in message


def test_half_a_download(no_network: Path) -> None:
    fill_cache(no_network, files=("config.json",))
    for revision in (None, COMMIT):
        with pytest.raises(ModelNotFoundError, match=r"no weights in this folder|neither in the local cache"):
            resolve_model(REPO, revision=revision)


def test_only_what_is_needed_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def fake(repo: str, **kwargs: Any) -> str:
        asked.append({"repo": repo, **kwargs})
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(ModelNotFoundError):
        resolve_model(REPO, revision="v2")
    assert [call["repo"] for call in asked] == [REPO]
    assert asked[0]["revision"] == "v2"
    assert asked[0]["allow_patterns"] == hub.HUB_FILES
    assert not any(pattern.endswith((".pth", ".bin", ".py")) for pattern in hub.HUB_FILES)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.RepositoryNotFoundError, "no such model"),
        (errors.GatedRepoError, "access to it must be asked for"),
    ],
)
def test_refusals_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: Any, reason: str) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelNotFoundError, match=reason):
        resolve_model(REPO)


def test_unforeseen_failures_stay_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_down)
    with pytest.raises(ModelNotFoundError, match=r"the download failed \(ZeroDivisionError: first line\)$"):
        resolve_model(REPO)
