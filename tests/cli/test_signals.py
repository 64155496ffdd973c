"""Requests to end, handled like the interrupt key."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from mapengine.cli.signals import interrupt_on_end

ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDINGS)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_DFL)  # whoever started the tests may ignore one, as nohup does
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDINGS])
def test_a_request_to_end_is_an_interrupt(number: signal.Signals) -> None:
    interrupt_on_end()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", ENDINGS)
def test_an_ignored_request_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    interrupt_on_end()
    signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_other_threads_leave_the_handlers_alone() -> None:
    thread = threading.Thread(target=interrupt_on_end)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in ENDINGS] == [signal.SIG_DFL] * len(ENDINGS)
