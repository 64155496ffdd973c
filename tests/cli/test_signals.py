"""Requests to end while something runs that must not see them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from mapengine.cli.signals import interrupt_on_end, interrupts_later

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
def test_an_interrupt_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    interrupt_on_end()
    handler = signal.getsignal(number)
    finished = []

    def block() -> None:
        with interrupts_later():
            signal.raise_signal(number)
            finished.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert finished
    assert signal.getsignal(number) is handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", ENDINGS)
def test_an_ignored_request_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    interrupt_on_end()
    with interrupts_later():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN


def test_an_error_of_the_block_passes_and_handlers_return() -> None:
    with pytest.raises(OSError, match="mine"), interrupts_later():
        raise OSError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_the_handlers_alone() -> None:
    entered = []

    def work() -> None:
        interrupt_on_end()
        with interrupts_later():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]
