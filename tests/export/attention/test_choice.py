"""What ``--attention auto`` chooses, and that it says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapengine.export.attention import choice as attention_choice
from mapengine.export.attention.choice import KernelChoice, choose_attention
from mapengine.kernels.speeds import SPEEDS, Speed, speed_at


def test_the_stored_table() -> None:
    assert Path(SPEEDS).is_file()
    near = speed_at(90, 12_000)
    assert near is not None
    assert near.length == 8 * 1370
    assert 0.5 < near.native / near.kernels["flash"] < 2
    few, many = speed_at(90, 1), speed_at(90, 10**9)
    assert few is not None
    assert many is not None
    assert few.length < many.length
    assert speed_at(86, 1000) is None


@pytest.mark.parametrize(
    ("architectures", "why"),
    [
        ((), "range of GPUs"),
        ((86,), "no kernel was timed on compute capability 8.6"),
        ((90, 120), "no kernel was timed on compute capability 12.0"),
    ],
)
def test_what_was_not_measured_is_native(architectures: tuple[int, ...], why: str) -> None:
    choice, said = choose_attention(architectures, 10_000, "fp16")
    assert choice is None
    assert why in said


@pytest.mark.parametrize(
    ("precision", "flash", "int8", "wanted"),
    [
        ("fp16", 0.8, 0.5, KernelChoice("flash")),
        ("bf16", 0.95, 0.5, None),  # INT8 scores are for what is rounded anyway
        ("int8", 0.8, 0.5, KernelChoice("int8")),
        ("int8", 0.8, 0.85, KernelChoice("flash")),
        ("fp8", 0.92, 0.93, None),
    ],
)
def test_a_kernel_has_to_be_worth_its_cuts(
    precision: str, flash: float, int8: float, wanted: KernelChoice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed("a GPU", 1000, 1.0, {"flash": flash, "int8": int8})
    monkeypatch.setattr(attention_choice, "speed_at", lambda architecture, length: speed)
    choice, said = choose_attention((90,), 1000, precision)
    assert choice == wanted
    assert said.startswith(f"attention: {'native' if wanted is None else wanted}, because ")


def test_the_worst_target_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {86: Speed("a", 1000, 1.0, {"flash": 0.5}), 89: Speed("b", 1000, 1.0, {"flash": 0.97})}
    monkeypatch.setattr(attention_choice, "speed_at", lambda architecture, length: speeds[architecture])
    assert choose_attention((86,), 1000, "fp16")[0] == KernelChoice("flash")
    assert choose_attention((86, 89), 1000, "fp16")[0] is None
