"""Attempts on bundles: damage, hostile manifests, hostile files, and bundles that are replaced.

Each attempt says why it must fail. It has to end in a ``BundleError`` of one printable sentence, before any backend
sees a file; a seed names it, so that it can be repeated.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.bundle.file_record import MANIFEST_NAME
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.errors import BundleError
from mapengine.runtime.typed_json.codec import encode

from ..stage_files import change_manifest, exchange, graph_bytes

FILES = ("image_encoder.onnx", "aggregator.onnx", "aggregator.onnx.data", "golden.npz", MANIFEST_NAME)
posix = pytest.mark.skipif(os.name == "nt", reason="pipes and links need privileges on Windows")


def refusal(folder: Path, verify: bool = True) -> str | None:
    """Why opening the bundle fails; None if it succeeds."""
    try:
        Bundle.open(folder, verify=verify)
    except BundleError as error:
        return str(error)
    return None


def refused(folder: Path, attempt: object, why: str, verify: bool = True) -> None:
    """Opening the bundle fails with a sentence."""
    text = refusal(folder, verify)
    assert text is not None, f"{attempt} was accepted, but {why}"
    assert text.isprintable(), (attempt, text)
    assert len(text) < 1000, (attempt, text)


@pytest.fixture
def contents(bundle_folder: Path) -> Iterator[dict[str, bytes]]:
    """What the files of the bundle hold; it opens again when they are put back."""
    found = {path.name: path.read_bytes() for path in bundle_folder.iterdir()}
    yield found
    for name, content in found.items():
        (bundle_folder / name).write_bytes(content)
    Bundle.open(bundle_folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_truncations(bundle_folder: Path, contents: dict[str, bytes], name: str) -> None:
    content = contents[name].rstrip() if name == MANIFEST_NAME else contents[name]
    draws = random.Random(1)
    lengths = {*range(8), *(len(content) - cut for cut in range(1, 8)), *draws.sample(range(len(content)), 45)}
    for length in sorted(lengths):
        (bundle_folder / name).write_bytes(content[:length])
        why = "every size is in the manifest, and a manifest that is cut off is no JSON"
        refused(bundle_folder, (name, length), why, verify=length % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(bundle_folder: Path, contents: dict[str, bytes], name: str) -> None:
    content = contents[name]
    draws = random.Random(2)
    for _ in range(120 if name == MANIFEST_NAME else 30):
        place, bit = draws.randrange(len(content)), draws.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (bundle_folder / name).write_bytes(flipped)
        refused(bundle_folder, (name, place, bit), "the manifest has the SHA-256 of every file and of itself")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_bytes_put_in_and_taken_out(bundle_folder: Path, contents: dict[str, bytes], name: str) -> None:
    content = contents[name]
    draws = random.Random(3)
    for _ in range(20):
        place, size = draws.randrange(len(content)), draws.randrange(1, 9)
        put_in = content[:place] + draws.randbytes(size) + content[place:]
        taken_out = content[:place] + content[place + size :]
        for changed in (put_in, taken_out, content[place:] + content[:place]):
            if changed == content:
                continue
            (bundle_folder / name).write_bytes(changed)
            refused(bundle_folder, (name, place, size), "the manifest has the SHA-256 of every file and of itself")


NAMES = (
    "", ".", "..", "../aggregator.onnx", "/etc/passwd", "/dev/zero", "a/b.onnx", "a\\b.onnx", "C:x.onnx", "C:\\x.onnx",
    "\\\\host\\share\\x.onnx", "a\0.onnx", "a\n.onnx", "a.onnx\u202e", ".hidden.onnx", "-", "~", "con.onnx ",
    "manifest.json", "MANIFEST.JSON", "x" * 300 + ".onnx", "\ud800.onnx", "dense_head.onnx", "DENSE_HEAD.ONNX",
    "missing.onnx", "file:x.onnx", "%2e%2e/x.onnx", "*", "$HOME.onnx", "a..b/../c.onnx", 5, None, True, [], {},
)  # fmt: skip
PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "graph": lambda document: document["stages"]["aggregator"],
    "data": lambda document: document["stages"]["aggregator"]["data"][0],
    "golden": lambda document: document["golden"],
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_names_in_a_hostile_manifest(bundle_folder: Path, contents: dict[str, bytes], place: str) -> None:
    for name in NAMES:
        (bundle_folder / MANIFEST_NAME).write_bytes(contents[MANIFEST_NAME])
        change_manifest(bundle_folder, lambda document: PLACES[place](document).update(file=name))  # noqa: B023
        refused(bundle_folder, (place, name), "a file has a plain name of its own, in the folder, and is there")


@pytest.mark.slow
def test_values_in_a_hostile_manifest(bundle_folder: Path, contents: dict[str, bytes]) -> None:
    """The author of a manifest knows how to write its hash."""
    wrong: tuple[Any, ...] = (-1, 2**63, 1e308, "\0", None, [], {}, "9" * 5000, True, [[[[[]]]]])
    fields = ("sha256", "bytes")
    draws = random.Random(4)
    for place, target in PLACES.items():
        for field in fields:
            for value in (*wrong, draws.randrange(10**6), f"{draws.randrange(16**64):064x}"):
                (bundle_folder / MANIFEST_NAME).write_bytes(contents[MANIFEST_NAME])
                change_manifest(bundle_folder, lambda document: target(document).update({field: value}))  # noqa: B023
                refused(bundle_folder, (place, field, value), "no file has this size or this hash")


LOCATIONS = (
    "more.data", "/etc/passwd", "/dev/zero", "../more.data", "./aggregator.onnx.data", "dense_head.onnx",
    "x/../aggregator.onnx.data", "aggregator.onnx.data/", "aggregator.onnx.data\0", "AGGREGATOR.onnx.data",
    "golden.npz",
    "*/_ORT_MEM_ADDR_/*", "\\\\host\\share", "C:\\x", "file:aggregator.onnx.data", "\u202e", "x" * 5000,
    "manifest.json",
)  # fmt: skip


def write_graph(folder: Path, content: bytes) -> None:
    """Replace the graph of the aggregator, and its hash in the manifest with it."""
    (folder / "aggregator.onnx").write_bytes(content)
    record = encode(BundleWriter(folder).record("aggregator.onnx"))
    change_manifest(folder, lambda document: document["stages"]["aggregator"].update(record))


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
def test_files_that_a_hostile_graph_refers_to(
    bundle_folder: Path, contents: dict[str, bytes], manifest: Manifest, verify: bool
) -> None:
    (bundle_folder / "more.data").write_bytes(b"weights that nobody hashed" * 100)
    spec = manifest.stages["aggregator"]
    for location in LOCATIONS:
        write_graph(bundle_folder, graph_bytes(spec.inputs, spec.outputs, data=location))
        refused(bundle_folder, location, "the manifest lists aggregator.onnx.data with it and nothing else", verify)


@pytest.mark.slow
def test_hostile_graphs(bundle_folder: Path, contents: dict[str, bytes]) -> None:
    """Their author knows the hash; they are read as what they are or refused, and nothing else happens."""
    draws = random.Random(5)
    graph = contents["aggregator.onnx"]
    accepted = 0
    for attempt in range(100):
        changed = bytearray(graph)
        for _ in range(draws.randrange(1, 4)):
            changed[draws.randrange(len(changed))] = draws.randrange(256)
        if attempt % 3 == 0:
            del changed[draws.randrange(len(changed)) :]
        write_graph(bundle_folder, bytes(changed))
        text = refusal(bundle_folder)
        assert text is None or text.isprintable(), attempt
        accepted += text is None
    assert accepted < 50  # a name of the producer, or a number among the weights
    for junk in (b"", b"\0" * 100, b"\xff" * 100, b"\x3a\x7f" * 100, b"<?xml?>", b"PK\3\4" * 30, b"ORTM" * 30):
        write_graph(bundle_folder, junk)
        refused(bundle_folder, junk, "it holds no graph")


@posix
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_of_the_folder(
    bundle_folder: Path, contents: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(contents[name])
    (tmp_path / "step").symlink_to(outside)
    path = bundle_folder / name
    attempts: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
        "device": lambda: path.symlink_to("/dev/zero"),
        "link outside": lambda: path.symlink_to(outside),
        "link by a link": lambda: path.symlink_to(tmp_path / "step"),
        "link upwards": lambda: path.symlink_to(f"../{outside.name}"),
        "link to itself": lambda: path.symlink_to(name),
        "link to nothing": lambda: path.symlink_to("nothing"),
        "nothing": lambda: None,
    }
    for attempt, make in attempts.items():
        path.unlink()
        make()
        refused(bundle_folder, (name, attempt), "it is not a regular file in the folder")
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_bytes(contents[name])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges two folders in one step")
def test_a_bundle_that_is_replaced_while_it_is_opened(
    bundle_folder: Path, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any of the steps that opening takes; both bundles are intact, and their files have the same sizes."""
    other = Path(shutil.copytree(bundle_folder, tmp_path / "other"))
    spec = manifest.stages["dense_head"]
    graph = bytearray(graph_bytes(spec.inputs, spec.outputs))
    assert graph.count(b"\x03\x04\x05\x06\x07") == 1  # among the weights
    graph[graph.index(b"\x03\x04\x05\x06\x07")] ^= 1
    (other / "dense_head.onnx").write_bytes(graph)
    record = encode(BundleWriter(other).record("dense_head.onnx"))
    change_manifest(other, lambda document: document["stages"]["dense_head"].update(record))
    real, steps, replaced_at = os.fstat, 0, 0

    def fstat(descriptor: int) -> os.stat_result:
        nonlocal steps
        steps += 1
        if steps in (replaced_at, replaced_at + attempt % 7):
            exchange(bundle_folder, other)
        return real(descriptor)

    both = (bundle_folder, other)
    expected = {Bundle.open(folder).digest: (folder / "dense_head.onnx").read_bytes() for folder in both}
    monkeypatch.setattr(os, "fstat", fstat)
    for attempt in range(1, 60):
        steps, replaced_at = 0, attempt
        bundle = Bundle.open(bundle_folder, verify=attempt % 2 == 0)
        replaced_at = -100
        with bundle.files.open("dense_head.onnx") as file:  # refused if it is not the file that was checked
            assert file.read() == expected[bundle.digest], attempt
