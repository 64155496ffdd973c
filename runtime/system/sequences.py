"""Sequences whose items are made or taken when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

Source = TypeVar("Source")
Item = TypeVar("Item")


class _OneByOne(Sequence[Item]):
    """A sequence that is defined by its length and by what stands in a place."""

    def _at(self, index: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(place) for place in places]


class Each(_OneByOne[Item]):
    """``get`` of every item of a sequence, called at each access."""

    def __init__(self, get: Callable[[Source], Item], items: Sequence[Source]) -> None:
        self._get, self._items = get, items

    def __len__(self) -> int:
        return len(self._items)

    def _at(self, index: int) -> Item:
        return self._get(self._items[index])


class Arriving(_OneByOne[Item]):
    """The items of an iterator, each taken when it is first asked for, and kept. Threads may share it.

    What the iterator raises is raised where the item is asked for.
    """

    def __init__(self, items: Iterator[Item], count: int) -> None:
        """Take ``count`` items, and let the iterator end with the last one."""
        self._rest, self._count = items, count
        self._taken: list[Item] = []
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def _at(self, index: int) -> Item:
        with self._turn:
            while len(self._taken) <= index:
                self._taken.append(next(self._rest))
                if len(self._taken) == self._count:
                    self._taken.extend(self._rest)  # which are none, but what follows the last one is done
        return self._taken[index]
