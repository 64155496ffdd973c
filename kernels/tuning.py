"""Tile sizes, warps and pipeline stages per kernel, architecture and head size, and the constants of the kernels.

Warps and stages that were timed are in ``tuned.json`` (``benchmarks/attention_tuning.py --store`` writes it). For every
other GPU the figures behind the choices are registers, spills and shared memory of compiled kernels (`make kernels`
records them, docs/contributing/kernels.md shows them). Two rules follow from the hardware:

* Blocks of 128 queries by 64 keys: on every architecture the operands of one step fit in shared memory twice, and the
  128 rows are what the selection of key blocks is made for.
* Eight warps where tensor cores read their operands from registers (sm_80 to 89, 120): four need more than the 255
  registers of a thread at head size 64 and spill.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOG2_E = math.log2(math.e)

QUERY_BLOCK = 128
"""Queries per program, and per row of the block-sparse selection."""

KEY_BLOCK = 64
"""Keys per step, per column of the block-sparse selection, and per scale of INT8 keys."""

QUERY_GROUP = 32
"""Queries per scale of INT8 queries. Finer than a program's block at no cost: scales are applied per row."""

SPLITS = 32
"""Parts of the sequence that the channel statistics are made of, so that a few heads still fill the GPU."""

STATISTICS_ROWS = 64
"""Tokens that a program of the channel statistics holds at a time."""

LIST_SIZES = (512, 2048)
"""Key blocks that a compiled selection holds: 32 768 and 131 072 tokens, 23 and 95 views of 37 x 37 patches."""

LEAST_OF = 10
MINIMUM_SHARE = 1 / LEAST_OF
"""Least share of the key blocks that a selection keeps: one of ten."""

SMALLEST = 1e-8
"""Floor of the largest magnitude behind a scale. It keeps scales positive where all values are zero."""

E4M3_MAX = 448.0
"""Largest number of FP8."""

FP8_UNIT = 256.0
"""What the largest FP8 probability of a row, 1, is stored as. SageAttention2 (arXiv 2411.10958, quantization of P and
V) scales by 448, the largest e4m3 number; a power of two keeps it exact."""

PREPARATION_WARPS, PREPARATION_STAGES = 4, 2
"""Of the kernels that prepare the inputs of the attention kernels: they are bound by memory, and few stages will do."""

HEAD_DIMS = (32, 64, 128)
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 110, 120)
"""Compute capabilities to compile for: A100, RTX 30, Orin, RTX 40 and L4, H100 and H200, B200, Thor, RTX 50."""

FP8_FROM = 89
"""First compute capability whose tensor cores multiply FP8 (e4m3)."""

_REGISTER_OPERANDS = (80, 86, 87, 89, 120)  # tensor cores that read their operands from registers


@dataclass(frozen=True)
class Tile:
    """How a kernel is launched: queries and keys per step, warps per program, depth of the load pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


TUNED = Path(__file__).with_name("tuned.json")
"""Architecture -> head size -> kind -> ``{"warps": ..., "stages": ...}``."""

KINDS = ("dense", "int8", "int8-fp8")
"""What is tuned. A block-sparse kernel takes the tile of the dense one of its types, whose bits it gives when every
block is kept."""


@cache
def _tuned() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    stored: dict[str, dict[str, dict[str, dict[str, int]]]] = json.loads(TUNED.read_text(encoding="utf-8"))
    return stored


def tile_for(architecture: int, head_dim: int, kind: str) -> Tile:
    """Return the tile of an attention kernel.

    Args:
        architecture: compute capability times ten (80, 89, ...).
        head_dim: 32, 64 or 128.
        kind: one of :data:`KINDS`.
    """
    # Three stages at head size 128 spill there, and take the 99 KiB that a program has on sm_86, 89 and 120.
    stages = 2 if head_dim == 128 and architecture in _REGISTER_OPERANDS else 3
    chosen = {"warps": 8, "stages": stages} | _tuned().get(str(architecture), {}).get(str(head_dim), {}).get(kind, {})
    return Tile(QUERY_BLOCK, KEY_BLOCK, **chosen)


def least_blocks(key_blocks: int, share: float = MINIMUM_SHARE) -> int:
    """Return the least number of ``key_blocks`` that a selection keeps."""
    return math.ceil(share * key_blocks - 1e-6)


def kind_of(int8: bool, fp8_values: bool) -> str:
    """Return the kind of a kernel with INT8 queries and keys, and FP8 values, or not."""
    return ("int8-fp8" if fp8_values else "int8") if int8 else "dense"
