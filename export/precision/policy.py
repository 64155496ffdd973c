"""Which part of the network computes in which type: one table, chosen by measurement (``docs/guide/precision.md``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from mapengine.runtime.errors import ExportError

Precision = Literal["fp16", "bf16"]
Kind = Literal["float32", "float16", "bfloat16", "as input"]
"""Type that a node computes in; ``as input`` leaves a node that only moves data in the type of its data."""

LAYOUT = frozenset(
    ("Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators that move values and compute nothing."""

INPUT, OUTPUT = "<input>", "<output>"
"""Stand for a stage's input or output where a rule names an operator; the module is then the tensor's name."""


@dataclass(frozen=True)
class Rule:
    """One row of the table; the first row that fits a node decides.

    Attributes:
        stages: glob.
        modules: globs, separated by spaces. A module is what stands before the slash in a node's name.
        operators: operator types, or None for all.
        fp16, bf16: what a 16-bit build computes the node in. A node that is float16 here still becomes float32 where
            the magnitudes that were measured do not leave enough room (`magnitudes.py`).
        reason: why, in one sentence.
    """

    stages: str
    modules: str
    operators: frozenset[str] | None
    fp16: Kind
    bf16: Kind
    reason: str

    def fits(self, stage: str, module: str, operator: str) -> bool:
        """Return whether the row is about such a node."""
        return (
            fnmatchcase(stage, self.stages)
            and any(fnmatchcase(module, modules) for modules in self.modules.split())
            and (operator in self.operators if self.operators is not None else operator not in (INPUT, OUTPUT))
        )

    def kind(self, precision: Precision) -> Kind:
        """Return the column of ``precision``."""
        return self.fp16 if precision == "fp16" else self.bf16


def _rule(
    stages: str, modules: str, operators: str | Iterable[str] | None, fp16: Kind, bf16: Kind, reason: str
) -> Rule:
    names = operators.split() if isinstance(operators, str) else operators
    return Rule(stages, modules, None if names is None else frozenset(names), fp16, bf16, reason)


POLICY: tuple[Rule, ...] = (
    _rule(
        "*",
        "*",
        "Cast Range",
        "float32",
        "float32",
        "What is made from counts and positions is exact in float32 only: token counts pass 65504.",
    ),
    _rule(
        "*",
        "*",
        LAYOUT,
        "as input",
        "as input",
        "Moving data needs no precision of its own.",
    ),
    # Image encoder and aggregator
    _rule(
        "image_encoder",
        "encoder.model.patch_embed.proj",
        "Conv",
        "float16",
        "float16",
        "A product of normalised pixels and weights; ONNX has no bfloat16 convolution before opset 22.",
    ),
    _rule(
        "*",
        "*blocks.*.norm[12]",
        "LayerNormalization",
        "float32",
        "float32",
        "Mean and variance of the residual stream need its full range and digits.",
    ),
    _rule(
        "*",
        "*blocks.*.attn*",
        None,
        "float16",
        "bfloat16",
        "Attention and its projections are most of the work, and fused attention exists in 16 bit only.",
    ),
    _rule(
        "*",
        "*blocks.*.mlp*",
        None,
        "float16",
        "bfloat16",
        "The two large products of a block and the activation between them are most of the rest of the work.",
    ),
    _rule(
        "*",
        "*blocks.*.ls[12]",
        "Mul",
        "float32",
        "float32",
        "Gains near 1e-5 are subnormal in float16, and the multiplication joins the residual sum anyway.",
    ),
    _rule(
        "*",
        "*blocks.*",
        "Add",
        "float32",
        "float32",
        "The residual stream sums dozens of branches: in 16 bit it loses the small ones and may overflow.",
    ),
    _rule(
        "image_encoder",
        "encoder.model*",
        None,
        "float32",
        "float32",
        "Resizing the positional grid computes positions, and its sum with the patches starts the residual stream.",
    ),
    _rule(
        "aggregator",
        "info_sharing.proj_embed",
        "MatMul Add",
        "float16",
        "bfloat16",
        "A linear layer like those of the blocks (v1 only).",
    ),
    _rule(
        "aggregator",
        "fusion_norm_layer",
        None,
        "float32",
        "float32",
        "Normalises the sum of image and geometry features, and starts the residual stream.",
    ),
    _rule(
        "aggregator",
        "info_sharing*",
        None,
        "float32",
        "float32",
        "The residual stream and its final norm.",
    ),
    _rule(
        "aggregator",
        "scale_head*",
        None,
        "float32",
        "float32",
        "Little work on one token, and the exponential behind it multiplies every depth.",
    ),
    _rule(
        "aggregator",
        "view_features_*",
        OUTPUT,
        "float16",
        "float16",
        "Normalised features that the dense head reads in float16: half the memory for all views at once.",
    ),
    _rule(
        "dense_head",
        "view_features_*",
        INPUT,
        "float16",
        "float16",
        "As the aggregator writes them.",
    ),
    # Dense head
    _rule(
        "dense_head",
        "dense_head.1.conv2.2",
        "Conv",
        "float32",
        "float32",
        "Its outputs are the logarithm of depth and the directions of rays: rounding them rounds the prediction.",
    ),
    _rule(
        "dense_head",
        "dense_head.[01]*",
        None,
        "float16",
        "float16",
        "Convolutions of well-scaled maps; TensorRT for RTX has no transposed convolution in bfloat16.",
    ),
    _rule(
        "dense_head",
        "dense_head",
        None,
        "float32",
        "float32",
        "Exponentials and norms of the output maps.",
    ),
    _rule(
        "dense_head",
        "pose_head*",
        None,
        "float32",
        "float32",
        "A pose is few numbers that every point of a view depends on, and its layers are little work.",
    ),
    # Geometry encoder
    _rule(
        "geometry_encoder",
        "ray_dirs_encoder.conv_in ray_dirs_encoder.encoder.* depth_encoder.conv_in depth_encoder.encoder.*",
        None,
        "float16",
        "float16",
        "Convolutions over all patches, as much work as two blocks; bfloat16 would round rays by a tenth of a degree.",
    ),
    _rule(
        "geometry_encoder",
        "*",
        None,
        "float32",
        "float32",
        "Norms, which upstream saw become NaN in low precision, and the few numbers per view behind every point.",
    ),
    _rule(
        "*",
        "*",
        (INPUT, OUTPUT),
        "float32",
        "float32",
        "What the caller exchanges with a stage has one type in every engine.",
    ),
)
"""The policy. Every floating node, input and output of every stage fits a row."""


def match(policy: Sequence[Rule], stage: str, module: str, operator: str) -> Rule:
    """Return the row that decides about a node.

    Raises:
        ExportError: no row fits.
    """
    for rule in policy:
        if rule.fits(stage, module, operator):
            return rule
    raise ExportError(
        f"{stage}: no row of the precision policy fits {module}/{operator}; add one to export/precision/policy.py"
    )
