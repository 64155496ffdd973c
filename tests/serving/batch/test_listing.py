"""Scenes are listed one by one, from folders, JSON lines and Parquet, here and elsewhere; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mapengine.runtime.errors import InputError
from mapengine.serving.batch.listing import SceneEntry, list_scenes


def write_lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_line_has_an_id_inputs_and_options(tmp_path: Path) -> None:
    rows = (
        {"id": "a", "inputs": "photos"},
        "",
        {"id": 7, "inputs": ["/data/x.jpg", "s3://bucket/y.jpg", "*.png"], "options": {"size": [56, 42]}},
        {"id": "c/d", "inputs": ["v"], "options": {"intrinsics": "K.txt", "masks": "s3://b/m", "fps": None}},
    )
    found = list(list_scenes(write_lines(tmp_path / "list.jsonl", *rows)))
    assert found[0] == SceneEntry("a", (f"{tmp_path}/photos",), {}, f"{tmp_path}/list.jsonl, line 1")
    assert found[1].id == "7"
    assert found[1].inputs == ("/data/x.jpg", "s3://bucket/y.jpg", f"{tmp_path}/*.png")
    assert found[1].options == {"size": [56, 42]}
    assert found[2].options == {"intrinsics": f"{tmp_path}/K.txt", "masks": "s3://b/m"}
    assert [SceneEntry.of_line(entry.as_line()) for entry in found] == found


@pytest.mark.parametrize("options", ["text", "struct", "map", "none"])
def test_a_row_of_parquet_is_a_scene(tmp_path: Path, options: str) -> None:
    values: dict[str, Any] = {
        "text": pa.array(['{"max_views": 2}', None]),
        "struct": pa.array([{"max_views": 2, "fps": None}, None]),
        "map": pa.array([[("max_views", 2)], None], pa.map_(pa.string(), pa.int64())),
    }
    table = {"id": pa.array(["a", "b"]), "inputs": pa.array([["x", "y"], ["z"]])}
    if options in values:
        table["options"] = values[options]
    parquet.write_table(pa.table({**table, "note": pa.array(["not", "read"])}), tmp_path / "list.parquet")
    found = list(list_scenes(str(tmp_path / "list.parquet")))
    assert [entry.id for entry in found] == ["a", "b"]
    assert found[0].inputs == (f"{tmp_path}/x", f"{tmp_path}/y")
    assert found[0].options == ({} if options == "none" else {"max_views": 2})
    assert found[1].options == {}


def test_a_folder_of_parquet_is_one_list(tmp_path: Path) -> None:
    folder = tmp_path / "list.parquet"
    folder.mkdir()
    for part in "ab":
        parquet.write_table(pa.table({"id": [part], "inputs": ["x"]}), folder / f"part-{part}.parquet")
    found = list(list_scenes(str(folder)))
    assert [(entry.id, entry.inputs) for entry in found] == [("a", (f"{folder}/x",)), ("b", (f"{folder}/x",))]


def test_a_folder_holds_scenes_and_other_things(tmp_path: Path) -> None:
    for name in ("one", "two", ".hidden"):
        (tmp_path / name).mkdir()
    for name in ("film.mp4", "views.json", "notes.txt", "single.png"):
        (tmp_path / name).write_bytes(b"[]")
    assert {entry.id for entry in list_scenes(f"file://{tmp_path}")} == {"one", "two", "film.mp4", "views.json"}


def test_lists_and_folders_at_other_addresses() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/far/scenes/one/0.png", b"x")
    system.pipe("/far/list.jsonl", b'{"id": "a", "inputs": ["scenes/one", "/abs.png", "s3://b/c"]}\n')
    assert [(e.id, e.inputs) for e in list_scenes("memory://far/scenes/")] == [("one", ("memory://far/scenes/one",))]
    (entry,) = list_scenes("memory://far/list.jsonl")
    assert entry.inputs == ("memory://far/scenes/one", "/abs.png", "s3://b/c")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "is [1]; each scene is an object with id and inputs"),
        ('{"id": "a"}', "inputs is None; give a path"),
        ('{"inputs": "x"}', "id is None; give each scene a name"),
        ('{"id": " ", "inputs": "x"}', "id is ' '"),
        ('{"id": true, "inputs": "x"}', "id is True"),
        ('{"id": "a", "inputs": []}', "inputs is []"),
        ('{"id": "a", "inputs": [""]}', "inputs is ['']"),
        ('{"id": "a", "inputs": [1]}', "inputs is [1]"),
        ('{"id": "a", "inputs": "x", "options": [1]}', "options is [1]; give an object"),
        ('{"id": "a", "inputs": "x", "options": "{"}', "options is not valid JSON"),
        ('{"id": "a", "inputs": "x", "input": "y"}', "there is no 'input' in a scene; it has id, inputs, options"),
        ('{"id": "a", "id": "b", "inputs": "x"}', "appears twice"),
    ],
)
def test_a_line_that_is_no_scene_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write_lines(tmp_path / "list.jsonl", {"id": "first", "inputs": "x"}, line)
    with pytest.raises(InputError) as error:
        list(list_scenes(path))
    assert str(error.value).startswith(f"{path}, line 2")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.jsonl", None, "there is no such file or folder"),
        ("nothing", None, "there is no such file or folder"),
        ("empty.jsonl", b"\n\n", "lists no scenes"),
        ("list.txt", b"a", "is no list of scenes; give a folder of scenes, JSON lines (.jsonl) or Parquet"),
        ("bad.parquet", b"PAR1 and then nothing", "cannot be read as Parquet"),
        ("folder/0.png", b"x", "holds images, not scenes; give the folder above it"),
        ("folder/notes.txt", b"x", "holds no scenes"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        list(list_scenes(str(path if path.parent == tmp_path else path.parent)))
    assert said in str(error.value)


@pytest.mark.parametrize("address", ["nowhere://x/list.jsonl", "memory://not/there.jsonl", "memory://not/there"])
def test_an_address_that_leads_nowhere_is_named(address: str) -> None:
    with pytest.raises(InputError) as error:
        list(list_scenes(address))
    assert address in str(error.value)


def test_a_list_is_read_while_its_scenes_are_taken(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "list.jsonl", *({"id": n, "inputs": "x"} for n in range(5000)), "{")
    scenes = list_scenes(path)
    assert [next(scenes).id for _ in range(3)] == ["0", "1", "2"]  # the last line, which is wrong, is not read yet
