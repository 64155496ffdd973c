"""A command that serves a page until it is told to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path


def check_until_it_is_ended(
    arguments: list[str], temporary: Path, number: signal.Signals, title: str, page: bytes, farewell: str
) -> None:
    """Run a command of mapengine, read its page, and end it by a signal.

    Args:
        arguments: of the command.
        temporary: an empty folder for its files, of which none may be left.
        number: the signal.
        title: pattern of what its first line says before the address.
        page: what the page holds.
        farewell: the last line of what it says.
    """
    command = [sys.executable, "-m", "mapengine.cli", *arguments, "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(rf"^{title} is at (http://127.0.0.1:\d+/) ", line)
            if not found:
                process.kill()
            assert found, process.communicate()[1]
            with urllib.request.urlopen(found[1], timeout=10) as answer:
                assert page in answer.read()
            assert len(list(temporary.iterdir())) == 1
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()  # one that does not end would be waited for
    assert (process.returncode, out) == (0, "")
    assert err.splitlines()[-1] == farewell
    assert "Traceback" not in err
    assert list(temporary.iterdir()) == []
