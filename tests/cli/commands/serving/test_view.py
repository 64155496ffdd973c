"""``mapengine view``: how it begins, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene

from ....served_page import check_until_it_is_ended


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    ones = np.ones((1, 4, 6), np.float32)
    made = Scene(
        points=np.random.default_rng(0).random((1, 4, 6, 3)).astype(np.float32),
        colors=np.zeros((1, 4, 6, 3), np.uint8),
        depth=ones,
        confidence=ones,
        mask=ones > 0,
        intrinsics=np.eye(3, dtype=np.float32)[None],
        poses=np.eye(4, dtype=np.float32)[None],
        made_by="preset:wall, int8 (bundle bricks)",
    )
    return made.save(tmp_path / "scene.npz")


def test_a_taken_port_is_a_sentence_before_the_scene_is_read(cli: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("view", tmp_path / "gone.npz", "--port", port)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(rf"Error: port {port} of 127.0.0.1 is taken; .*--port.*\n", result.err)


def test_what_is_no_scene_is_a_sentence(cli: Any, tmp_path: Path) -> None:
    result = cli("view", tmp_path / "gone.npz", "--port", 0)
    assert (result.code, result.out) == (1, "")
    assert re.search(r"^Error: .*gone\.npz: there is no such file", result.err, re.MULTILINE)
    assert "Traceback" not in result.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_the_page_is_until_it_is_ended(scene: Path, tmp_path: Path, number: signal.Signals) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    title = r"preset:wall, int8 \(bundle bricks\)"
    page = b"<title>preset:wall, int8 (bundle bricks)</title>"
    check_until_it_is_ended(["view", str(scene)], temporary, number, title, page, "Ended: nothing is left of the page")
