"""Compiling in a process of its own.

The compile step of a large stage runs for many seconds without a callback (8 to 15 for the giant network's, of which
``IProgressMonitor`` sees nothing), so the builder cannot be stopped from within in reasonable time; a process can. The
library's crashes become errors that way, and the gigabytes that it worked in go back to the system.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import tempfile
import threading
from typing import IO, Any

from mapengine.runtime import errors
from mapengine.runtime.errors import ExportError, MapEngineError
from mapengine.runtime.system.children import child_command, child_environment
from mapengine.runtime.typed_json.codec import decode, encode

from .compile import MESSAGE, Compiled, PlanRequest
from .progress import Fraction

_POLL_SECONDS = 0.2
"""How long Ctrl-C may wait where a blocked read cannot be interrupted."""


def compile_elsewhere(request: PlanRequest, report: Fraction) -> tuple[Compiled, int | None]:
    """Run :func:`.compile.compile_plan` in a child process; also the bytes of memory that it took, if known.

    Whatever ends the wait, an interrupt or an exception of ``report``, ends the child first.

    Raises:
        MapEngineError: as :func:`.compile.compile_plan`.
        ExportError: the child crashed or was killed.
        OSError: the plan could not be written.
    """
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            child_command("mapengine.export.tensorrt.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=child_environment(),
            text=True,
            encoding="utf-8",
        )
        try:
            answer = _converse(child, request, report)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if answer is None:
            raise _crash(request, child.returncode, complaints)
    if "os_error" in answer:
        raise OSError(*answer["os_error"])
    if "error" in answer:
        raise _error(request, *answer["error"])
    return decode(Compiled, answer["result"], MESSAGE), answer["peak_memory"]


def _converse(child: subprocess.Popen[str], request: PlanRequest, report: Fraction) -> dict[str, Any] | None:
    """Send the request and follow the progress; the final answer, or None if the child ended without one."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert child.stdin is not None
    assert child.stdout is not None
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    try:
        child.stdin.write(json.dumps(encode(request)) + "\n")
        child.stdin.flush()
    except OSError:
        # It has ended already; what it wrote says why.
        pass
    while True:
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            child.wait()
            return None
        answer: dict[str, Any] = json.loads(line)
        if "progress" not in answer:
            return answer
        report(*answer["progress"])


def _read(pipe: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    try:
        for line in pipe:
            lines.put(line)
    except ValueError:  # closed while it was read, after a stop
        pass
    finally:
        lines.put(None)


def _error(request: PlanRequest, kind: str, message: str) -> MapEngineError:
    if kind == "MemoryError":
        return _out_of_memory(request)
    known: type[MapEngineError] = getattr(errors, kind, ExportError)
    return known(message)


def _crash(request: PlanRequest, status: int, complaints: IO[bytes]) -> ExportError:
    if status == -getattr(signal, "SIGKILL", 9):
        return _out_of_memory(request)
    complaints.seek(0)
    said = complaints.read().decode(errors="replace").strip().splitlines()
    reason = f" ({' '.join(said[-1].split())[:160].rstrip('.')})" if said else ""
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
    return ExportError(
        f"{request.name}: {request.backend} crashed while it compiled the plan, with {how}{reason}; try another "
        f"--attention or --precision, or another version of {request.backend}"
    )


def _out_of_memory(request: PlanRequest) -> ExportError:
    return ExportError(
        f"{request.name}: there was not enough memory to compile the plan; close other programs, or build on a machine "
        "with more"
    )
