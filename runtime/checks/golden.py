"""The golden check: a small input with the reference's outputs, run after a build and at the first load on a device.

Engines of this family of networks have been seen to return wrong numbers without any error, so every bundle has a test
case of its own. Keys in ``golden.npz``: ``in.<view>.<key>`` and ``out.<view>.<key>``.

That a bundle passed is recorded in the user's cache folder, so that it is not checked again at every load. The record
only saves time: where it is missing or damaged the check runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from ..backends.contract import StagePipeline
from ..bundle.build_record import Tolerance
from ..bundle.store import Bundle
from ..errors import IntegrityError, ParityError
from ..inputs.prepared import prepare_views
from ..typed_json.fields import OneOf
from ..writing.cached_records import keep_record, kept_record

Arrays = dict[str, NDArray[Any]]


def pack(views: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Flatten views (``infer``'s input, without ``data_norm_type``) and predictions into one archive."""
    arrays: Arrays = {}
    for side, entries in (("in", views), ("out", predictions)):
        for view, entry in enumerate(entries):
            arrays |= {f"{side}.{view}.{key}": np.asarray(v) for key, v in entry.items() if key != "data_norm_type"}
    return arrays


def unpack(arrays: Mapping[str, NDArray[Any]]) -> tuple[list[Arrays], list[Arrays]]:
    """Invert :func:`pack`: return views and predictions.

    Raises:
        IntegrityError: a key of another form, or views that are not numbered from 0.
    """
    sides: dict[str, dict[int, Arrays]] = {"in": {}, "out": {}}
    for name, value in arrays.items():
        side, _, rest = name.partition(".")
        view, _, key = rest.partition(".")
        if side not in sides or not view.isdecimal() or not key:
            raise IntegrityError(f"golden.npz holds an unknown array {name!r}; build the bundle again")
        sides[side].setdefault(int(view), {})[key] = value
    count = len(sides["in"])
    if not count or any(sorted(entries) != list(range(count)) for entries in sides.values()):
        raise IntegrityError("golden.npz does not hold inputs and outputs of the same views; build the bundle again")
    return tuple([entries[i] for i in range(count)] for entries in sides.values())  # type: ignore[return-value]


def run_golden(bundle: Bundle, pipeline: StagePipeline) -> tuple[list[Arrays], list[Arrays]]:
    """Run the golden input and return the pipeline's predictions per view, and the reference's.

    Raises:
        IntegrityError: the golden file does not fit the bundle.
    """
    views, expected = unpack(bundle.golden())
    norm = bundle.manifest.model.data_norm_type
    prepared = prepare_views([{**view, "data_norm_type": [norm]} for view in views], data_norm_type=norm)
    found = pipeline.forward(prepared)
    for view, (got, want) in enumerate(zip(found, expected, strict=True)):
        for key, reference in want.items():
            if key not in got or got[key].shape != reference.shape:
                raise IntegrityError(f"golden.npz: {key} of view {view} does not fit the network; build it again")
    return found, expected


def check_golden(bundle: Bundle, pipeline: StagePipeline, where: str) -> tuple[list[Arrays], list[Arrays]]:
    """Run the golden input, compare every output with the reference, and return both.

    Args:
        bundle: an opened bundle.
        pipeline: its loaded stages.
        where: backend and device, for the message.

    Raises:
        ParityError: an output is not finite or outside its tolerance.
        IntegrityError: the golden file does not fit the bundle.
    """
    found, expected = run_golden(bundle, pipeline)
    for view, (got, want) in enumerate(zip(found, expected, strict=True)):
        for key, tolerance in bundle.manifest.golden.tolerance.items():
            if key not in want:
                raise IntegrityError(f"golden.npz lacks {key} of view {view}; build the bundle again")
            excess = largest_excess(got[key], want[key], tolerance)
            if not excess <= 1:
                raise ParityError(
                    f"{where} gives wrong results for this bundle: {key} of view {view} differs from the reference by "
                    f"{excess:.3g} times its tolerance; build the bundle again on this device, or choose another "
                    f"backend"
                )
    return found, expected


def largest_excess(found: NDArray[Any], reference: NDArray[Any], tolerance: Tolerance) -> float:
    """Return the largest difference in units of the tolerance; infinite when a value is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    allowed = tolerance.atol + tolerance.rtol * np.abs(reference.astype(np.float64))
    return float((np.abs(found.astype(np.float64) - reference) / allowed).max(initial=0.0))


_CACHE_ROOM = "verified"


@dataclass(frozen=True)
class GoldenRecord:
    """A golden check that was passed.

    Attributes:
        key: by which bundle (the digest of its manifest), with which backend and version, on which device.
        passed: what was checked.
    """

    key: Mapping[str, str]
    passed: Annotated[str, OneOf(("golden check",))] = "golden check"


def has_golden_record(digest: str, backend: str, version: str, device: str) -> bool:
    """Return whether the bundle ``digest`` was recorded for this backend, version and device; never raise."""
    return kept_record(_CACHE_ROOM, GoldenRecord, _key(digest, backend, version, device)) is not None


def write_golden_record(digest: str, backend: str, version: str, device: str) -> None:
    """Record that the bundle ``digest`` passed its golden check; never raise: without a cache the check runs again."""
    keep_record(_CACHE_ROOM, GoldenRecord(_key(digest, backend, version, device)))


def _key(digest: str, backend: str, version: str, device: str) -> dict[str, str]:
    return {"bundle": digest, "backend": backend, "version": version, "device": device}
