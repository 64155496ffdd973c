"""The texture bank and its filtered look-up."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mapengine.calibration.scenes.textures import LEVELS, SIDE, sample, texture_bank

PYRAMID = sum((SIDE >> level) ** 2 for level in range(LEVELS))


def constant(count: int, value: float) -> np.ndarray:
    return np.full(count, value, np.float32)


def look_up(texture: int, u: np.ndarray, v: np.ndarray, footprint: float) -> np.ndarray:
    u, v = np.asarray(u, np.float32), np.asarray(v, np.float32)
    return sample(np.full(u.shape, texture, np.int32), u, v, constant(u.size, footprint))


def test_the_bank_is_the_same_everywhere() -> None:
    bank = texture_bank()
    assert bank.texels.shape == (bank.textures * PYRAMID,)
    assert hashlib.sha256(bank.texels.tobytes()).hexdigest()[:16] == "75fbeec5b2bec9cd"


def test_every_texture_has_contrast_and_keeps_its_mean() -> None:
    bank = texture_bank()
    for texture in range(bank.textures):
        pyramid = bank.texels[texture * PYRAMID : (texture + 1) * PYRAMID].astype(float)
        finest, coarsest = pyramid[: SIDE * SIDE], pyramid[-16:]
        assert finest.std() > 12, texture
        assert coarsest.mean() == pytest.approx(finest.mean(), abs=1), texture


def test_texel_centres_are_met_exactly() -> None:
    texels = texture_bank().texels[: SIDE * SIDE].reshape(SIDE, SIDE)
    columns, rows = np.array([0, 5, 255]), np.array([3, 0, 255])
    found = look_up(0, (columns + 0.5) / SIDE, (rows + 0.5) / SIDE, 0.5)
    assert found == pytest.approx(texels[rows, columns] / 255, abs=1e-6)


def test_textures_repeat_seamlessly() -> None:
    u, v = np.linspace(0, 1, 50), np.linspace(0.3, 0.9, 50)
    assert look_up(3, u, v, 1.0) == pytest.approx(look_up(3, u + 2, v - 3, 1.0), abs=1e-3)
    edge = look_up(0, np.array([-1e-4, 1e-4]), np.array([0.4, 0.4]), 0.5)
    assert abs(edge[0] - edge[1]) < 0.02


def test_far_surfaces_see_averages() -> None:
    u = np.random.default_rng(0).random(500)
    near, far = look_up(18, u, u[::-1], 0.5), look_up(18, u, u[::-1], 200.0)
    assert far.std() < 0.5 * near.std()
    assert far.mean() == pytest.approx(near.mean(), abs=0.05)
