"""``mapengine app``: how it begins, and how it ends."""

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

import pytest

from mapengine.runtime import Engine


def test_a_taken_port_is_a_sentence_before_the_engine_is_loaded(
    cli: Any, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("app", bundle_folder, "--port", port)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(rf"Error: port {port} of 127.0.0.1 is taken; .*--port.*\n", result.err)


def test_a_folder_that_is_no_bundle_is_a_sentence(cli: Any, tmp_path: Path) -> None:
    result = cli("app", tmp_path)
    assert (result.code, len(result.err.splitlines())) == (1, 1)
    assert result.err.startswith("Error: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_ends_it_cleanly(tiny_bundle: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "mapengine.cli", "app", str(tiny_bundle), "--port", "0", "--threads", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"^preset:tiny, fp32 \(bundle .*\) is at (http://127.0.0.1:\d+/) ", line)
        assert found, process.communicate()[1]
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            assert b"Its weights are random" in answer.read()
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == "Ended: uploads and results are deleted"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
