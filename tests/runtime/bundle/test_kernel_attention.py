"""How many keys a share is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mapengine.runtime.bundle.kernel_attention import kept_keys, kept_side
from mapengine.runtime.bundle.manifest import KeyShare, Manifest
from mapengine.runtime.errors import ManifestError


def test_a_grid_keeps_at_least_its_share() -> None:
    for share in (1e-6, 0.0625, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0):
        for rows, columns in ((1, 1), (1, 37), (3, 5), (28, 37), (37, 37)):
            kept = kept_side(rows, share) * kept_side(columns, share)
            assert share * rows * columns <= kept + 1e-3
            assert 1 <= kept <= rows * columns
            assert kept_side(rows, share) - 1 < rows * share**0.5 + 1e-3
    assert (kept_side(28, 0.25), kept_side(37, 0.25), kept_side(28, 1 / 16), kept_side(28, 1.0)) == (14, 19, 7, 28)


def test_the_reference_view_and_special_tokens_are_kept() -> None:
    assert kept_keys(1, 8, 10, 1, 0.25) == 82
    assert kept_keys(8, 8, 10, 1, 0.25) == 80 + 7 * 20 + 8 + 1
    assert kept_keys(8, 8, 10, 0, 0.25) == 80 + 7 * 20 + 1
    assert kept_keys(8, 8, 10, 1, 1.0) == 8 * 81 + 1


def test_the_manifest_names_them(manifest: Manifest) -> None:
    document: dict[str, Any] = manifest.to_json()
    assert document["key_shares"] == []
    document["key_shares"] = [{"block": 0, "share": 1.0}, {"block": 2, "share": 0.25}]
    found = Manifest.from_json(copy.deepcopy(document))
    assert found.key_shares == (KeyShare(0, 1.0), KeyShare(2, 0.25))
    assert found.shares_by_block == {2: 0.25}
    assert found.to_json() == document
    del document["key_shares"]  # as schema version 7 has it
    assert Manifest.from_json(document).key_shares == ()


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([{"block": 1, "share": 0.5}], r"key_shares\[0\].block must be one with attention over all views"),
        ([{"block": 0, "share": 0.0}], r"key_shares\[0\].share must be above 0 and up to 1"),
        ([{"block": 0, "share": 1.5}], r"key_shares\[0\].share must be above 0 and up to 1"),
        ([{"block": 2, "share": 0.5}, {"block": 0, "share": 0.5}], "key_shares must name blocks in order"),
        ([{"block": 2, "share": 0.5}, {"block": 2, "share": 0.5}], "and none twice"),
    ],
)
def test_shares_that_no_build_writes(shares: Any, message: str, manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(manifest.to_json() | {"key_shares": shares})
