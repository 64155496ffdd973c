from __future__ import annotations

from collections.abc import Iterator

import pytest

from mapengine.runtime.system.sequences import Arriving, Each


def test_each_makes_an_item_at_every_access() -> None:
    made: list[int] = []

    def double(value: int) -> int:
        made.append(value)
        return 2 * value

    every = Each(double, [1, 2, 3])
    assert len(every) == 3
    assert made == []
    assert (every[0], every[-1], every[1:], list(every)) == (2, 6, [4, 6], [2, 4, 6])
    assert made == [1, 3, 2, 3, 1, 2, 3]
    with pytest.raises(IndexError):
        every[3]


def test_what_arrives_is_taken_when_it_is_asked_for_and_kept() -> None:
    taken: list[int] = []
    ended: list[bool] = []

    def items() -> Iterator[int]:
        for value in range(3):
            taken.append(value)
            yield value
        ended.append(True)

    arriving = Arriving(items(), 3)
    assert len(arriving) == 3
    assert taken == []
    assert (arriving[1], arriving[0]) == (1, 0)
    assert taken == [0, 1]
    assert not ended
    assert list(arriving) == arriving[0:3] == [0, 1, 2]
    assert ended == [True]
    assert taken == [0, 1, 2]
    with pytest.raises(IndexError):
        arriving[3]


def test_what_the_iterator_raises_is_raised_for_the_item() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("the second")

    arriving = Arriving(items(), 2)
    assert arriving[0] == 0
    with pytest.raises(ValueError, match="the second"):
        arriving[1]
