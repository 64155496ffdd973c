"""Attempts to have a result written over something that is not ours. Each names the reason why it must fail."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mapengine.calibration.data.samples import sample_names
from mapengine.runtime.bundle.store import write_bundle
from mapengine.runtime.errors import OutputError
from mapengine.runtime.outputs.colmap import COLMAP_NAMES
from mapengine.runtime.outputs.formats.table import FORMATS
from mapengine.runtime.outputs.preview import write_preview
from mapengine.runtime.outputs.scene import Scene
from mapengine.runtime.writing.files import write_markdown, write_record
from mapengine.runtime.writing.folders import atomic_folder
from mapengine.runtime.writing.output_checks import InputPaths

SEEDS = range(6)
SCENE = Scene(
    points=np.zeros((1, 14, 14, 3), np.float32),
    colors=np.zeros((1, 14, 14, 3), np.uint8),
    depth=np.ones((1, 14, 14), np.float32),
    confidence=np.ones((1, 14, 14), np.float32),
    mask=np.ones((1, 14, 14), bool),
    intrinsics=np.eye(3, dtype=np.float32)[None],
    poses=np.eye(4, dtype=np.float32)[None],
    names=["a"],
)
WRITERS: dict[str, Callable[[Path], object]] = {
    **{form.name: partial(SCENE.save, format=form.name) for form in FORMATS if not form.is_folder},
    "preview": lambda path: write_preview(path.rename(path.with_suffix(".png")), SCENE),
    "record": lambda path: write_record(path, {"benchmark": "profile"}),
    "markdown": lambda path: write_markdown(path, "profile", "| a |"),
}


def _png(draw: random.Random, software: str) -> bytes:
    buffer, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Software", software)
    Image.new("RGB", (draw.randint(1, 9), 4)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _zip(draw: random.Random, comment: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mapengine scene", draw.randbytes(40))
        archive.comment = comment
    return buffer.getvalue()


VICTIMS: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes are nobody's result": lambda draw: draw.randbytes(draw.randint(1, 400)),
    "a picture of another program": lambda draw: _png(draw, "GIMP"),
    "a picture that speaks of mapengine": lambda draw: _png(draw, "edited after mapengine preview"),
    "a document is an archive, too": lambda draw: _zip(draw, b""),
    "an archive whose comment only begins like ours": lambda draw: _zip(draw, b"mapengine scene of 2019"),
    "a comment further down is not the mark": lambda draw: b"# notes\n<!-- mapengine profile -->\n" + draw.randbytes(9),
    "JSON of another program": lambda draw: json.dumps({"generator": "glTF", "n": draw.random()}).encode(),
    "JSON with the mark in a value": lambda draw: json.dumps({"a": ["mapengine profile record"]}).encode(),
    "a benchmark of another program": lambda draw: json.dumps({"benchmark": "profile", "n": draw.random()}).encode(),
    "a mesh of another program": lambda draw: (
        b"ply\nformat ascii 1.0\ncomment MeshLab\nend_header\n"
        + b"comment mapengine point cloud\n" * draw.randint(0, 2)
    ),
    "binary glTF without an asset": lambda draw: b"glTF" + draw.randbytes(40),
    "binary glTF that claims a huge header": lambda draw: b"glTF\2\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7fJSON{}",
    "nested deeper than any record": lambda draw: b'{"generator":' * draw.randint(2000, 4000),
    "a calibration is no picture, scene or record": lambda draw: b'{"schema_version": 1, "model": {"id": "x"',
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reason", VICTIMS)
def test_a_file_that_is_not_ours_stays(tmp_path: Path, writer: str, reason: str) -> None:
    for seed in SEEDS:
        draw = random.Random(f"{reason} {seed}")
        home = tmp_path / str(seed)
        home.mkdir()
        content = VICTIMS[reason](draw)
        victim, path = home / "victim", home / "out"
        victim.write_bytes(content)
        how = draw.choice(["itself", "symbolic link", "hard link", "way round"])
        if how == "symbolic link":
            path.symlink_to("victim")
        elif how == "hard link":
            os.link(victim, path)
        elif how == "way round":
            path = home / "." / ".." / str(seed) / "victim"
        else:
            victim = victim.rename(path)
        before = sorted(entry.name.split(".")[0] for entry in home.iterdir())
        with pytest.raises(OutputError, match="choose another name"):
            WRITERS[writer](path)
        assert content in {entry.read_bytes() for entry in home.iterdir()}, reason
        assert sorted(entry.name.split(".")[0] for entry in home.iterdir()) == before, "nothing else is left"


def _lists(folder: Path, document: object) -> None:
    (folder / "mapengine.json").write_text(json.dumps(document))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "an empty list owns nothing": lambda folder: _lists(folder, {}),
    "a list of another kind": lambda folder: _lists(
        folder, {"generator": "mapengine weights", "files": {"images": ""}}
    ),
    "a list that leaves the folder": lambda folder: _lists(
        folder, {"generator": "mapengine COLMAP model", "files": {"../thesis.docx": "0" * 64}}
    ),
    "a list with an absolute path": lambda folder: _lists(
        folder, {"generator": "mapengine COLMAP model", "files": {str(folder / "images"): "0" * 64}}
    ),
    "a list with a wrong hash": lambda folder: _lists(
        folder, {"generator": "mapengine COLMAP model", "files": {"images/thesis.docx": "0" * 64}}
    ),
    "a list that is none": lambda folder: _lists(folder, ["images/thesis.docx"]),
    "a list that is damaged": lambda folder: (folder / "mapengine.json").write_bytes(b'{"generator": "mapengine COL'),
    "no list at all": lambda folder: None,
    "a list that is a link": lambda folder: (folder / "mapengine.json").symlink_to("images/thesis.docx"),
    "a manifest of another program": lambda folder: (folder / "manifest.json").write_text('{"name": "web app"}'),
    "a manifest that lists what is not ours": lambda folder: (folder / "manifest.json").write_text(
        '{"schema_version": 4, "stages": {"aggregator": {"file": "thesis.docx"}}}'
    ),
}


@pytest.mark.parametrize("reason", FOLDERS)
@pytest.mark.parametrize("kind", ["COLMAP model", "samples", "ONNX export", "engine bundle"])
def test_a_folder_that_is_not_ours_stays(tmp_path: Path, kind: str, reason: str) -> None:
    folder = tmp_path / "out"
    names = ("images/thesis.docx", "sparse/0/cameras.bin", "views.json", "aggregator.onnx")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"years of work")
    (tmp_path / "thesis.docx").write_bytes(b"years of work")
    FOLDERS[reason](folder)
    expected = {"COLMAP model": COLMAP_NAMES, "samples": sample_names(2)}.get(kind)
    writer: AbstractContextManager[object] = (
        write_bundle(folder) if kind == "engine bundle" else atomic_folder(folder, kind, expected)
    )
    with pytest.raises(OutputError, match=r"choose another (folder|one)"), writer:
        pytest.fail("the block must not run")
    assert all((folder / name).read_bytes() == b"years of work" for name in names), reason
    assert (tmp_path / "thesis.docx").read_bytes() == b"years of work"
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize("seed", range(60))
def test_an_input_is_no_output_by_any_of_its_names(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file is known through links, hard links, detours and relative paths, and what is in a bundle is read."""
    draw = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "engine/manifest.json", "K.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    Path("link").symlink_to("photos")
    Path("soft").symlink_to("K.txt")
    os.link("K.txt", "hard")
    read = InputPaths(["photos/a.jpg", "K.txt", "later.json"], ["engine"])
    names = ["photos/a.jpg", "link/a.jpg", "K.txt", "soft", "hard", "engine", "engine/manifest.json", "later.json"]
    name = draw.choice([*names, "engine/new/deep.glb"])
    detours = draw.sample(["./", "photos/../", f"{tmp_path}/", "engine/.././"], 2)
    assert read.conflict(f"{detours[0]}{name}") is not None
    assert read.conflict(f"{draw.choice(['photos', 'engine/..'])}/new-{seed}.glb") is None
    assert read.conflict(detours[1], folder=True) is not None  # the folder that they are all in
