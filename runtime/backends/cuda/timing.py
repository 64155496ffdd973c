"""Times of copies and stages on the GPU, from marks in the stream around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .driver import Device, Event, Stream

HOST_TO_DEVICE = "host to device"
DEVICE_TO_HOST = "device to host"
ON_DEVICE = "between buffers"


class GpuClock:
    """Seconds by name of what ran between two marks of a stream, summed over the calls since they were read last.

    The GPU works on one entry of the stream after the other, so the figures do not overlap, unlike the phases that the
    host sees. Marks are kept for the next call. For one calling thread.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._idle: list[Event] = []
        self._spans: list[tuple[str, Event, Event]] = []

    @contextlib.contextmanager
    def span(self, name: str, stream: Stream) -> Iterator[None]:
        """Time what the block enqueues."""
        start, end = self._mark(stream), None
        try:
            yield
            end = self._mark(stream)
            self._spans.append((name, start, end))
        finally:
            if end is None:  # the call has failed; the mark is good for another
                self._idle.append(start)

    def read(self) -> dict[str, float]:
        """Wait for what is still running, return the sums in seconds, and reset them."""
        spans, self._spans = self._spans, []
        totals: dict[str, float] = {}
        with self._device.current():
            for name, start, end in spans:
                end.wait()
                totals[name] = totals.get(name, 0.0) + end.milliseconds_since(start) / 1e3
        self._idle += [mark for _, *marks in spans for mark in marks]
        return totals

    def close(self) -> None:
        """Free the marks."""
        marks = [*self._idle, *(mark for _, *both in self._spans for mark in both)]
        self._idle, self._spans = [], []
        for mark in marks:
            mark.free()

    def _mark(self, stream: Stream) -> Event:
        mark = self._idle.pop() if self._idle else self._device.event()
        mark.record(stream)
        return mark
