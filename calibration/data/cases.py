"""Inputs to calibrate with: view counts and mixes of inputs spread as in use, the same for the same seed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mapengine.runtime.errors import InputError
from mapengine.runtime.inputs.formats.table import is_without_images
from mapengine.runtime.inputs.preprocess import preprocess_views
from mapengine.runtime.inputs.raw_view import AnyView, RawView
from mapengine.runtime.inputs.sources import open_views
from mapengine.runtime.inputs.stored_view import StoredView

from ..scenes import render_scene

Views = Sequence[Mapping[str, Any]]

COUNTS = (2, 4, 1, 3)
"""Views of the cases, in turn."""
MIXES: tuple[tuple[str, ...], ...] = (("",), ("kd",), ("k",), ("kdp", ""), ("p",), ("kdp",), ("kp", "", "kd"))
"""What is known of the views of a case, in turn: letters of k (camera), d (depth), p (pose)."""
FIRST_SEED = 500_000
"""Of the rendered scenes, one per case. Evaluation uses seeds from 1 000 000 on, so nothing is calibrated on what it is
judged by."""


@dataclass(frozen=True)
class Cases:
    """Named cases, each a list of preprocessed views.

    Attributes:
        description: where they come from. sha256: over all names, keys and values.
    """

    views: Mapping[str, Views]
    description: str
    sha256: str


def make_cases(views: Mapping[str, Views], description: str) -> Cases:
    """Check cases and hash them.

    Raises:
        InputError: there are none, or no image has any contrast.
    """
    if not views:
        raise InputError("there is nothing to calibrate with; give at least one case")
    digest, flat = hashlib.sha256(), True
    for name, case in views.items():
        digest.update(f"case {name}\n".encode())
        for view in case:
            for key in sorted(view):
                for part in view[key] if isinstance(view[key], tuple) else (view[key],):
                    array = np.ascontiguousarray(part)
                    digest.update(f"{key} {array.dtype.kind} {array.shape}\n".encode())
                    digest.update(array.tobytes())
            image = np.asarray(view["img"])
            flat = flat and bool((image.max(axis=(-2, -1)) == image.min(axis=(-2, -1))).all())
    if flat:
        raise InputError(
            "every calibration image has one colour (all black?), which says nothing of the activations in use; "
            "give photographs"
        )
    return Cases(views, description, digest.hexdigest())


def rendered_cases(count: int = 8, size: tuple[int, int] = (140, 112), data_norm_type: str = "dinov2") -> Cases:
    """Render cases, a scene each; ``size`` is (width, height) in pixels.

    Raises:
        InputError: a size that scenes are not rendered in.
    """
    cases: dict[str, Views] = {}
    for index, (number, mix) in enumerate(itertools.islice(_counts_and_mixes(), count)):
        scene = render_scene(FIRST_SEED + index, number, *size)
        raw = [
            RawView(scene.images[view], scene.intrinsics[view], scene.depth_z[view], scene.poses[view])
            for view in range(number)
        ]
        cases[_title(index, number, mix)] = _prepared(raw, mix, size, data_norm_type)
    return make_cases(cases, f"{count} rendered scenes from seed {FIRST_SEED}, {size[0]}x{size[1]}")


def folder_cases(
    folder: Path, *, count: int = 16, size: tuple[int, int] | None = None, data_norm_type: str = "dinov2"
) -> Cases:
    """Read cases from what :func:`mapengine.runtime.inputs.sources.open_views` reads: a folder of images, a recording,
    a view list, a video.

    In a folder with none of these, the sub-folders are sequences of their own. What is known of depth, cameras and
    poses is given to the network in changing mixes; views without it are images only.

    Args:
        folder: with images or a recording, or with such folders; or a file.
        count: most cases.
        size: (width, height) in pixels; None for the size of the resolution table that fits.
        data_norm_type: of the model.

    Raises:
        InputError: no folder, no images, or a single one; a recording lacks something.
        ImageReadError: an image is damaged.
    """
    if not folder.exists():
        raise InputError(f"{folder}: is no folder to calibrate with; give a folder of images")
    sequences = [_sequence(folder)]
    if not sequences[0] and folder.is_dir():
        sequences = [raw for raw in map(_sequence, sorted(f for f in folder.iterdir() if f.is_dir())) if raw]
    total = sum(len(raw) for raw in sequences)
    if total == 0:
        raise InputError(f"{folder}: holds no images to calibrate with; check the folder")
    if total == 1:
        raise InputError(f"{folder}: holds one image, which is too few to calibrate with; give at least two")
    cases: dict[str, Views] = {}
    starts = [0] * len(sequences)
    for index, (number, mix) in enumerate(itertools.islice(_counts_and_mixes(), count)):
        which = index % len(sequences)
        raw, start = sequences[which], starts[which]
        chosen = [raw[(start + i) % len(raw)] for i in range(min(number, len(raw)))]
        starts[which] += len(chosen)
        cases[_title(index, len(chosen), mix)] = _prepared(chosen, mix, size, data_norm_type)
    return make_cases(cases, f"{len(cases)} cases of {total} images in {folder.name}")


def _sequence(folder: Path) -> Sequence[AnyView]:
    """The views of a folder; none where it holds neither images nor a recording."""
    return [] if is_without_images(folder) else open_views(folder)


def _counts_and_mixes() -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield view count and mix of one case after the other; the lengths share no factor, so all pairs come."""
    return zip(itertools.cycle(COUNTS), itertools.cycle(MIXES), strict=False)


def _title(index: int, views: int, mix: tuple[str, ...]) -> str:
    return f"{index}: {views} views, {'/'.join(letters or 'images' for letters in mix)}"


def _prepared(raw: Sequence[AnyView], mix: tuple[str, ...], size: tuple[int, int] | None, norm_type: str) -> Views:
    views: list[AnyView] = []
    with_pose = False
    for view, letters in zip(raw, itertools.cycle(mix), strict=False):
        known: Any = view.files if isinstance(view, StoredView) else view
        has_camera = "k" in letters and known.intrinsics is not None
        has_pose = "p" in letters and known.pose is not None and (not views or with_pose)
        with_pose = has_pose if not views else with_pose
        changes: dict[str, Any] = {} if has_camera else {"intrinsics": None, "lens": None}
        if not ("d" in letters and has_camera):  # depth is refused without a camera
            changes["depth"] = None
        if not has_pose:  # poses are relative to that of view 0
            changes["pose"] = None
        if not letters:
            changes["metric"] = None
        changed = replace(known, **changes)
        views.append(replace(view, files=changed) if isinstance(view, StoredView) else changed)
    return preprocess_views(views, size, norm_type)
