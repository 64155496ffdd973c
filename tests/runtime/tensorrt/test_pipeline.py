from __future__ import annotations
import pytest
from mapengine.runtime import Engine
from ...random_views import assert_close, mixed_views, random_views


def test_numbers(device_engine, small, driver):
    for _ in range(3):
        assert_close(device_engine.predict(mixed_views(5)), small.predict(mixed_views(5)))
    print(driver.launches)
