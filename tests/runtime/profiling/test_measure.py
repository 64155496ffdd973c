"""Sweeps with small bundles and with subjects that fail."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from mapengine.calibration.data.samples import sample_views
from mapengine.runtime.errors import InputError, MapEngineError
from mapengine.runtime.profiling import Contender, Settings, profile

from .subjects import Fake

SIZE = (84, 56)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contenders' processes import a module beside this one, and nothing from the working folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    monkeypatch.chdir(Path(__file__).parent)


def fake(label: str, **options: Any) -> Contender:
    return Contender(label, functools.partial(Fake, **options))


def photos(views: int, width: int, height: int) -> list[Path]:
    return [Path(f"{index}.jpg") for index in range(views)]


@pytest.mark.slow
def test_contenders_are_measured_in_every_configuration() -> None:
    settings = Settings((1, 3), (SIZE, (28, 28)), runs=4, warmup=1)
    record = profile([fake("a"), fake("b", seconds=0.002)], photos, settings)
    assert [(r["contender"], r["views"], tuple(r["size"])) for r in record["results"]] == [
        (label, views, size) for size in (SIZE, (28, 28)) for views in (1, 3) for label in ("a", "b")
    ]
    for result in record["results"]:
        expected = result["views"] * (0.001 if result["contender"] == "a" else 0.002)
        assert result["end_to_end_s"] == {
            "runs": 4, "min": expected, "p50": expected, "p90": expected, "p99": expected, "mean": expected, "cv": 0.0,
        }  # fmt: skip
        assert set(result["phases_s"]) == {"network"}
        assert result["device_mb"] == 5.0
        assert result["device_s"]["host to device"]["p50"] == 0.25
    assert "files on disk to a Scene" in record["boundary"]
    assert record["not_measured"] == []


@pytest.mark.slow
def test_what_fails_is_left_out_with_its_reason() -> None:
    contenders = [fake("a"), fake("x", fail="load"), fake("y", fail="call"), fake("z", fail="die")]
    record = profile(contenders, photos, Settings((1, 2), (SIZE,), runs=3, warmup=1))
    assert [(r["contender"], r["views"]) for r in record["results"]] == [("a", 1), ("y", 1), ("a", 2)]
    reasons = {(m["contender"], m.get("views")): m["why"] for m in record["not_measured"]}
    assert reasons["x", None] == "it does not load"
    assert reasons["y", 2] == "ValueError: too many"
    assert "exit code 9" in reasons["z", 1]
    with pytest.raises(MapEngineError, match="nothing was measured: x: it does not load"):
        profile([fake("x", fail="load")], photos, Settings((1,), (SIZE,)))


@pytest.mark.slow
def test_a_contender_that_fails_late_keeps_its_runs_and_stops_no_other() -> None:
    record = profile([fake("a"), fake("b", fail="late")], photos, Settings((1,), (SIZE,), runs=5, warmup=1))
    assert {r["contender"]: r["end_to_end_s"]["runs"] for r in record["results"]} == {"a": 5, "b": 2}
    assert [(m["contender"], m["views"]) for m in record["not_measured"]] == [("b", 1)]
    assert record["ended_early"] is None


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no space left")], ids=["interrupt", "error"])
def test_what_was_measured_before_the_end_is_kept(error: BaseException) -> None:
    def few_photos(views: int, width: int, height: int) -> list[Path]:
        if views == 2:
            raise error
        return photos(views, width, height)

    record = profile([fake("a")], few_photos, Settings((1, 2, 3), (SIZE,), runs=3, warmup=0))
    assert [r["views"] for r in record["results"]] == [1]
    assert record["ended_early"] == (str(error) or "interrupted")
    with pytest.raises(type(error)):  # nothing was measured before it
        profile([fake("a")], few_photos, Settings((2,), (SIZE,)))


@pytest.mark.slow
def test_eight_bits_that_gain_nothing_are_marked() -> None:
    contenders = [
        fake("wide"),
        fake("slow", precision="int8", seconds=0.003),
        fake("fast", precision="fp8", seconds=1e-4),
    ]
    record = profile(contenders, photos, Settings((1,), (SIZE,), runs=3, warmup=0))
    marks = {r["contender"]: r.get("not_faster_than", "-") for r in record["results"]}
    assert marks == {"wide": "-", "slow": "wide", "fast": None}


def test_wrong_settings_and_names() -> None:
    for wrong in ({"views": ()}, {"sizes": ()}, {"views": (0,)}, {"runs": 0}, {"seconds": 0}, {"warmup": -1}):
        with pytest.raises(InputError):
            Settings(**{"views": (1,), "sizes": (SIZE,), **wrong})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="different names"):
        profile([fake("a"), fake("a")], photos, Settings((1,), (SIZE,)))
    with pytest.raises(InputError):
        profile([], photos, Settings((1,), (SIZE,)))


@pytest.mark.slow
def test_a_budget_ends_early_but_not_below_the_least() -> None:
    record = profile([fake("a")], photos, Settings((1,), (SIZE,), runs=1000, seconds=1e-6, warmup=0))
    assert record["results"][0]["end_to_end_s"]["runs"] == Settings.LEAST_RUNS


@pytest.mark.slow
def test_engines_and_pytorch_from_files_to_a_scene(tiny_bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    from mapengine.export.diagnosis.baselines import baseline
    from mapengine.export.diagnosis.roofline import add_rooflines

    def images(views: int, width: int, height: int) -> list[Path]:
        paths = [tmp_path / f"{index}.png" for index in range(views)]
        for path, sample in zip(paths, sample_views(views, width=width, height=height), strict=True):
            Image.fromarray(sample.image).save(path)
        return paths

    contenders = [
        Contender.bundle(tiny_bundle, "onnxruntime", 1),
        baseline("pytorch", "preset:tiny", 1, "cpu"),
        baseline("pytorch-bf16", "preset:tiny", 1, "cpu"),
        baseline("upstream", "preset:tiny", 1, "cpu"),
    ]
    record = profile(contenders, images, Settings((2,), (SIZE,), runs=3, warmup=1))
    assert [r["contender"] for r in record["results"]] == [f"{tiny_bundle} (onnxruntime)", "pytorch", "pytorch-bf16"]
    assert record["not_measured"] == [
        {"contender": "upstream", "why": "upstream's package is not installed (mapanything)"}
    ]
    for result in record["results"]:
        phases = {name: value["p50"] for name, value in result["phases_s"].items()}
        assert {"pre-processing", "image_encoder", "aggregator", "dense_head", "post-processing"} == set(phases)
        assert min(phases.values()) > 0
        assert result["peak_process_mb"] is None or result["peak_process_mb"] > 30
    ceilings = {"gemm_gflops": {"fp32": 100.0, "bf16": None}, "copy_gbytes": 10.0}
    add_rooflines(record["results"], ceilings)
    for result in record["results"]:
        roof = result["roofline"]["aggregator"]
        assert "config" not in result
        assert roof["gflops"] == pytest.approx(roof["gflop"] / result["phases_s"]["aggregator"]["p50"], rel=1e-3)
        assert (roof["share"] is None) == (result["precision"] == "bf16")
    with pytest.raises(InputError, match="no baseline 'torch'"):
        baseline("torch", "preset:tiny", 1)
