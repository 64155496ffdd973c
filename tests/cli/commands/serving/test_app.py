"""``mapengine app``: how it begins, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime import Engine

from ....served_page import check_until_it_is_ended


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
    arguments = ["app", str(tiny_bundle), "--threads", "1"]
    title, farewell = r"preset:tiny, fp32 \(bundle .*\)", "Ended: uploads and results are deleted"
    check_until_it_is_ended(arguments, tmp_path, number, title, b"Its weights are random", farewell)
