"""The golden cases: inputs and outputs of MapAnything with synthetic weights, and the comparison with them.

Every case is one call of ``infer``. Float32 rounding stays near 1e-5; an independent implementation stayed within
``ATOL`` everywhere. The edge mask has thresholds that rounding can cross, so a few of its pixels may differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"

ATOL = 5e-5
INTRINSICS_RTOL = 1e-4
"""The fit of the intrinsics is ill-conditioned: its noise is relative to the size of the matrix."""
MASK_FLIPS = 0.005
"""Share of the pixels of ``mask`` that may differ, per case."""

KEYS = {
    "pts3d": (3,),
    "pts3d_cam": (3,),
    "ray_directions": (3,),
    "depth_along_ray": (1,),
    "conf": (),
    "non_ambiguous_mask": (),
    "non_ambiguous_mask_logits": (),
    "depth_z": (1,),
    "img_no_norm": (3,),
    "mask": (1,),
}
"""Dense outputs of ``infer`` and what follows their (B, H, W)."""
SMALL_KEYS = {
    "cam_trans": (3,),
    "cam_quats": (4,),
    "camera_poses": (4, 4),
    "intrinsics": (3, 3),
    "metric_scaling_factor": (1,),
}
MASKED_KEYS = ("pts3d", "pts3d_cam", "depth_along_ray", "depth_z")

Predictions = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Case:
    """One golden case; ``model`` is the folder under ``tests/data``, ``config`` the file that its network has."""

    model: str
    config: str
    name: str
    inputs_in: str
    views: int
    batch: int
    height: int
    width: int
    stride: int
    infer_kwargs: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.model}-{self.name}"

    def inputs(self) -> list[dict[str, Any]]:
        """The views of the call, as NumPy arrays."""
        return read_views(np.load(DATA / self.model / "cases" / f"{self.inputs_in}.npz"), self.views)

    def expected(self) -> dict[tuple[str, int, str], NDArray[Any]]:
        """Outputs by (``"fwd"`` unmasked or ``"inf"`` masked, view, key); dense ones at every ``stride``-th pixel."""
        return read_outputs(np.load(DATA / self.model / "cases" / f"{self.name}.npz"))


def read_views(arrays: Mapping[str, NDArray[Any]], count: int) -> list[dict[str, Any]]:
    """The views under ``in.<view>.<key>``; a pose in two parts becomes a tuple (quaternion, translation)."""
    views: list[dict[str, Any]] = [{"data_norm_type": ["dinov2"]} for _ in range(count)]
    for name in arrays:
        kind, _, rest = name.partition(".")
        if kind == "in":
            view, _, key = rest.partition(".")
            views[int(view)][key] = arrays[name]
    for entry in views:
        if "camera_poses.quats" in entry:
            entry["camera_poses"] = (entry.pop("camera_poses.quats"), entry.pop("camera_poses.trans"))
    return views


def read_outputs(arrays: Mapping[str, NDArray[Any]]) -> dict[tuple[str, int, str], NDArray[Any]]:
    """The arrays under ``fwd.<view>.<key>`` and ``inf.<view>.<key>`` (``fwd64`` and ``inf64`` in double precision)."""
    outputs = {}
    for name in arrays:
        kind, _, rest = name.partition(".")
        if kind.removesuffix("64") in ("fwd", "inf"):
            view, _, key = rest.partition(".")
            outputs[kind.removesuffix("64"), int(view), key] = arrays[name]
    return outputs


def cases(model: str, file: str = "cases.json", config: str = "config.json") -> list[Case]:
    """The cases of a model."""
    fields = ("name", "inputs_in", "views", "batch", "height", "width", "stride", "infer_kwargs")
    return [
        Case(model, config, **{name: entry[name] for name in fields})
        for entry in json.loads((DATA / model / file).read_text())
    ]


def all_cases() -> list[Case]:
    """The cases of the tiny v1.1 network, of the same without reference-view embedding, and of the tiny v1 network."""
    return [
        *cases("v11_tiny"),
        *cases("v11_tiny", "cases_no_ref_view.json", "config_no_ref_view.json"),
        *cases("v1_tiny"),
    ]


def check_outputs(
    expected: Mapping[tuple[str, int, str], NDArray[Any]],
    plain: Predictions,
    masked: Predictions,
    pick: Any = (slice(None), slice(None)),
    *,
    atol: float = ATOL,
    atol_of: Mapping[str, float] | None = None,
    intrinsics_rtol: float = INTRINSICS_RTOL,
) -> None:
    """Compare the outputs of ``infer`` with and without masks with the golden ones.

    Args:
        expected: from :func:`read_outputs`.
        plain: ``infer(views, apply_mask=False)``.
        masked: ``infer(views)``.
        pick: rows and columns of the dense outputs that are stored.
        atol: largest absolute difference.
        atol_of: other values for single outputs.
        intrinsics_rtol: largest difference of the intrinsics, relative to their largest entry.
    """
    flipped = pixels = 0
    for (kind, view, key), want in expected.items():
        got = np.asarray((plain if kind == "fwd" else masked)[view][key])
        if key in KEYS:
            got = got[(slice(None), *pick)]
        where = f"{kind}.{view}.{key}"
        assert got.shape == want.shape, where
        assert got.dtype == want.dtype, where
        if key == "mask":
            flipped, pixels = flipped + int((got != want).sum()), pixels + want.size
        elif want.dtype == bool:
            assert np.array_equal(got, want), where
        else:
            difference = np.abs(got - want)
            if kind == "inf" and key in MASKED_KEYS:  # a flipped pixel is counted once, in the mask
                same = np.asarray(masked[view]["mask"])[(slice(None), *pick)] == expected["inf", view, "mask"]
                difference = difference * same
            limit = intrinsics_rtol * np.abs(want).max() if key == "intrinsics" else (atol_of or {}).get(key, atol)
            assert difference.max() <= limit, where
    assert flipped <= MASK_FLIPS * pixels


def check_contract(plain: Predictions, masked: Predictions, batch: int, height: int, width: int) -> None:
    """Keys, shapes and types of ``infer``, and masked outputs that are exactly the unmasked ones times the mask."""
    assert len(plain) == len(masked)
    for bare, cut in zip(plain, masked, strict=True):
        assert set(cut) == {*KEYS, *SMALL_KEYS}
        assert set(bare) == set(cut) - {"mask"}
        for key, rest in {**KEYS, **SMALL_KEYS}.items():
            value = np.asarray(cut[key])
            assert value.shape == ((batch, height, width, *rest) if key in KEYS else (batch, *rest)), key
            assert (value.dtype == bool) == (key in ("mask", "non_ambiguous_mask")), key
            assert np.isfinite(value).all(), key
            if key != "mask":
                factor = np.asarray(cut["mask"]) if key in MASKED_KEYS else True
                assert np.array_equal(value, np.asarray(bare[key]) * factor), key
