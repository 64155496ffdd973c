"""Requests of image files: what the model of arrays gets is what ``preprocess_inputs`` makes of the same files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapengine.runtime import InputError, preprocess_inputs
from mapengine.runtime.bundle.requests import AnySize, Range, ServedRequests
from mapengine.runtime.inputs.images import read_image
from mapengine.serving.triton.image_files import array_tensors
from mapengine.serving.triton.requests import engine_views
from mapengine.serving.triton.settings import Limits

REQUESTS = ServedRequests(Range(1, 2, 8), ((84, 56), (56, 84)))
LIMITS = Limits(8, 100_000, 10**7)
ORIENTATION = 274


def file(width: int = 120, height: int = 80, form: str = "JPEG", seed: int = 0, orientation: int = 1) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    target = io.BytesIO()
    Image.fromarray(small).resize((width, height)).save(target, form, exif=exif)
    return target.getvalue()


def tensors(files: list[bytes], **more: Any) -> dict[str, Any]:
    return {"files": np.array(files, dtype=object), **{name: np.asarray(value) for name, value in more.items()}}


def served(given: dict[str, Any], limits: Limits = LIMITS, requests: ServedRequests = REQUESTS) -> list[dict[str, Any]]:
    """The views that the model of arrays makes of what it gets."""
    return engine_views(array_tensors(given, limits, requests), Limits(8, 10**6, 10**9), "dinov2")


def expected(files: list[bytes], folder: Path, size: tuple[int, int], known: list[dict[str, Any]]) -> list[Any]:
    views = []
    for index, (content, geometry) in enumerate(zip(files, known, strict=True)):
        (folder / f"{index}").write_bytes(content)
        views.append({"img": read_image(folder / f"{index}"), **geometry})
    return preprocess_inputs(views, resize_mode="fixed_size", size=size)


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert set(one) == set(other)
        for key, value in other.items():
            if key != "data_norm_type":
                assert np.array_equal(one[key], value), key


def test_files_become_what_preprocess_inputs_makes(tmp_path: Path) -> None:
    files = [file(), file(130, 80, "PNG", 1), file(80, 120, seed=2, orientation=6)]
    assert_same(served(tensors(files)), expected(files, tmp_path, (84, 56), [{}, {}, {}]))


def test_geometry_is_resized_with_its_image(tmp_path: Path) -> None:
    files = [file(seed=seed) for seed in range(2)]
    draws = np.random.default_rng(3)
    camera = np.float32([[100, 0, 59.5], [0, 100, 39.5], [0, 0, 1]])
    depth = draws.uniform(1, 3, (2, 80, 120)).astype(np.float32)
    mask = draws.random((2, 80, 120)) > 0.3
    pose = np.eye(4)
    pose[:3, 3] = 0.1, 0.2, 1e7 + 0.001
    known = [
        {"intrinsics": camera, "depth_z": depth[0], "camera_poses": pose, "mask": mask[0], "is_metric_scale": False},
        {"intrinsics": camera, "camera_poses": pose, "mask": mask[1], "is_metric_scale": True},
    ]
    given = tensors(
        files,
        intrinsics=[camera] * 2,
        depth_z=depth,
        has_depth_z=[True, False],
        camera_poses=[pose] * 2,
        mask=mask,
        is_metric_scale=[False, True],
    )
    assert_same(served(given), expected(files, tmp_path, (84, 56), known))


def test_rays_of_a_pinhole_and_of_a_fisheye_may_meet(tmp_path: Path) -> None:
    files = [file(seed=seed) for seed in range(2)]
    v, u = np.meshgrid(np.arange(80), np.arange(120), indexing="ij")
    plane = np.stack([(u - 59.5) / 100, (v - 39.5) / 100, np.ones_like(u)], axis=-1).astype(np.float32)
    bent = plane.copy()
    bent[..., :2] *= 1 + (plane[..., :2] ** 2).sum(axis=-1, keepdims=True)
    rays = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (plane, bent)]
    given = tensors(files, ray_directions=rays)
    wanted = expected(files, tmp_path, (84, 56), [{"ray_directions": each} for each in rays])
    assert [set(view) & {"intrinsics", "ray_directions"} for view in wanted] == [{"intrinsics"}, {"ray_directions"}]
    assert_same(served(given), wanted)


def test_the_size_is_the_one_of_the_bundle_that_fits() -> None:
    assert array_tensors(tensors([file(80, 120)]), LIMITS, REQUESTS)["images"].shape == (1, 84, 56, 3)
    any_size = ServedRequests(Range(1, 2, 8), AnySize(14, 518))
    assert array_tensors(tensors([file()]), LIMITS, any_size)["images"].shape == (1, 336, 518, 3)


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = file(400, 300, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="view 0: files has 400x300 pixels, and this model takes at most 100000"):
        array_tensors(tensors([content]), LIMITS, REQUESTS)


@pytest.mark.parametrize(
    ("given", "limits", "sentence"),
    [
        (tensors([file(), b""]), LIMITS, "view 1: files is empty; give the bytes of a JPEG or PNG file"),
        (tensors([b"GIF89a" + bytes(50)]), LIMITS, "view 0: files is neither JPEG nor PNG; give the bytes"),
        (tensors([file(form="BMP")]), LIMITS, "view 0: files is neither JPEG nor PNG"),
        (tensors([file()[:900]]), LIMITS, "view 0: files cannot be read: image file is truncated"),
        (tensors([file(form="PNG")[:200]]), LIMITS, "view 0: files cannot be read"),
        (tensors([file()] * 9), LIMITS, "the request has 9 views, and this model takes at most 8"),
        (tensors([]), LIMITS, "a call needs at least 1 view"),
        (tensors([file()] * 9), Limits(99, 10**6, 10**9), "9 views in one call, but this bundle was built for 1 to 8"),
        (tensors([file()]), Limits(8, 10**6, 1000), "bytes, and this model takes at most 1000; give fewer or"),
        (tensors([file()], depth_z=np.ones((1, 8, 12))), LIMITS, "view 0: depth_z has shape (8, 12), the"),
        (tensors([file()], intrinsics=np.zeros((1, 3, 3))), LIMITS, "view 0: intrinsics has the focal length 0"),
        (tensors([file()], intrinsics=np.zeros((2, 3, 3))), LIMITS, "intrinsics has 2 entries for 1 images"),
    ],
)
def test_files_that_cannot_be_used_get_a_sentence(given: dict[str, Any], limits: Limits, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        array_tensors(given, limits, REQUESTS)
