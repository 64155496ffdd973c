from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mapengine.export.diagnosis import layer_comparison
from mapengine.export.diagnosis.layer_comparison import LayerComparison, LayerDifference
from mapengine.export.diagnosis.layer_noise import LayerNoise, NoiseComparison
from mapengine.runtime.writing.files import write_record

RECORDS = Path(__file__).parents[4] / "benchmarks" / "results"
DIFFERENCES = LayerComparison(
    "onnxruntime, fp16 emulated",
    0.01,
    tuple(
        LayerDifference(stage, f"{stage}.blocks.{number}.mlp", value, value)
        for stage in ("image_encoder", "aggregator")
        for number, value in enumerate((0.0, 1e-4, math.nan, 2e-2))
    ),
)
NOISE = NoiseComparison(
    "onnxruntime",
    10.0,
    tuple(
        LayerNoise("aggregator", f"blocks.{number}.attn", "int8", snr, stream)
        for number, (snr, stream) in enumerate(((30.0, None), (9.0, 41.0), (math.inf, None), (-math.inf, 12.0)))
    ),
)


def layers_record(path: Path, comparison: LayerComparison | NoiseComparison) -> Path:
    origin: dict[str, Any] = {"machine": {}, "versions": {}, "commit": None}
    write_record(
        path, {"benchmark": "layers", "model": "preset:tiny", "precision": "x", **origin, **comparison.to_json()}
    )
    return path


def check_picture(path: Path, width: int) -> None:
    """A plot has much more than its white ground."""
    with Image.open(path) as picture:
        assert picture.width > width
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("profile-nano",), ("eval-nano-fp32",), ("eval-nano-fp32", "eval-nano-int8", "eval-nano-int8")]
)
def test_old_records_are_drawn_again(cli: Any, tmp_path: Path, names: tuple[str, ...]) -> None:
    target = tmp_path / "old.png"
    for _ in range(2 if names == ("eval-nano-fp32",) else 1):  # also over itself
        result = cli("plot", *(RECORDS / f"{name}.json" for name in names), "--out", target)
        assert (result.code, result.problems) == (0, []), result.err
    check_picture(target, 900)


@pytest.mark.slow
@pytest.mark.parametrize("comparison", [DIFFERENCES, NOISE], ids=["16 bit", "8 bit"])
def test_layers_are_drawn(cli: Any, tmp_path: Path, comparison: LayerComparison | NoiseComparison) -> None:
    record = layers_record(tmp_path / "layers.json", comparison)
    json.loads(record.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    result = cli("plot", record)
    assert (result.code, result.problems) == (0, []), result.err
    check_picture(tmp_path / "layers.png", 900)


@pytest.mark.slow
def test_verify_writes_what_it_draws(
    cli: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_comparison, "compare_layers", lambda *_, **__: DIFFERENCES)
    record, picture = tmp_path / "layers.json", tmp_path / "layers.png"
    options = ("--model", "preset:tiny", "--layers", "--backend", "onnxruntime", "--json", record, "--plot", picture)
    result = cli("verify", tiny_bundle, *options)
    assert result.code == 0, result.err
    assert f"Wrote {record}\nWrote {picture}\n" in result.out
    document = json.loads(record.read_text(encoding="utf-8"))
    assert document["layers"] == DIFFERENCES.to_json()["layers"]
    assert {"model": "preset:tiny", "precision": "fp32", "limit": 0.01}.items() <= document.items()
    check_picture(picture, 900)


def test_only_evaluations_are_drawn_together(cli: Any, tmp_path: Path) -> None:
    layers = layers_record(tmp_path / "layers.json", DIFFERENCES)
    for records, words in (
        ([layers, layers], "2 records were given, and only evaluations are drawn together; give one"),
        ([layers, RECORDS / "eval-nano-fp32.json"], f"is a record of evaluation, and {layers} one of layers"),
    ):
        result = cli("plot", *records, "--out", tmp_path / "x.png")
        assert (result.code, len(result.problems)) == (1, 1)
        assert words in result.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["layers.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no record"),
        (json.dumps({"benchmark": "soak"}), "is a record of soak"),
        (json.dumps({"benchmark": "profile", "results": 3}), "is no whole record"),
        (json.dumps({"benchmark": "profile", "results": [{"views": 1}]}), "is no whole record"),
        (json.dumps({"benchmark": "evaluation", "results": {"depth": 1}}), "is no whole record of `mapengine eval`"),
        (json.dumps({"benchmark": "layers", "layers": [{}]}), "is no whole record of `mapengine verify --layers`"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cli: Any, tmp_path: Path, content: str, words: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(content, encoding="utf-8")
    result = cli("plot", record)
    assert result.code == 1
    assert words in result.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
