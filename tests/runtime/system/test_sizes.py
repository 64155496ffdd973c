"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mapengine.runtime.errors import InputError
from mapengine.runtime.system.sizes import gigabytes, parse_bytes, parse_pixels, parse_view_counts


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8gb", 8 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5gib", 3 * 2**29),
        ("1.5GB", 15 * 10**8),
        ("2 kB", 2000),
        ("2TiB", 2**41),
        (" 700B ", 700),
        (1000, 1000),
        (np.int64(1000), 1000),
    ],
)
def test_bytes(value: Any, size: int) -> None:
    assert parse_bytes(value) == size
    assert type(parse_bytes(value)) is int


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GB",
        "-1GB",
        "0",
        "0GB",
        "8 XB",
        "1e400",
        "1e9B",
        "nan",
        "lots",
        "8GB8",
        "8 G B",
        0,
        -1,
        True,
        1.5,
        None,
        2**63,
    ],
)
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(InputError, match=r"^limit is .*; give a size such as 8GB or 512MiB$"):
        parse_bytes(value, "limit")


@pytest.mark.parametrize(
    ("text", "meant"), [("8", "8GB"), ("1.5", "1.5GB"), (" 16 ", "16GB"), ("8000000000", "8000000000B")]
)
def test_a_number_without_a_unit_is_refused(text: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"^memory is '{text}', which has no unit; did you mean {meant}$"):
        parse_bytes(text)


def test_pixels_and_view_counts() -> None:
    assert parse_pixels(" 518X392 ") == (518, 392)
    assert parse_view_counts("1:4:32") == (1, 4, 32)
    for text in ("518", "518x", "518x392x3", "-1x2", "a"):
        with pytest.raises(InputError, match="is not WIDTHxHEIGHT in pixels, such as 518x392"):
            parse_pixels(text)
    for text in ("4", "4:1:2", "0:1:2", "1:2", "1:2:3:4"):
        with pytest.raises(InputError, match="such as 1:4:32"):
            parse_view_counts(text)


def test_gigabytes() -> None:
    assert (gigabytes(8.1e9), gigabytes(999e6)) == ("8.10 GB", "999 MB")
