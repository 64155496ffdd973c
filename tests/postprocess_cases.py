"""The vectors of the reference's post-processing: what it was given, and its masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.postprocessing.predictions import heads_of

from .heads import Outputs

DATA = Path(__file__).parent / "data"
GOLDEN = np.load(DATA / "postprocess.npz")
CASES = json.loads((DATA / "postprocess.json").read_text())
FLIPS = 0.005  # share of mask pixels that rounding may flip


def golden_scene(case: dict[str, Any]) -> tuple[list[Outputs], list[np.ndarray]]:
    predictions, images = [], []
    for view in range(case["views"]):
        prefix = f"{case['scene']}.raw.{view}."
        prediction = {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}
        predictions.append(heads_of(prediction))
        images.append(np.zeros((case["batch"], 3, case["height"], case["width"]), np.float32))
    return predictions, images


def golden_mask(case: dict[str, Any], view: int) -> np.ndarray | None:
    """The reference's mask of a view, where it was recorded."""
    name = f"{case['tag']}.out.{view}.mask"
    return GOLDEN[name] if name in GOLDEN.files else None
