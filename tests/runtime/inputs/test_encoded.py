"""Views that were encoded once give the numbers of views that were not, in any mixture; streams give those of calls."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapengine.export import load_model
from mapengine.runtime import EncodedView, Engine, InputError, ProfileError
from mapengine.runtime.outputs.view_files import load_view, save_views

from ...engine_views import MIXES, same, views_of
from ...random_views import random_views


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES.values(), ids=list(MIXES))
def test_encoded_views_give_the_same_numbers(engine: Engine, mix: tuple[str, ...]) -> None:
    views = views_of(mix)
    encoded = engine.encode(views)
    assert all(isinstance(view, EncodedView) for view in encoded)
    expected = engine.infer(views)
    assert same(engine.infer(encoded), expected)
    assert same(engine.infer(encoded), expected)  # nothing of a call stays in them
    assert same(engine.predict(encoded), engine.predict(views))


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.lists(st.booleans(), min_size=1, max_size=5), batch=st.integers(1, 2))
def test_encoded_and_plain_views_mix(engine: Engine, which: list[bool], batch: int) -> None:
    views = random_views(len(which), "kd", 42, 28, batch)
    encoded = engine.encode(views)
    mixed = [done if use else view for view, done, use in zip(views, encoded, which, strict=True)]
    assert same(engine.infer(mixed), engine.infer(views))


@pytest.mark.slow
def test_what_is_known_can_be_replaced(engine: Engine) -> None:
    plain, known = views_of(("", "")), views_of(("kdp", "kp"))
    encoded = engine.encode(plain)
    assert same(
        engine.infer([{**view, "img": done} for view, done in zip(known, encoded, strict=True)]), engine.infer(known)
    )
    assert same(engine.infer([{"img": view} for view in engine.encode(known)]), engine.infer(plain))
    again = engine.encode([encoded[0], {**known[1], "img": encoded[1]}])
    assert again[0] is encoded[0]
    assert again[1].features is encoded[1].features
    assert same(engine.infer(again[1:]), engine.infer(known[1:]))


def test_the_encoder_does_not_run_again(engine: Engine) -> None:
    encoded = engine.encode(views_of(("", "")))
    stages: list[str] = []
    engine.infer([*encoded, *views_of(("",))], progress=lambda stage, done, total: stages.append(f"{stage} {total}"))
    assert stages.count("image_encoder 1") == 1
    stages.clear()
    engine.infer(encoded, progress=lambda stage, done, total: stages.append(stage))
    assert "image_encoder" not in stages


@pytest.mark.slow
def test_encoded_views_of_another_bundle_are_refused(engine: Engine) -> None:
    view = engine.encode(views_of(("",)))[0]
    stranger = EncodedView(view.view, view.features, "another")
    with pytest.raises(InputError, match=r"view 1: it was encoded by another bundle"):
        engine.infer([view, stranger])
    with pytest.raises(InputError, match=r"view 0: it was encoded by another bundle"):
        engine.infer([{"img": stranger}])
    with pytest.raises(InputError, match="cannot use encoded views"):
        load_model("preset:tiny").infer([view])
    with pytest.raises(InputError, match="list"):
        engine.infer(view)  # type: ignore[arg-type]
    assert repr(view).startswith("EncodedView((1, 3, 56, 84)")
    assert view.nbytes == view.features.patches.nbytes + (
        0 if view.features.extra is None else view.features.extra.nbytes
    )


def test_encoding_checks_its_views(engine: Engine) -> None:
    with pytest.raises(InputError, match="view 0"):
        engine.encode([{"img": np.zeros((1, 3, 15, 14), np.float32), "data_norm_type": ["dinov2"]}])
    with pytest.raises(InputError):
        engine.encode([])


@pytest.mark.slow
@pytest.mark.parametrize("mix", [("",), ("kdp", "kdp", "kdp"), ("p", "kd", "", "rp")])
def test_a_stream_gives_what_infer_gives(engine: Engine, mix: tuple[str, ...]) -> None:
    views = views_of(mix)
    options: dict[str, Any] = {"mask_edges": False, "apply_confidence_mask": True, "minibatch_size": 2}
    stream = engine.infer_stream(views, **options)
    assert isinstance(stream, types.GeneratorType)
    assert same(list(stream), engine.infer(views, **options))


def test_a_stream_decodes_a_view_when_it_is_asked_for(engine: Engine) -> None:
    done: list[int] = []

    def progress(stage: str, views: int, total: int) -> None:
        if stage == "dense_head":
            done.append(views)

    stream = engine.infer_stream(views_of(("", "", "")), progress=progress)
    assert not done
    next(stream)
    assert done in ([], [1])  # its own report may come after it
    list(stream)
    assert done == [1, 2, 3]


def test_half_precision_streams(engine: Engine) -> None:
    views = views_of(("kdp", "kd"))
    for half, full in zip(engine.infer_stream(views, dtype="float16"), engine.infer(views), strict=True):
        assert half.keys() == full.keys()
        for key, value in full.items():
            if value.dtype == bool or key in ("camera_poses", "intrinsics") or value.ndim < 3:
                np.testing.assert_array_equal(half[key], value)
                assert half[key].dtype == value.dtype
            else:
                assert half[key].dtype == np.float16
                np.testing.assert_allclose(half[key], value, rtol=1e-3, atol=1e-6)


def test_a_stream_refuses_before_it_begins(engine: Engine) -> None:
    views = views_of(("", ""))
    with pytest.raises(InputError, match="float32, float16"):
        engine.infer_stream(views, dtype="int8")
    with pytest.raises(InputError, match="use_multiview_confidence"):
        engine.infer_stream(views, use_multiview_confidence=True)
    with pytest.raises(InputError, match="the nearest is 'mask_edges'"):
        engine.infer_stream(views, mask_edge=True)
    with pytest.raises(InputError, match="view 0"):
        engine.infer_stream([{"img": 3}])
    with pytest.raises(ProfileError):
        engine.infer_stream(views * (engine.manifest.requests.views.max))


@pytest.mark.slow
def test_streams_are_saved_view_by_view(engine: Engine, tmp_path: Path) -> None:
    views = views_of(("", "", ""))
    stream = engine.infer_stream(views, dtype="float16")
    seen: list[int] = []

    def watched() -> Any:
        for prediction in stream:
            seen.append(len(list((tmp_path / "views").glob("*"))))
            yield prediction

    files = save_views(tmp_path / "views", watched())
    assert [file.name for file in files] == ["view-0000.npz", "view-0001.npz", "view-0002.npz"]
    assert seen == [0, 1, 2]
    saved = [load_view(file) for file in files]
    assert [view.pop("frame") for view in saved] == ["view0"] * 3
    assert same(saved, list(engine.infer_stream(views, dtype="float16")))
    with pytest.raises(InputError, match="views of another run"):
        save_views(tmp_path / "views", [])
    files[0].write_bytes(b"nothing")
    with pytest.raises(InputError, match="no view that was saved"):
        load_view(files[0])
