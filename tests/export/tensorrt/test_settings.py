"""Compute capabilities: what TensorRT-RTX compiles for, and sentences for the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mapengine.export.tensorrt.settings import check_targets, known_targets, parse_target
from mapengine.runtime.backends.tensorrt.flavour import Flavour
from mapengine.runtime.errors import InputError

from ...refusals import refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [("sm_89", "8.9"), ("SM89", "8.9"), ("8.9", "8.9"), ("89", "8.9"), (" sm_120 ", "12.0"), ("12.1", "12.1")],
)
def test_spellings(text: str, expected: str) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "ada", "sm_", "8", "sm_8900", "8.9.1", "-89", "8,9", None, 8.9])
def test_what_is_no_target(text: str) -> None:
    refused(InputError, "compute capability|sm_89", lambda: parse_target(text))


def test_known_targets(rtx: Flavour) -> None:
    known = known_targets(rtx)
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(known)
    assert list(known) == sorted(known, key=lambda text: [int(part) for part in text.split(".")])
    assert check_targets(rtx, ["sm_89", "8.6", "sm_89"]) == ("8.9", "8.6")
    assert check_targets(rtx, []) == ()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("sm_87", "sm_87|Orin|backend tensorrt"),
        ("sm_90", "sm_90|Hopper|backend tensorrt"),
        ("sm_110", "sm_110|Thor|backend tensorrt"),
        ("sm_99", "sm_99|choose one of them"),
    ],
)
def test_named_targets_without_a_compiler(rtx: Flavour, target: str, words: str) -> None:
    refused(InputError, f"tensorrt-rtx|sm_89|{words}", lambda: check_targets(rtx, ["sm_89", target]))


def test_tensorrt_builds_for_the_gpu_that_is_there() -> None:
    flavour = Flavour("tensorrt", SimpleNamespace(), "10.3.0")
    assert check_targets(flavour, []) == ()
    refused(InputError, "tensorrt builds for the GPU that is there|leave out", lambda: check_targets(flavour, ["8.7"]))
