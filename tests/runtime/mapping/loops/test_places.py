"""Frames that show the same are found again, whatever all frames share, in memory that is counted in bytes a frame."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from mapengine.runtime.mapping.loops.places import LEARNED_FROM, Candidate, Places

Array = np.ndarray[Any, Any]
CHANNELS = 48


class World:
    """Places, each a distribution of tokens around a mixture of its own; all frames share a strong common part."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.common = 5 * self.rng.normal(size=(4, CHANNELS))
        self.places = self.rng.normal(size=(200, 6, CHANNELS))

    def frame(self, place: int, tokens: int = 80) -> Array:
        parts = np.concatenate([self.common, self.places[place]])
        chosen = parts[self.rng.integers(0, len(parts), tokens)]
        return (chosen + 0.3 * self.rng.normal(size=chosen.shape)).reshape(8, -1, CHANNELS).astype(np.float32)


def filled(world: World, frames: list[int]) -> Places:
    places = Places()
    for number, place in enumerate(frames):
        places.add(number, world.frame(place))
    return places


def test_a_place_that_is_seen_again_is_the_best_candidate() -> None:
    world = World(0)
    for again in (3, 40, 99):
        found = filled(world, [*range(100), again]).search(away=1, count=3)
        assert found[0].number == again
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert found[0].score > found[1].score + 0.1


def test_candidates_are_far_enough_from_the_latest_frame_and_from_each_other() -> None:
    world = World(1)
    frames = [*range(70), 5, 5, 5, *range(70, 80), 5]
    found = filled(world, frames).search(away=20, count=10, apart=4)
    assert found[0].number == 5
    numbers = sorted(one.number for one in found)
    assert max(numbers) <= len(frames) - 1 - 20
    assert min(np.diff(numbers)) >= 4
    near = filled(world, frames).search(away=1, count=2, apart=4)
    assert {near[0].number, near[1].number} < {5, 69, 70, 71, 72}


def test_numbers_may_have_gaps() -> None:
    world = World(2)
    places = Places()
    for number in range(80):
        places.add(3 * number, world.frame(number))
    places.add(1000, world.frame(30))
    assert places.search(away=1)[0].number == 90


def test_nothing_is_found_before_the_directions_are_learned_or_where_nothing_is_far_enough() -> None:
    world = World(3)
    assert filled(world, [0] * (LEARNED_FROM - 1)).search(away=1) == []
    assert filled(world, [*range(70)]).search(away=70) == []
    assert Places().search(away=1) == []


def test_the_same_frames_give_the_same_candidates() -> None:
    first, second = (filled(World(4), [*range(90), 7]).search(away=5) for _ in range(2))
    assert first == second
    assert all(isinstance(one, Candidate) for one in first)


@pytest.mark.parametrize("tokens", [np.zeros((2, 2, CHANNELS)), np.full((1, 1, CHANNELS), 3.0)])
def test_frames_in_which_nothing_is_seen_do_no_harm(tokens: Array) -> None:
    world = World(5)
    places = filled(world, [*range(70)])
    places.add(70, tokens.astype(np.float32))
    assert all(np.isfinite(one.score) for one in places.search(away=1))
    only = Places()
    for number in range(LEARNED_FROM + 2):
        only.add(number, tokens.astype(np.float32))
    assert all(np.isfinite(one.score) for one in only.search(away=1))


@pytest.mark.slow
def test_a_frame_takes_a_few_hundred_bytes() -> None:
    world = World(6)
    image = world.frame(0, tokens=1000)
    places = Places()
    for number in range(5000):
        places.add(number, image[:1] if number > LEARNED_FROM else world.frame(number % 200))
    held = sum(value.nbytes for value in vars(places).values() if isinstance(value, np.ndarray))
    blocks = [block for value in vars(places).values() if isinstance(value, list) for block in value]
    held += sum(block.nbytes if isinstance(block, np.ndarray) else sys.getsizeof(block) for block in blocks)
    assert held / 5000 < 1000
    assert len(places) == 5000
