"""Compiling in processes of its own: LLVM takes its process down for a chip that it does not know.

They import nothing from the working folder, where anything may lie, as they would with :mod:`multiprocessing`. Not
forked either: the parent may hold threads of PyTorch.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO, Any

from . import triton_compiler
from .errors import KernelCompileError, KernelError
from .variants import Variant

Job = tuple[Variant, int]
"""A variant and the architecture that it is compiled for."""
Result = triton_compiler.Compiled | KernelCompileError


def job_name(job: Job) -> str:
    """Return ``variant.sm_NN``."""
    return f"{job[0].name}.sm_{job[1]}"


def compile_all(jobs: list[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Yield results as they come, from so many processes.

    A job that takes its process down costs that job. If nothing compiled for its architecture so far, the
    architecture's other jobs that have not begun are given up as well.
    """
    compilers = _Compilers()
    with ThreadPoolExecutor(max(1, min(workers, len(jobs)))) as threads:
        try:
            waiting = {threads.submit(compilers.compile, job): job for job in jobs}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            compilers.end()
            threads.shutdown(cancel_futures=True)


class _Compilers:
    """One process per thread that asks."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []
        self._works: set[int] = set()
        self._unknown: set[int] = set()

    def compile(self, job: Job) -> Result:
        if job[1] in self._unknown:
            return _crashed(job)
        result = self._asked(job)
        if result is None:
            if job[1] not in self._works:
                self._unknown.add(job[1])
            return _crashed(job)
        if isinstance(result, triton_compiler.Compiled):
            self._works.add(job[1])
        return result

    def _asked(self, job: Job) -> Result | None:
        """The answer of this thread's process; None if it ended instead."""
        process: Any = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _start()
            self._all.append(process)
        try:
            process.stdin.write(pickle.dumps(job))
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            process.kill()
            self._own.process = None
            return None
        if isinstance(answer, KernelError) and not isinstance(answer, KernelCompileError):
            raise answer  # it concerns every job
        result: Result = answer
        return result

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()


def _crashed(job: Job) -> KernelCompileError:
    return KernelCompileError(f"{job_name(job)}: the compiler crashed, as it does for a chip that it does not know")


def _start() -> subprocess.Popen[bytes]:
    # mapengine.runtime.system.children does the same; the kernels are also used without the runtime.
    folder = os.path.realpath(os.curdir)
    path = [entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) != folder]
    command = f"import sys; sys.path[:] = {path!r}; from {__name__} import serve; serve()"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONINSPECT", "PYTHONPATH")}
    return subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def serve() -> None:
    """Compile what the standard input asks for, until it is closed."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever the compiler prints goes there, the answers alone through the pipe
        try:
            while True:
                _answer(pickle.load(sys.stdin.buffer), answers)
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            os._exit(0)


def _answer(job: Job, answers: IO[Any]) -> None:
    try:
        result: Any = triton_compiler.compile_variant(*job)
    except KernelError as error:
        result = error
    pickle.dump(result, answers)
    answers.flush()
