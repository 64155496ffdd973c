"""Summaries, verdicts and tables on constructed data."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.errors import InputError
from mapengine.runtime.profiling import Summary, compare_records, is_beyond_noise
from mapengine.runtime.profiling.report import markdown, rows


def test_a_summary_is_what_it_says() -> None:
    samples = [float(x) for x in range(1, 102)]
    found = Summary.of(samples)
    assert (found.runs, found.min, found.p50, found.p90, found.p99, found.mean) == (101, 1, 51, 91, 100, 51)
    assert found.cv == pytest.approx(np.std(samples, ddof=1) / 51)
    assert Summary.of([2.0]) == Summary(1, 2, 2, 2, 2, 2, 0)
    assert Summary(**found.to_json()).p99 == 100


def noisy(median: float, cv: float, runs: int, seed: int) -> Summary:
    return Summary.of(median * (1 + cv * np.random.default_rng(seed).standard_normal(runs)))


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


def test_tables_say_what_is_missing_and_what_is_slow(record: dict[str, Any], tmp_path: Path) -> None:
    table = rows(record)
    assert [row[-2] for row in table] == ["1.00", "2.00", "1.60"]
    assert "not faster than `a (onnxruntime)`" in table[2][0]
    assert table[2][-1] == "not measured"
    text = markdown(record)
    assert "Not measured: `upstream`: not installed." in text
    assert "What is timed." in text
    record["results"].pop(0)
    assert [row[-2] for row in rows(record)] == ["not measured"] * 2
