from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

RECORDS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.mark.slow
def test_an_old_record_is_drawn_again(cli: Any, tmp_path: Path) -> None:
    target = tmp_path / "old.png"
    for _ in range(2):  # also over itself
        result = cli("plot", RECORDS / "profile-nano.json", "--out", target)
        assert (result.code, result.problems) == (0, []), result.err
    with Image.open(target) as picture:
        assert picture.width > 900


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no record"),
        (json.dumps({"benchmark": "soak"}), "is a record of soak"),
        (json.dumps({"benchmark": "profile", "results": 3}), "is no whole record"),
        (json.dumps({"benchmark": "profile", "results": [{"views": 1}]}), "is no whole record"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cli: Any, tmp_path: Path, content: str, words: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(content, encoding="utf-8")
    result = cli("plot", record)
    assert result.code == 1
    assert words in result.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]
