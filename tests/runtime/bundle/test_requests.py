from __future__ import annotations

import pytest

from mapengine.runtime.bundle.requests import rounded_to_patches


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((518, 392), (518, 392)),
        ((520, 386), (518, 392)),
        ((526, 384), (532, 378)),
        ((3, 1), (14, 14)),
        ((20, 48), (14, 42)),
    ],
)
def test_the_nearest_size_of_whole_patches(size: tuple[int, int], near: tuple[int, int]) -> None:
    assert rounded_to_patches(*size) == near
