"""Warnings name the line of the caller, wherever in the package they come from."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import Engine, load_images, preprocess_inputs

from ..refusals import PIXELS, SIZE, SMALL_K


def warned_at(call: Callable[[], Any], words: str) -> None:
    """The call, a lambda of one line, warns once, about ``words``, at its own line of its own file."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        call()
    assert [words in str(warning.message) for warning in record] == [True]
    assert (record[0].filename, record[0].lineno) == (__file__, inspect.getsourcelines(call)[1])


def test_warnings_name_the_line_of_the_caller(small: Engine, tmp_path: Path) -> None:
    view = {"img": PIXELS.astype(np.float32)}
    warned_at(lambda: preprocess_inputs([view]), "view 0: img is a float32 array")
    warned_at(lambda: [views for views in map(preprocess_inputs, [[view]])], "taken as 0..1")
    np.save(tmp_path / "depth.npy", np.zeros(PIXELS.shape[:2]))
    nothing = [tmp_path / "depth.npy"]
    warned_at(lambda: small.reconstruct([PIXELS], SMALL_K, depths=nothing, size=SIZE), "holds no depth above 0")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    warned_at(lambda: load_images(tmp_path), "left out")
    with pytest.warns(UserWarning, match="left out"):  # a filter finds it, too
        load_images(tmp_path)
