"""The manifest's hash of itself."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mapengine.runtime.bundle.manifest import STAGES, Manifest
from mapengine.runtime.bundle.manifest_text import FIELD, check_manifest_text, manifest_text
from mapengine.runtime.bundle.store import Bundle, BundleWriter
from mapengine.runtime.errors import BundleError, IntegrityError, ManifestError, MapEngineError


def read(raw: bytes) -> Manifest:
    """What opening a bundle does with the text."""
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ManifestError(str(error)) from error
    check_manifest_text(raw, document, "manifest.json")
    return Manifest.from_json(document)


@pytest.mark.slow
def test_every_byte_counts(manifest: Manifest) -> None:
    raw = manifest_text(manifest.to_json())
    assert read(raw) == manifest
    draws = random.Random(3)
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << draws.randrange(8)
        with pytest.raises(MapEngineError):
            read(bytes(flipped))
    for place in draws.sample(range(len(raw)), 50):
        for changed in (raw[:place] + raw[place + 1 :], raw[:place] + b" " + raw[place:], raw[:place]):
            with pytest.raises(MapEngineError):
                read(changed)


def test_an_edit_by_hand_is_told_what_to_do(bundle_folder: Path) -> None:
    path = bundle_folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"views"', '"views" '))
    with pytest.raises(IntegrityError, match=r"manifest\.json was changed after it was written .* or build the"):
        Bundle.open(bundle_folder, verify=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop(FIELD),
        lambda document: document.update({FIELD: None}),
        lambda document: document.update({FIELD: "a" * 64}),
        lambda document: document.update({FIELD: document[FIELD].upper()}),
        lambda document: document.update({FIELD: ""}),
        lambda document: document.update({FIELD: 5}),
        lambda document: document.update(schema_version=4),
        lambda document: document["model"].update(id=document[FIELD]),  # in two places
    ],
)
def test_the_hash_cannot_be_left_out_or_moved(bundle_folder: Path, change: Any) -> None:
    path = bundle_folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(BundleError):
        Bundle.open(bundle_folder)


def test_a_manifest_of_the_version_before_has_none(bundle_folder: Path) -> None:
    path = bundle_folder / "manifest.json"
    document = json.loads(path.read_text())
    del document[FIELD]
    path.write_text(json.dumps({**document, "schema_version": 4}))
    bundle = Bundle.open(bundle_folder)
    assert (bundle.manifest.schema_version, bundle.manifest.manifest_sha256) == (4, None)
    # Written again, it is of this version.
    again = BundleWriter(bundle_folder).write_manifest(bundle.manifest)
    assert Bundle.open(bundle_folder).manifest.schema_version == again.manifest.schema_version == 8
    assert again.manifest.manifest_sha256 == json.loads(path.read_text())[FIELD]


def test_what_json_does_not_have() -> None:
    with pytest.raises(ManifestError, match="cannot be written as JSON"):
        manifest_text({"a": float("nan")})


def test_manifests_of_the_versions_before_lack_the_stages_around_the_network(manifest: Manifest) -> None:
    document = manifest.to_json()
    assert tuple(Manifest.from_json(document).stages) == ("image_normalizer", *STAGES, "scene")
    older = copy.deepcopy(document) | {"schema_version": 6}
    del older["stages"]["image_normalizer"]
    assert tuple(Manifest.from_json(older).stages) == (*STAGES, "scene")
    older["schema_version"] = 5
    del older["stages"]["scene"]
    assert tuple(Manifest.from_json(older).stages) == STAGES
    del older["stages"]["dense_head"]
    with pytest.raises(ManifestError, match="stages lacks the field 'dense_head'"):
        Manifest.from_json(older)
