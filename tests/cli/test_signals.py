"""Requests to end, handled like the interrupt key."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

# Handlers belong to a process, and signals may come from outside: each case has a process of its own.
# Whoever started the tests may ignore a signal, as nohup does.
BEGIN = f"""
import signal, threading
from mapengine.cli.signals import interrupt_on_end
endings = {[int(number) for number in ENDINGS]}
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in endings:
    signal.signal(number, signal.SIG_DFL)
"""


def output_of(script: str) -> str:
    """What a Python process prints that runs the script after ``BEGIN``, once it ended by itself."""
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDINGS])
def test_a_request_to_end_is_an_interrupt(number: signal.Signals) -> None:
    script = f"""
interrupt_on_end()
try:
    signal.raise_signal({int(number)})
except KeyboardInterrupt:
    print("interrupted")
"""
    assert output_of(script) == "interrupted"


@pytest.mark.parametrize("number", ENDINGS)
def test_an_ignored_request_stays_ignored(number: signal.Signals) -> None:
    script = f"""
signal.signal({int(number)}, signal.SIG_IGN)
interrupt_on_end()
signal.raise_signal({int(number)})
print(signal.getsignal({int(number)}) is signal.SIG_IGN)
"""
    assert output_of(script) == "True"


def test_other_threads_leave_the_handlers_alone() -> None:
    script = """
thread = threading.Thread(target=interrupt_on_end)
thread.start()
thread.join()
print(all(signal.getsignal(number) is signal.SIG_DFL for number in endings))
"""
    assert output_of(script) == "True"
