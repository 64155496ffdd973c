"""The process that compiles, started by :mod:`.process`.

It reads one request as a line of JSON from its standard input and answers in lines of JSON: ``progress`` any number of
times, then ``result`` or ``error``. It ends with its parent: when the input closes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any, TextIO

from mapengine.runtime.backends.tensorrt.flavour import load_flavour
from mapengine.runtime.errors import MapEngineError
from mapengine.runtime.system.machine import peak_bytes
from mapengine.runtime.typed_json.codec import encode, read_json

from .compile import MESSAGE, PlanRequest, compile_plan

_SMALLEST_STEP = 0.005
"""Progress below this is not worth a line, unless the phase is another."""


def main() -> None:
    """Run one request."""
    # The terminal sends Ctrl-C to every process; what it means is decided by the parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The library prints to the standard output as it likes: that goes to the standard error, and the answers elsewhere.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)
        request = read_json(PlanRequest, sys.stdin.readline(), MESSAGE)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _send(channel, _answer(channel, request))
        # Without the library's clean-up, which can crash and has nothing left to do.
        os._exit(0)


def _answer(channel: TextIO, request: PlanRequest) -> dict[str, Any]:
    last_fraction, last_phase = -1.0, ""

    def report(fraction: float, phase: str) -> None:
        nonlocal last_fraction, last_phase
        if phase != last_phase or fraction - last_fraction >= _SMALLEST_STEP:
            last_fraction, last_phase = fraction, phase
            _send(channel, {"progress": [fraction, phase]})

    try:
        compiled = compile_plan(load_flavour(request.backend), request, report)
        return {"result": encode(compiled), "peak_memory": peak_bytes()}
    except MapEngineError as error:
        return {"error": [type(error).__name__, str(error)]}
    except MemoryError:
        return {"error": ["MemoryError", ""]}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror or str(error)]}


def _send(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
