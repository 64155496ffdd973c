"""``mapengine batch`` from its options to its exit code; what a run does is tested in ``tests/serving/batch``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest


@pytest.fixture
def scenes(samples: Path, tmp_path: Path) -> Path:
    """Two scenes of the samples' images."""
    for name in ("one", "two"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for image in samples.glob("*.png"):
            if image.name.startswith("sample_"):
                shutil.copy(image, tmp_path / "scenes" / name)
    return tmp_path / "scenes"


@pytest.mark.slow
def test_scenes_are_done_once_and_failures_are_said(
    cli: Any, tiny_bundle: Path, scenes: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    first = cli("batch", tiny_bundle, scenes, out, "--format", "ply", "--format", "npz", "--max-views", 1, *quick)
    assert (first.code, first.problems) == (0, [])
    assert "2 scenes: 0 are done, 2 to do (2 missing)" in first.err
    assert "done now     2 in " in first.out
    assert {path.name for path in (out / "scenes" / "one").iterdir()} >= {"scene.ply", "scene.npz"}
    assert parquet.read_table(out / "results.parquet").column("views").to_pylist() == [1, 1]

    for image in (scenes / "two").iterdir():
        image.write_bytes(b"noise")
    second = cli("batch", tiny_bundle, scenes, out, "--max-views", 1, "--quiet", "--format", "npz", *quick)
    assert (second.code, second.out) == (1, "")
    (failed, error) = second.err.splitlines()
    assert failed.startswith("failed: two: ")
    assert error.startswith("Error: 1 of 2 scenes failed, the last with: two: ")
    assert error.endswith(f"see {out / 'results.parquet'}")
    third = cli("batch", tiny_bundle, scenes, out, "--max-views", 1, "--format", "npz", "--max-failures", 0, *quick)
    assert third.code == 1
    assert "1 scenes failed, and 0 may (--max-failures); the last is two: " in third.problems[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", 2, "--ray", "auto"), "it is for this machine, and --ray for a cluster; give one"),
        (("--workers", 0), "--workers"),
        (("--memory", "8"), "8GB"),
        (("--size", "57x42"), "56x42"),
        (("--format", "obj"), "'obj' is not one of"),
        (("--max-failures", -1), "--max-failures"),
        (("--give", "image"), "--give"),
    ],
)
def test_options_that_cannot_be(
    cli: Any, bundle_folder: Path, tmp_path: Path, options: tuple[Any, ...], said: str
) -> None:
    result = cli("batch", bundle_folder, tmp_path / "scenes", tmp_path / "out", *options)
    assert (result.code, len(result.problems)) == (2, 1)
    assert said in result.problems[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scenes", "out", "said"),
    [
        ("scenes", "s3://bucket/out", "results go to a folder, not to an address"),
        ("scenes", "scenes/out", "is among what is read"),
        ("scenes", "scenes", "is one of the inputs"),
        ("scenes", "bundle", "is one of the inputs"),
        ("out/scenes", "out", "would be written over"),
        ("nothing", "out", "nothing: there is no such file or folder"),
        ("notes.txt", "out", "is no list of scenes"),
        ("scenes", "notes.txt", "it is a file, not a folder"),
        ("scenes", "mine", "not empty and no batch that mapengine wrote"),
    ],
)
def test_places_that_cannot_be(
    cli: Any, bundle_folder: Path, tmp_path: Path, scenes: str, out: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("scenes/one/0.png", "out/scenes/one/0.png" if scenes == "out/scenes" else "mine/note", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    if out == "mine" and not (tmp_path / "mine").exists():
        (tmp_path / "mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = cli("batch", bundle_folder, scenes, out)
    assert result.code in (1, 2)
    assert len(result.problems) == 1
    assert said in result.problems[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "batch"), ("ray", "ray")])
def test_a_package_that_is_missing_is_named_with_its_extra(
    cli: Any, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "scenes").mkdir()
    options = ("--ray", "local") if package == "ray" else ()
    result = cli("batch", bundle_folder, tmp_path / "scenes", tmp_path / "out", *options)
    assert (result.code, len(result.problems)) == (1, 1)
    assert f"pip install 'mapengine[{extra}]'" in result.problems[0]
