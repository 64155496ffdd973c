"""Where results may go, and in which format: refused before the network runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        (["--out", "s.laz"], "geo"),
        (["--rerun", "s.rrd"], "rerun"),
        (["--out", "s", "--format", "maps", "--map-format", "exr"], "exr"),
    ],
)
def test_a_format_without_its_packages_is_refused_at_once(
    cli: Any, tiny_bundle: Path, samples: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], extra: str
) -> None:
    monkeypatch.setattr("mapengine.runtime.outputs.formats.table.importlib.util.find_spec", lambda name: None)
    result = cli("run", tiny_bundle, samples, *options)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert f"pip install 'mapengine[{extra}]'" in result.err
