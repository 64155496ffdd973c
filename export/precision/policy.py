"""Which parts of the network run in 16 bit, and which stay in float32: one table, chosen by measurement.

``docs/precision.md`` shows the measurements. The trunk follows upstream's autocast: linear layers and attention in
16 bit, the residual stream and normalisations in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

FLOAT32, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16

PRECISIONS = ("fp16", "bf16")


@dataclass(frozen=True)
class Rule:
    """What one part of a stage runs in.

    Attributes:
        stage: name of a stage.
        modules: pattern of module names, where ``*`` matches anything.
        fp16, bf16: floating type of the part's operators in an engine of that precision.
        reason: why, in one sentence.
    """

    stage: str
    modules: str
    fp16: ir.DataType
    bf16: ir.DataType
    reason: str


POLICY = (
    Rule(
        "image_encoder",
        "encoder.model.patch_embed*",
        FLOAT16,
        BFLOAT16,
        "One product of normalised pixels with weights; its rounding is that of the first linear layer.",
    ),
    Rule(
        "image_encoder",
        "encoder.model.blocks.*.attn*",
        FLOAT16,
        BFLOAT16,
        "Most of the time, and every product accumulates in float32.",
    ),
    Rule(
        "image_encoder",
        "encoder.model.blocks.*.mlp*",
        FLOAT16,
        BFLOAT16,
        "Most of the time; a hidden layer that leaves FP16's range is found by measuring and stays in float32.",
    ),
    Rule(
        "image_encoder",
        "*",
        FLOAT32,
        FLOAT32,
        "The residual stream holds activations of thousands beside details of hundredths, and positions are indices.",
    ),
    Rule(
        "geometry_encoder",
        "*",
        FLOAT32,
        FLOAT32,
        "Upstream runs it without autocast and warns of NaN in low precision; it is a small part of the time.",
    ),
    Rule(
        "aggregator",
        "info_sharing.proj_embed*",
        FLOAT16,
        BFLOAT16,
        "A linear layer of normalised features.",
    ),
    Rule(
        "aggregator",
        "info_sharing.self_attention_blocks.*.attn*",
        FLOAT16,
        BFLOAT16,
        "Most of the time with many views, and every product accumulates in float32.",
    ),
    Rule(
        "aggregator",
        "info_sharing.self_attention_blocks.*.mlp*",
        FLOAT16,
        BFLOAT16,
        "As in the image encoder.",
    ),
    Rule(
        "aggregator",
        "*",
        FLOAT32,
        FLOAT32,
        "The residual stream, the normalisations and the metric scale, which is an exponential of its layer's output.",
    ),
    Rule(
        "dense_head",
        "dense_head.1.conv2.2",
        FLOAT32,
        FLOAT32,
        "Its output is log depth: FP16's steps would be seen as terraces in the depth and in the normals of the edge "
        "mask.",
    ),
    Rule(
        "dense_head",
        "dense_head.?.*",
        FLOAT16,
        FLOAT16,
        "Convolutions of bounded maps at full resolution; FP16 in a bf16 engine too, because bfloat16's steps are "
        "eight times coarser, and TensorRT-RTX has no bfloat16 transposed convolution.",
    ),
    Rule(
        "dense_head",
        "pose_head.proj",
        FLOAT16,
        FLOAT16,
        "A linear layer per patch whose rounding errors the mean over all patches takes out.",
    ),
    Rule(
        "dense_head",
        "pose_head.res_conv.*",
        FLOAT16,
        FLOAT16,
        "As the layer before.",
    ),
    Rule(
        "dense_head",
        "*",
        FLOAT32,
        FLOAT32,
        "The mean over patches, the last layers of the pose, exponentials and norms: small, and errors go straight "
        "into the result.",
    ),
)

HALF_BOUNDARY = ("view_features_",)
"""Prefixes of the tensors between aggregator and dense head that are float16 at the stage boundary.

The head reads them in FP16 anyway, they are normalised, and half the bytes is a gigabyte at a hundred views.
"""


def rule_for(stage: str, module: str, rules: Iterable[Rule] = POLICY) -> Rule:
    """The first rule of the table that matches; every module of every stage has one."""
    return next(rule for rule in rules if rule.stage == stage and fnmatchcase(module, rule.modules))


def node_type(stage: str, module: str, precision: str, rules: Iterable[Rule] = POLICY) -> ir.DataType:
    """Floating type that an operator of ``module`` runs in."""
    rule = rule_for(stage, module, rules)
    return rule.fp16 if precision == "fp16" else rule.bf16
