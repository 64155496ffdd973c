"""Summaries, verdicts and tables on constructed data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.errors import InputError
from mapengine.runtime.profiling import Summary, compare_records, is_beyond_noise
from mapengine.runtime.profiling.accuracy import add_accuracy, pareto
from mapengine.runtime.profiling.report import accuracy_rows, markdown, rows


def test_a_summary_is_what_it_says() -> None:
    samples = [float(x) for x in range(1, 102)]
    found = Summary.of(samples)
    assert (found.runs, found.min, found.p50, found.p90, found.p99, found.mean) == (101, 1, 51, 91, 100, 51)
    assert found.cv == pytest.approx(np.std(samples, ddof=1) / 51)
    assert Summary.of([2.0]) == Summary(1, 2, 2, 2, 2, 2, 0)
    assert Summary(**found.to_json()).p99 == 100


def noisy(median: float, cv: float, runs: int, seed: int) -> Summary:
    return Summary.of(median * (1 + cv * np.random.default_rng(seed).standard_normal(runs)))


@pytest.mark.slow
def test_noise_is_rarely_called_a_difference_and_a_difference_is_seen() -> None:
    pairs = [(noisy(1, 0.05, 30, 2 * i), noisy(1, 0.05, 30, 2 * i + 1)) for i in range(300)]
    assert sum(is_beyond_noise(*pair) for pair in pairs) <= 6
    changed = [(noisy(1, 0.05, 30, 2 * i), noisy(1.08, 0.05, 30, 2 * i + 1)) for i in range(300)]
    assert sum(is_beyond_noise(*pair) for pair in changed) > 270
    assert not is_beyond_noise(Summary.of([1.0] * 30), Summary.of([1.015] * 30))  # below two per cent
    assert is_beyond_noise(Summary.of([1.0] * 30), Summary.of([1.03] * 30))


def entry(label: str, p50: float, **facts: Any) -> dict[str, Any]:
    return {
        "contender": label,
        "kind": "bundle",
        "model": "m",
        "backend": "onnxruntime",
        "precision": "fp32",
        "device": "CPU",
        "views": 2,
        "size": [140, 112],
        "end_to_end_s": Summary.of([p50] * 30).to_json(),
        "phases_s": {"aggregator": Summary.of([p50 / 2] * 30).to_json()},
        "peak_process_mb": 100.0,
        "device_mb": None,
        **facts,
    }


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "benchmark": "profile",
        "boundary": "What is timed.",
        "machine": {"cpu": "x"},
        "versions": {},
        "results": [
            entry("pytorch", 4.0, kind="pytorch"),
            entry("a (onnxruntime)", 2.0),
            entry("b (onnxruntime)", 2.5, precision="int8", not_faster_than="a (onnxruntime)", peak_process_mb=None),
        ],
        "not_measured": [{"contender": "upstream", "why": "not installed"}],
    }


def test_comparisons_have_verdicts(record: dict[str, Any]) -> None:
    new = copy.deepcopy(record)
    new["results"][1]["end_to_end_s"] = Summary.of([1.0] * 30).to_json()
    new["results"][2]["end_to_end_s"] = Summary.of([5.0] * 30).to_json()
    new["machine"] = {"cpu": "y"}
    found, differences = compare_records(record, new)
    assert [(c.contender, c.ratio, c.verdict) for c in found] == [
        ("pytorch", 1.0, "same"),
        ("a (onnxruntime)", 0.5, "faster"),
        ("b (onnxruntime)", 2.0, "slower"),
    ]
    assert len(differences) == 1
    assert "machine" in differences[0]


@pytest.mark.parametrize("wrong", [None, [], {}, {"benchmark": "engine"}, {"benchmark": "profile", "results": [{}]}])
def test_what_is_no_record(record: dict[str, Any], wrong: Any) -> None:
    with pytest.raises(InputError, match="no record of `mapengine profile`"):
        compare_records(wrong, record)
    record["results"] = [{**record["results"][0], "views": 99}]
    with pytest.raises(InputError, match="in common"):
        compare_records({**record, "results": [entry("other", 1.0)]}, record)


def evaluation(precision: str, error: float, **facts: Any) -> dict[str, Any]:
    metrics = {"depth_abs_rel": error, "rotation_degrees": None}
    return {
        "benchmark": "evaluation",
        "data": "rendered",
        "model": "m",
        "weights_sha256": "w",
        "precision": precision,
        "where": "onnxruntime 1.32 on CPU",
        "size": "56x42",
        "results": {"image-only-2": {"scenes": 7, "metrics": metrics}},
        **facts,
    }


def test_errors_stand_beside_times(record: dict[str, Any]) -> None:
    results = record["results"]
    for result in results:
        result.update(model="m", weights_sha256="w", views=2, size=[56, 42])
        result["backend"] = "torch eager" if result["kind"] == "pytorch" else "onnxruntime"
    found = [evaluation("fp32", 0.1), evaluation("int8", 0.2), evaluation("fp32", 0.1, where="PyTorch 2 on cpu")]
    add_accuracy(results, found)
    assert [result["accuracy"]["depth_abs_rel"] for result in results] == [0.1, 0.1, 0.2]
    assert pareto(results, 2) == [results[1]]  # as right as PyTorch and faster; the third is slower and worse
    assert [row[-1] for row in accuracy_rows(record)] == ["no", "yes", "no"]
    assert "| 0.2000 |" in markdown(record)
    results[2]["views"] = 3
    add_accuracy(results, found)
    assert results[2]["accuracy"] is None  # nobody evaluated three views
    for wrong in (
        evaluation("fp16", 0.1),
        evaluation("fp32", 0.1, weights_sha256="x"),
        evaluation("fp32", 0, size="1x1"),
    ):
        with pytest.raises(InputError, match="which was not timed"):
            add_accuracy(results, [wrong])
    for wrong in ({}, [], {"benchmark": "profile"}):  # type: ignore[assignment]
        with pytest.raises(InputError, match="no record of `mapengine eval`"):
            add_accuracy(results, [wrong])


def test_tables_say_what_is_missing_and_what_is_slow(record: dict[str, Any]) -> None:
    table = rows(record)
    assert [row[-2] for row in table] == ["1.00", "2.00", "1.60"]
    assert "not faster than `a (onnxruntime)`" in table[2][0]
    assert table[2][-1] == "not measured"
    record["results"][1]["device_s"] = {"host to device": Summary.of([0.5] * 3).to_json()}
    text = markdown(record)
    assert "| GPU: host to device | 500.00 ms | 25 % |" in text
    assert "Not measured: `upstream`: not installed." in text
    assert "What is timed." in text
    record["results"].pop(0)
    assert [row[-2] for row in rows(record)] == ["not measured"] * 2
