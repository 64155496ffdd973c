"""Names of folders, and what is written beside a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapengine.runtime.errors import InputError, OutputError
from mapengine.serving.batch.records import (
    SceneResult,
    SourceFile,
    folder_name,
    is_complete,
    read_result,
    write_result,
)

RESULT = SceneResult("a/b", "done", "1" * 64, "2" * 64, "run", 1.5, 1.0, 2, 30, 0.5, None, "3" * 64)


@pytest.mark.parametrize(
    ("scene", "name"),
    [
        ("room 7_b-2.x", "room 7_b-2.x"),
        ("../../etc", "%2E.%2F..%2Fetc"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        (".hidden", "%2Ehidden"),
        (" a ", "%20a%20"),
        ("50%2F", "50%252F"),
        ("a\nb\0", "a%0Ab%00"),
        ("C:\\x*?", "C%3A%5Cx%2A%3F"),
        ("部屋", "部屋"),
    ],
)
def test_an_id_that_is_no_name_is_written_in_hexadecimal(scene: str, name: str) -> None:
    assert folder_name(scene) == name


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1, max_size=20), unique=True, min_size=2, max_size=2))
def test_different_ids_have_different_names_that_stay_in_their_folder(scenes: list[str]) -> None:
    names = [folder_name(scene) for scene in scenes]
    assert names[0] != names[1]
    for name in names:
        assert Path("top", name).parent == Path("top")
        assert name not in (".", "..")
        assert "\0" not in name


def test_an_id_that_is_too_long_is_refused() -> None:
    assert folder_name("a" * 200)
    with pytest.raises(InputError, match="too long for the name of a folder"):
        folder_name("部" * 70)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = replace(RESULT, sources=(SourceFile("/x\ny", "1:2:3"),), warnings=("one",))
    written = write_result(tmp_path / "a", result, lambda new: (new / "scene.npz").write_bytes(b"abc") and None)
    assert written.outputs == {"scene.npz": 3}
    assert read_result(tmp_path / "a") == written
    assert is_complete(tmp_path / "a", written)
    (tmp_path / "a" / "scene.npz").write_bytes(b"ab")
    assert not is_complete(tmp_path / "a", written)
    (tmp_path / "a" / "scene.npz").unlink()
    assert not is_complete(tmp_path / "a", written)


def test_a_failure_takes_the_place_of_an_older_result(tmp_path: Path) -> None:
    write_result(tmp_path / "a", RESULT, lambda new: (new / "scene.npz").write_bytes(b"abc") and None)
    write_result(tmp_path / "a", RESULT.failed("it was\nwrong: 'quoted'"))
    found = read_result(tmp_path / "a")
    assert found is not None
    assert (found.state, found.error) == ("failed", "it was\nwrong: 'quoted'")
    assert not (tmp_path / "a" / "scene.npz").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "a"}', b"\xff", None])
def test_a_damaged_record_is_none(tmp_path: Path, content: bytes | None) -> None:
    write_result(tmp_path / "a", RESULT)
    if content is None:
        (tmp_path / "a" / "result.json").unlink()
    else:
        (tmp_path / "a" / "result.json").write_bytes(content)
    assert read_result(tmp_path / "a") is None


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty and no scene of a batch"):
        write_result(tmp_path / "a", RESULT)
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"
