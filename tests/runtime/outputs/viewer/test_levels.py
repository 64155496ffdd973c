"""Levels of points for a page that loads them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from mapengine.runtime import Scene
from mapengine.runtime.outputs.viewer.levels import SceneLevels, packed_rest
from mapengine.runtime.outputs.viewer.quantization import BYTES_PER_POINT


def blocks(pieces: Iterable[bytes]) -> list[tuple[dict[str, Any], bytes]]:
    """The blocks of a level, as a page takes them apart."""
    content, result = b"".join(pieces), []
    while content:
        end = 4 + int.from_bytes(content[:4], "little")
        block = json.loads(content[4:end])
        result.append((block, content[end : end + BYTES_PER_POINT * block["count"]]))
        content = content[end + BYTES_PER_POINT * block["count"] :]
    return result


def test_the_levels_hold_every_point_once(scene: Scene) -> None:
    total = int(scene.mask.sum())
    made = SceneLevels.of(scene, "points/x", most=total // 2)
    levels = [blocks([made.first[0]]), blocks([made.first[1]]), blocks(packed_rest(scene, total // 2))]
    counts = [sum(block["count"] for block, _ in level) for level in levels]
    assert tuple(counts) == made.counts
    assert sum(counts) == total
    assert 0 < counts[0] < counts[0] + counts[1] <= total // 2
    assert [{block["level"] for block, _ in level} for level in levels] == [{0}, {1}, {2}]
    assert all(len(content) == BYTES_PER_POINT * block["count"] for level in levels for block, content in level)


def test_the_page_says_where_the_points_are_and_how_many(scene: Scene) -> None:
    page = SceneLevels.of(scene, "points/x", "a title", most=500).page
    found = re.search(r'id="scene">(.*?)</script>', page, re.DOTALL)
    assert found
    description = json.loads(found[1])
    (layer,) = description["layers"]
    assert (description["source"], layer["blocks"]) == ("points/x", [])
    assert sum(layer["counts"]) == layer["total"] == scene.mask.sum()
    assert re.fullmatch(r"at most one per cube of [\d.]+ (mm|cm|m)", layer["thinned"])
    assert "<title>a title</title>" in page
    assert 'id="data"></script>' in page


def test_a_small_scene_is_one_level(scene: Scene) -> None:
    made = SceneLevels.of(scene, "points/x")
    assert made.counts == (scene.mask.sum(), 0, 0)
    assert list(packed_rest(scene)) == []
    assert np.isclose(json.loads(re.search(r'id="scene">(.*?)</script>', made.page)[1])["layers"][0]["edges"], 0).all()  # type: ignore[index]
