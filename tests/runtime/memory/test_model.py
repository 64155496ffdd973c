"""What is planned is what was measured, and what does not fit is refused with the number that does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mapengine.runtime import Engine, InputError
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.errors import BackendError, BackendUnavailableError, MemoryLimitError
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.memory import guard
from mapengine.runtime.memory import model as model_module
from mapengine.runtime.memory.model import STAGES, MemoryModel, Sample
from mapengine.runtime.profiling import memory as measurement
from mapengine.runtime.profiling.memory import probe
from mapengine.runtime.system.machine import can_reset_peak
from mapengine.runtime.typed_json.codec import encode

from ...engine_views import SIZE, views_of

linux = pytest.mark.skipif(not can_reset_peak(), reason="this system does not tell a process's peak memory")
KEY = {"bundle": "b", "backend": "onnxruntime", "version": "1", "device": "d"}


def truth(stage: str, views: int, width: int, height: int, geometry: bool, collect: bool) -> int:
    """A machine whose memory follows the law, with coefficients of its own for each stage."""
    if stage == "load":
        return 90_000_000
    patches = width * height / 196
    base, per_view, all_views = (1e8, 3e4, 2e4) if stage == "dense_head" else (1e8, 1e4, 4e3)
    return int(base + per_view * patches + (all_views + 500 * geometry + 2e4 * collect) * views * patches)


def lawful(shapes: list[tuple[int, int, int]]) -> MemoryModel:
    samples = [
        Sample(*shape, geometry, collect, {s: truth(s, *shape, geometry, collect) for s in STAGES})
        for geometry in (False, True)
        for collect in (False, True)
        for shape in shapes
    ]
    return MemoryModel(KEY, "mha", tuple(samples))


SHAPES = measurement.measuring_shapes(ServedRequests(Range(1, 4, 300), AnySize(14, 1022)))


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 60), st.booleans(), st.booleans())
def test_a_law_is_found_and_continued(views: int, rows: int, columns: int, geometry: bool, collect: bool) -> None:
    peaks = lawful(SHAPES).peaks(views, 14 * columns, 14 * rows, geometry=geometry, collect=collect)
    for stage, value in peaks.items():
        assert value == pytest.approx(truth(stage, views, 14 * columns, 14 * rows, geometry, collect), rel=0.01)
    assert ("geometry_encoder" in peaks) == geometry


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 2000), st.booleans())
def test_the_most_views_fit_and_one_more_does_not(megabytes: int, collect: bool) -> None:
    model, limit = lawful(SHAPES), megabytes * 10**6
    most = model.most_views(limit, 140, 112, collect=collect)
    if most:
        assert model.peak(most, 140, 112, collect=collect)[1] <= limit
    assert model.peak(most + 1, 140, 112, collect=collect)[1] > limit


def test_a_refusal_names_the_number_that_fits() -> None:
    model = lawful(SHAPES)
    limit = model.peak(7, 140, 112)[1]
    model.check(limit, 7, 140, 112)
    with pytest.raises(MemoryLimitError, match=r"9 views of 140x112 need .* give at most 7, or allow more memory"):
        model.check(limit, 9, 140, 112)
    with pytest.raises(MemoryLimitError, match="not even one view fits"):
        model.check(10**6, 9, 140, 112)
    assert issubclass(MemoryLimitError, MemoryError)


def test_quadratic_attention_is_known_by_its_form() -> None:
    def peak(views: int, attention: str) -> float:
        samples = []
        for s in lawful(SHAPES).samples:
            patches = s.width * s.height / 196
            peaks = {**s.peaks, "aggregator": int(s.peaks["aggregator"] + 40 * (s.views * patches) ** 2)}
            samples.append(Sample(s.views, s.width, s.height, s.geometry, s.collect, peaks))
        return MemoryModel(KEY, attention, tuple(samples)).peaks(views, 280, 280)["aggregator"]

    expected = truth("aggregator", 200, 280, 280, True, True) + 40 * (200 * 400) ** 2
    assert peak(200, "matmul") == pytest.approx(expected, rel=0.02)
    assert peak(200, "mha") < 0.7 * expected


def test_fewer_keys_are_fewer_weights_of_attention() -> None:
    """Measured with few views, a bundle that keeps a quarter of the keys is planned for many."""

    def scores(views: int, patches: float) -> float:
        return 40 * views * patches * (patches + (views - 1) * patches / 4)

    samples = []
    for s in lawful(SHAPES).samples:
        extra = scores(s.views, s.width * s.height / 196)
        peaks = {**s.peaks, "aggregator": int(s.peaks["aggregator"] + extra)}
        samples.append(Sample(s.views, s.width, s.height, s.geometry, s.collect, peaks))
    model = MemoryModel(KEY, "matmul", tuple(samples), 0.25)
    expected = truth("aggregator", 200, 280, 280, True, True) + scores(200, 400)
    assert model.peaks(200, 280, 280)["aggregator"] == pytest.approx(expected, rel=0.02)
    blind = MemoryModel(KEY, "matmul", tuple(samples))
    assert blind.peaks(200, 280, 280)["aggregator"] != pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        (ServedRequests(Range(1, 4, 32), ((140, 112),)), {(1, 140, 112), (6, 140, 112), (24, 140, 112)}),
        (ServedRequests(Range(2, 2, 2), ((140, 112),)), {(2, 140, 112)}),
        (ServedRequests(Range(1, 1, 8), AnySize(140, 140)), {(1, 140, 140), (6, 140, 140), (8, 140, 140)}),
    ],
)
def test_calls_to_measure_are_ones_that_the_bundle_serves(requests: ServedRequests, expected: set[Any]) -> None:
    shapes = measurement.measuring_shapes(requests)
    assert set(shapes) == expected
    for views, width, height in shapes:
        requests.check(views, height, width)


def test_models_are_kept_and_damaged_ones_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path))
    model = lawful(SHAPES)
    assert model_module.known_model(KEY) is None
    model_module.remember_model(model)
    assert model_module.known_model(KEY) == model
    assert model_module.known_model({**KEY, "version": "2"}) is None
    path = model_module.model_path(KEY)
    assert path is not None
    for damage in ("", "[]", "{}", json.dumps({**encode(model), "version": 99}), json.dumps(encode(model))[:-30]):
        path.write_text(damage)
        assert model_module.known_model(KEY) is None
    few = {**encode(model), "samples": encode(model)["samples"][:3]}
    path.write_text(json.dumps(few))
    assert model_module.known_model(KEY) is None


@pytest.mark.slow
@linux
def test_a_probe_sees_what_a_call_takes(tiny_bundle: Path) -> None:
    few = probe(Bundle.open(tiny_bundle), "onnxruntime", 1, *SIZE)
    many = probe(Bundle.open(tiny_bundle), "onnxruntime", 8, *SIZE, geometry=True, collect=True)
    assert few["geometry_encoder"] == 0 < few["load"]
    assert many["geometry_encoder"] > 0
    assert max(many.values()) > max(few.values())
    with pytest.raises(BackendError, match="measuring 33 views"):
        probe(Bundle.open(tiny_bundle), "onnxruntime", 33, 14, 14)  # one more than it serves


@pytest.mark.slow
def test_an_engine_refuses_what_does_not_fit(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="run `mapengine plan`"):
        Engine.load(tiny_bundle, "onnxruntime", verify=False, memory_limit="8GB")
    key = measurement.model_key(Bundle.open(tiny_bundle), "onnxruntime")
    model = MemoryModel(key, "mha", lawful(SHAPES).samples)
    model_module.remember_model(model)
    limit = model.peak(2, *SIZE, geometry=False, collect=True)[1]
    engine = Engine.load(tiny_bundle, "onnxruntime", verify=False, memory_limit=limit)
    assert len(engine.infer(views_of(("", "")))) == 2
    with pytest.raises(MemoryLimitError, match=r"3 views of 84x56 .* give at most 2"):
        engine.infer(views_of(("", "", "")))
    assert len(list(engine.infer_stream(views_of(("", "", ""))))) == 3  # one at a time
    with pytest.raises(MemoryLimitError):
        engine.infer(views_of(("kdp", "kdp")))  # geometry comes on top
    with pytest.raises(InputError, match="8GB or 512MiB"):
        Engine.load(tiny_bundle, "onnxruntime", verify=False, memory_limit="much")
    free = Engine.load(tiny_bundle, "onnxruntime", verify=False)
    assert len(free.infer(views_of(("",)))) == 1
    monkeypatch.setattr(guard, "attainable_bytes", lambda: 10**6)
    with pytest.raises(MemoryLimitError, match="not even one"):
        free.infer(views_of(("",)))


@pytest.mark.slow
def test_a_limit_is_held_against_images_before_any_is_decoded(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files whose pixels are missing show that only their headers were read."""
    for index in range(3):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (3000, 2000)).save(path)
        path.write_bytes(path.read_bytes()[:100])
    limit = truth("dense_head", 2, *SIZE, False, True)
    monkeypatch.setattr(guard, "known_model", lambda key: lawful(SHAPES))
    engine = Engine.load(tiny_bundle, "onnxruntime", verify=False, memory_limit=limit + 10_000)
    with pytest.raises(MemoryLimitError, match=r"3 views of 84x56 .* give at most 2"):
        engine.reconstruct(tmp_path, size=SIZE)
    # Two views fit when they are small, but not while two of 6 megapixels are decoded.
    monkeypatch.setattr(guard, "threads_in_order", lambda: 2)
    with pytest.raises(MemoryLimitError, match=r"reading the views needs .* each that is decoded at a time"):
        engine.reconstruct(sorted(tmp_path.iterdir())[:2], size=SIZE)
    with pytest.raises(MemoryLimitError, match="reading the views"):
        engine.preprocess(open_views(tmp_path), size=SIZE)


def test_gpu_bundles_and_other_systems_are_told_so(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        name, version, device = "tensorrt", "10", "GPU"

    monkeypatch.setattr(measurement, "make_backend", lambda *_: Gpu)
    with pytest.raises(BackendUnavailableError, match="memory of tensorrt is not planned"):
        measurement.measure(Bundle.open(tiny_bundle), "tensorrt")
    monkeypatch.undo()
    monkeypatch.setattr(measurement, "can_reset_peak", lambda: False)
    with pytest.raises(BackendUnavailableError, match="plan on Linux"):
        measurement.measure(Bundle.open(tiny_bundle), "onnxruntime")


@pytest.mark.slow
@linux
def test_measuring_makes_a_model(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPENGINE_CACHE", str(tmp_path))
    monkeypatch.setattr(measurement, "measuring_shapes", lambda profile: [(1, *SIZE), (4, *SIZE)])
    steps: list[tuple[int, int]] = []
    model = measurement.measure(
        Bundle.open(tiny_bundle), "onnxruntime", lambda done, total: steps.append((done, total))
    )
    assert steps[-1] == (8, 8)
    assert model_module.known_model(model.key) == model
    found = max(probe(Bundle.open(tiny_bundle), "onnxruntime", 3, *SIZE).values())
    assert model.peak(3, *SIZE, geometry=False, collect=False)[1] == pytest.approx(found, rel=0.1)
    rows = model_module.table(model, [1, 4], *SIZE, geometry=True, collect=True)
    assert [row[0] for row in rows] == [*(s.replace("_", " ") for s in STAGES), "peak"]
    assert np.shape(rows) == (6, 3)
