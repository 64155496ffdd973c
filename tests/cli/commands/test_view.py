"""``mapengine view``: how it begins, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import Scene


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
    command = [sys.executable, "-m", "mapengine.cli", "view", str(scene), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"^preset:wall, int8 \(bundle bricks\) is at (http://127.0.0.1:\d+/) ", line)
        assert found, process.communicate()[1]
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            assert b"<title>preset:wall, int8 (bundle bricks)</title>" in answer.read()
        assert len(list(temporary.iterdir())) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "Ended: nothing is left of the page"
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []
