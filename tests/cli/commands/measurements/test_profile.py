"""``mapengine plan``, ``profile`` and ``run --stream``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.outputs.view_files import load_view
from mapengine.runtime.profiling import memory as measurement
from mapengine.runtime.system.machine import can_reset_peak

from ...conftest import Cli

linux = pytest.mark.skipif(not can_reset_peak(), reason="this system does not tell a process's peak memory")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measurement, "measuring_shapes", lambda requests: [(1, 112, 84), (3, 112, 84)])
    monkeypatch.setattr(measurement, "probe", proportional)
    return tmp_path / "cache"


def proportional(bundle: Bundle, backend: str, views: int, *_: int, geometry: bool, collect: bool) -> dict[str, int]:
    """Peak bytes without a call; that real ones are measured is shown where memory is tested."""
    stages = {"image_encoder": 4, "geometry_encoder": 2 * geometry, "aggregator": 3, "dense_head": 5 + collect}
    return {"load": 50_000_000, **{stage: 1_000_000 * share * views for stage, share in stages.items()}}


@pytest.mark.slow
@linux
def test_plans(cli: Cli, tiny_bundle: Path, samples: Path, cache: Path, tmp_path: Path) -> None:
    common = (tiny_bundle, "--resolution", "112x84", "--backend", "onnxruntime")
    first = cli("plan", *common, "--views", "2", "--memory", "8GB")
    assert first.code == 0, first.err
    assert "dense head" in first.out
    assert "8.00 GB (given) are enough for" in first.out
    assert len(list((cache / "memory").iterdir())) == 1
    found = json.loads(cli("plan", *common, "--views", "2", "--stream", "--images-only", "--json").out)
    assert set(found["peaks_bytes"]["2"]) == {"load", "image_encoder", "aggregator", "dense_head"}
    assert (found["geometry"], found["collect"]) == (False, False)
    small = cli("plan", *common, "--views", "2", "--memory", "1MB")
    assert small.code == 1
    assert "2 views of 112x84 need" in small.problems[0]
    run = ("run", tiny_bundle, samples, "--backend", "onnxruntime", "--size", "112x84")
    refused = cli(*run, "--memory", "1MB", "--stream", tmp_path / "none")
    assert refused.code == 1
    assert "not even one view fits" in refused.problems[0]
    assert not list((tmp_path / "none").glob("*"))
    assert cli(*run, "--memory", "8GB").code == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--memory", "lots"), "8GB or 512MiB"),
        (("--resolution", "112x85"), "not a multiple"),
        (("--views", "0"), "greater than or equal to 1"),
        (("--backend", "tensorrt"), "tensorrt"),
    ],
)
def test_wrong_plans(cli: Cli, tiny_bundle: Path, cache: Path, options: tuple[str, ...], problem: str) -> None:
    result = cli("plan", tiny_bundle, *options)
    assert result.code in (1, 2)
    assert len(result.problems) == 1
    assert problem in result.problems[0]


@pytest.mark.slow
def test_streams(cli: Cli, tiny_bundle: Path, samples: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    result = cli("run", tiny_bundle, samples, *quick, "--stream", tmp_path / "views", "--half")
    assert result.code == 0, result.err
    files = sorted((tmp_path / "views").iterdir())
    assert [file.name for file in files] == ["view-0000.npz", "view-0001.npz"]
    assert load_view(files[1])["pts3d"].dtype == "float16"
    again = cli("run", tiny_bundle, samples, *quick, "--stream", tmp_path / "views")
    assert "views of another run" in again.problems[0]
    for wrong in (("--stream", tmp_path / "x", "--out", tmp_path / "a.ply"), ("--half",)):
        assert cli("run", tiny_bundle, samples, *quick, *wrong).code == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_profiles(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    options = ("--views", "1", "--resolution", "84x56", "--runs", "3", "--warmup", "0", "--backends", "onnxruntime")
    record, table = tmp_path / "profile.json", tmp_path / "profile.md"
    errors = tmp_path / "eval.json"
    few = ("--scenes", "1", "--tasks", "image-only-1", "--size", "84x56", "--backend", "onnxruntime")
    assert cli("eval", tiny_bundle, *few, "--json", errors).code == 0
    more = ("--baselines", "none", "--no-roofline", "--accuracy", errors, "--json", record)
    more = (*more, "--markdown", table, "--plot", tmp_path / "profile.png")
    result = cli("profile", tiny_bundle, *options, *more)
    assert result.code == 0, result.err
    found = json.loads(record.read_text())
    assert found["benchmark"] == "profile"
    assert [r["views"] for r in found["results"]] == [1]
    assert "config" not in found["results"][0]
    assert found["results"][0]["accuracy"]["scenes"] == 1
    assert "| yes |" in table.read_text()
    assert "files on disk to a Scene" in result.out
    assert table.read_text().startswith("<!-- mapengine profile -->\n\n| contender |")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    again = cli("profile", tiny_bundle, *options, "--baselines", "none", "--no-roofline", "--compare", record)
    assert again.code == 0, again.err
    assert "verdict" in again.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt, 130, "interrupted"), (MemoryError("no room"), 1, "no room")],
    ids=["interrupt", "error"],
)
def test_a_profile_that_ends_late_shows_and_saves_what_it_measured(
    cli: Cli,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | type[BaseException],
    code: int,
    said: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("mapengine.export.diagnosis.roofline.measure_ceilings", fail)
    options = ("--views", "1", "--resolution", "84x56", "--runs", "1", "--warmup", "0", "--backends", "onnxruntime")
    files = ("--json", tmp_path / "profile.json", "--markdown", tmp_path / "profile.md")
    result = cli("profile", tiny_bundle, *options, "--baselines", "none", *files)
    assert result.code == code, result.err
    assert "measuring what this machine can do" in result.out + result.err
    assert f"Ended early: {said}" in result.out + result.err
    record = json.loads((tmp_path / "profile.json").read_text())
    assert (len(record["results"]), record["ended_early"]) == (1, said)
    assert "| contender |" in (tmp_path / "profile.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--views", "1,x"), "no list of numbers"),
        (("--views", "9999"), "9999 views"),
        (("--resolution", "15x15"), "not a multiple"),
        (("--backends", "cuda"), "cuda"),
        (("--baselines", "torch"), "no baseline 'torch'"),
        (("--seconds", "0"), "greater than or equal to 0.1"),
        (("--compare", "none.json"), "cannot be read"),
    ],
)
def test_wrong_profiles(cli: Cli, tiny_bundle: Path, options: tuple[str, ...], problem: str) -> None:
    result = cli("profile", tiny_bundle, *options)
    assert result.code in (1, 2)
    assert len(result.problems) == 1
    assert problem in result.problems[0]
    assert cli("profile", tiny_bundle / "nothing").code == 1


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured."""
    for name in ("measure", "make_backend"):
        monkeypatch.setattr(
            f"mapengine.cli.commands.measurements.profile.{name}", lambda *_, **__: pytest.fail("it measures")
        )


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("option", ["--json", "--markdown", "--plot"])
def test_a_profile_that_cannot_be_written_is_not_measured(
    cli: Cli, tiny_bundle: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").touch()
    blocked = cli("profile", tiny_bundle, option, tmp_path / "file" / "profile")
    assert (blocked.code, len(blocked.problems)) == (1, 1)
    assert "a part of the path is a file, not a folder" in blocked.problems[0]
    inside = cli("profile", tiny_bundle, option, tiny_bundle / "profile")
    assert (inside.code, len(inside.problems)) == (2, 1)
    assert f"{option}: {tiny_bundle / 'profile'} is among what is read" in inside.problems[0]
    twice = cli("profile", tiny_bundle, "--json", tmp_path / "a", "--markdown", tmp_path / "a")
    assert "is also the file of --json" in twice.problems[0]


@pytest.mark.usefixtures("unmeasured")
def test_a_plot_without_matplotlib_is_refused_at_once(
    cli: Cli, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = cli("profile", tiny_bundle, "--plot", tmp_path / "profile.png")
    assert (result.code, len(result.problems)) == (1, 1)
    assert "plots need matplotlib; run: pip install 'mapengine[viz]'" in result.problems[0]


def test_the_extra_that_messages_name_brings_what_they_miss() -> None:
    text = (Path(__file__).resolve().parents[4] / "pyproject.toml").read_text(encoding="utf-8")
    (viz,) = re.findall(r"^viz = \[(.*)\]$", text, re.MULTILINE)
    assert "matplotlib" in viz
