"""What a build found out: the layers that a plan is made of, and how close its numbers come to FP16's limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .codec import Reader


@dataclass(frozen=True)
class LayerRecord:
    """The layers of one plan, as the builder reported them.

    Attributes:
        attention: attention blocks of the stage. fused: how many of them run as one fused kernel.
        unfused: module names of the others; their scores of tokens x tokens are held in memory.
        gemms: number of matrix products and convolutions per datatypes, such as ``{"Half x Half -> Half": 96}``.
        macs: their multiplications, per row of what each makes (a token or a pixel).
    """

    attention: int
    fused: int
    unfused: tuple[str, ...] = ()
    gemms: Mapping[str, int] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, reader: Reader) -> LayerRecord:
        """Read ``{"attention", "fused", "unfused", "gemms", "macs"}``: fused and unfused add up to attention, and macs
        has the datatypes of gemms."""
        fields = reader.fields(*cls.__dataclass_fields__)
        attention = fields["attention"].integer()
        unfused = tuple(item.text() for item in fields["unfused"].items())
        fused = fields["fused"].integer(0, attention)
        if fused + len(unfused) != attention:
            fields["unfused"].fail(f"must name the {attention - fused} attention blocks that are not fused")
        gemms = {name: member.integer(1) for name, member in fields["gemms"].members().items()}
        macs = {name: member.integer() for name, member in fields["macs"].members().items()}
        if macs.keys() != gemms.keys():
            fields["macs"].fail("must have the datatypes of gemms")
        return cls(attention, fused, unfused, gemms, macs)

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {
            "attention": self.attention,
            "fused": self.fused,
            "unfused": list(self.unfused),
            "gemms": dict(self.gemms),
            "macs": dict(self.macs),
        }


@dataclass(frozen=True)
class Headroom:
    """The largest magnitude that was measured in a tensor of a stage, and how often it fits into FP16's range."""

    stage: str
    tensor: str
    largest: float
    factor: float

    @classmethod
    def read(cls, reader: Reader) -> Headroom:
        """Read ``{"stage", "tensor", "largest", "factor"}``."""
        fields = reader.fields(*cls.__dataclass_fields__)
        return cls(
            fields["stage"].text(), fields["tensor"].text(), fields["largest"].number(), fields["factor"].number()
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {"stage": self.stage, "tensor": self.tensor, "largest": self.largest, "factor": self.factor}


@dataclass(frozen=True)
class ReducedPrecision:
    """What a 16-bit build kept in float32 beyond the policy, and where FP16's range is nearly used up.

    Attributes:
        kept_layers: stage and module, such as ``"image_encoder: encoder.model.blocks.3.mlp.w3"``, kept in float32
            because of the magnitudes that were measured.
        headroom: the FP16 tensors with the least room, smallest factor first; a bf16 engine has some too.
    """

    kept_layers: tuple[str, ...] = ()
    headroom: tuple[Headroom, ...] = ()

    @classmethod
    def read(cls, reader: Reader) -> ReducedPrecision:
        """Read ``{"kept_layers", "headroom"}``."""
        fields = reader.fields(*cls.__dataclass_fields__)
        return cls(
            tuple(item.text() for item in fields["kept_layers"].items()),
            tuple(Headroom.read(item) for item in fields["headroom"].items()),
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        return {"kept_layers": list(self.kept_layers), "headroom": [entry.to_json() for entry in self.headroom]}
