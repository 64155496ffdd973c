"""Sequences whose items are made or taken when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
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

    What the iterator raises is raised where the item is asked for, and wherever one after it is.
    """

    def __init__(self, items: Generator[Item, None, None], count: int) -> None:
        """Take ``count`` items, and let the iterator end with the last one."""
        self._rest, self._count = items, count
        self._taken: list[Item] = []
        self._failure: BaseException | None = None
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Take no more items."""
        self._rest.close()

    def _at(self, index: int) -> Item:
        with self._turn:
            while len(self._taken) <= index:
                if self._failure is not None:
                    raise self._failure
                try:
                    self._taken.append(next(self._rest))
                except BaseException as error:  # an interruption ends the iterator too
                    self._failure = error
                    raise
                if len(self._taken) == self._count:
                    self._taken.extend(self._rest)  # which are none, but what follows the last one is done
        return self._taken[index]
