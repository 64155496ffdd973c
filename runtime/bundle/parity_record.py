"""A bundle's agreement with the PyTorch reference: what was measured, and what its golden outputs must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .codec import Reader


@dataclass(frozen=True)
class Tolerance:
    """An output passes where ``|got - want| <= atol + rtol * |want|``."""

    atol: float
    rtol: float

    @classmethod
    def read(cls, reader: Reader) -> Tolerance:
        """Read ``{"atol", "rtol"}``."""
        fields = reader.fields("atol", "rtol")
        return cls(fields["atol"].number(), fields["rtol"].number())

    def to_json(self) -> dict[str, float]:
        """Inverse of ``read``."""
        return {"atol": self.atol, "rtol": self.rtol}


@dataclass(frozen=True)
class OutputParity:
    """Largest absolute difference from the reference, and that difference relative to the reference."""

    max_abs: float
    max_rel: float

    @classmethod
    def read(cls, reader: Reader) -> OutputParity:
        """Read ``{"max_abs", "max_rel"}``."""
        fields = reader.fields("max_abs", "max_rel")
        return cls(fields["max_abs"].number(), fields["max_rel"].number())

    def to_json(self) -> dict[str, float]:
        """Inverse of ``read``."""
        return {"max_abs": self.max_abs, "max_rel": self.max_rel}


@dataclass(frozen=True)
class GeometryParity:
    """Differences from the reference as geometry.

    Attributes:
        depth_abs_rel: mean of ``|depth - reference| / reference``.
        ray_degrees, rotation_degrees: largest angle between ray directions, and between camera rotations.
        translation: largest distance between camera centres, relative to the largest reference distance from view 0.
        metric_scale: relative difference of the metric scaling factor.
    """

    depth_abs_rel: float
    ray_degrees: float
    rotation_degrees: float
    translation: float
    metric_scale: float

    @classmethod
    def read(cls, reader: Reader) -> GeometryParity:
        """Read an object with exactly the attributes as fields."""
        fields = reader.fields(*cls.__dataclass_fields__)
        return cls(**{name: value.number() for name, value in fields.items()})

    def to_json(self) -> dict[str, float]:
        """Inverse of ``read``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Parity:
    """Measured parity: over which cases, per output, and as geometry.

    ``measured_with`` says what computed the numbers, such as ``onnxruntime 1.32.0 on CPU: ...``. For a plan that was
    built on a machine without its GPU that is the plan's graph in another backend.
    """

    cases: tuple[str, ...]
    outputs: Mapping[str, OutputParity]
    geometry: GeometryParity
    measured_with: str

    @classmethod
    def read(cls, reader: Reader) -> Parity:
        """Read ``{"cases", "outputs", "geometry", "measured_with"}``."""
        fields = reader.fields("cases", "outputs", "geometry", "measured_with")
        return cls(
            tuple(item.text() for item in fields["cases"].items()),
            {name: OutputParity.read(member) for name, member in fields["outputs"].members().items()},
            GeometryParity.read(fields["geometry"]),
            fields["measured_with"].text(),
        )

    def to_json(self) -> dict[str, Any]:
        """Inverse of ``read``."""
        outputs = {name: parity.to_json() for name, parity in self.outputs.items()}
        return {
            "cases": list(self.cases),
            "outputs": outputs,
            "geometry": self.geometry.to_json(),
            "measured_with": self.measured_with,
        }
