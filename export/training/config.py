"""Everything that a training run depends on, readable from and written to JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapengine.calibration.scenes import MAX_VIEWS
from mapengine.runtime.errors import ConfigError
from mapengine.runtime.system.reading import read_file
from mapengine.runtime.typed_json.text import Document, parse_json

from ..model.config import PATCH_SIZE

_LARGEST = 2**24  # bytes


@dataclass(frozen=True)
class InputMix:
    """Probabilities of the geometric inputs (MapAnything, arXiv 2509.13414, section on training with mixed inputs)."""

    geometry: float = 0.7
    """That a sample has any geometry; the others are images only."""
    rays: float = 0.5
    depth: float = 0.5
    pose: float = 0.5
    """Each modality of a sample with geometry."""
    per_view: float = 0.9
    """That a view keeps a modality of its sample."""
    sparse: float = 0.5
    """That the depth of a sample is sparse."""
    sparse_share: tuple[float, float] = (0.01, 0.1)
    """Share of the pixels that sparse depth keeps."""
    metric: float = 0.8
    """That the scale of a modality is known."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in :mod:`.losses`."""

    pointmap: float = 3.0
    local_points: float = 1.0
    depth: float = 3.0
    relative: float = 0.0
    rays: float = 2.0
    rotation: float = 5.0
    translation: float = 1.0
    scale: float = 0.5
    gradient: float = 0.5
    normal: float = 0.1
    mask: float = 0.1
    confidence: float = 0.2
    """Weight alpha of the logarithm that keeps confidences up."""


@dataclass(frozen=True)
class Phase:
    """A stretch of steps at one image size."""

    steps: int
    views_per_step: int
    """Views of a batch; a batch has so many samples as fit."""
    shrink: int = 1
    """Images are trained on at 1 / shrink of their size: coarse ones teach the same geometry several times faster."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training run."""

    model: dict[str, Any]
    """The network, in the form of upstream's ``config.json``."""
    width: int = 140
    height: int = 112
    scenes: int = 6000
    """How many are rendered, once; every one has eight views."""
    first_seed: int = 0
    """Seed of the first scene; the others have the numbers after it."""
    phases: tuple[Phase, ...] = (Phase(2000, 64, 2), Phase(2000, 32))
    """What is trained after what, with one optimiser and one learning rate curve."""
    view_counts: tuple[int, ...] = (1, 2, 4, 4, 4, 8)
    """Views per sample; one is drawn per step."""
    warmup: int = 200
    decay: float = 0.35
    """Share of the steps over which the learning rate falls to zero at the end."""
    learning_rate: float = 5e-4
    """Peak, of AdamW."""
    matrix_factor: float = 3.0
    """The matrices of the blocks, which Muon trains, learn so many times faster."""
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_every: int = 250
    evaluate_every: int = 500
    evaluation_scenes: int = 48
    mix: InputMix = field(default_factory=InputMix)
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for phase in self.phases:
            unit = PATCH_SIZE * phase.shrink
            if self.width % unit or self.height % unit:
                raise ConfigError(
                    f"training size {self.width}x{self.height} at 1/{phase.shrink}: sides must be multiples of {unit}"
                )
            if phase.steps < 1 or phase.views_per_step < max(self.view_counts, default=1):
                raise ConfigError(
                    "every phase needs at least 1 step, and views_per_step for the largest of view_counts"
                )
        if not self.view_counts or any(not 1 <= count <= MAX_VIEWS for count in self.view_counts):
            raise ConfigError(f"view_counts is {list(self.view_counts)}; scenes have 1 to {MAX_VIEWS} views")
        if not self.phases or min(self.scenes, self.checkpoint_every, self.evaluate_every) < 1 or self.warmup < 0:
            raise ConfigError("there must be a phase; scenes and intervals must be at least 1, warmup at least 0")

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that step ``step`` (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    @classmethod
    def read(cls, path: str | Path) -> TrainingConfig:
        """Read a JSON file with any of the fields; ``model`` is needed. Raises ConfigError."""
        try:
            text = read_file(path, _LARGEST)
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the training configuration ({error})") from None
        data = parse_json(text, Document(str(path), "correct the training configuration", ConfigError), infinities=True)
        return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: Any, where: str = "training configuration") -> TrainingConfig:
        """Read what :meth:`to_json` gives. Raises ConfigError for unknown or missing fields."""
        parts = {"mix": InputMix, "loss": LossWeights}
        try:
            fields = dict(data)
            if "phases" in fields:
                fields["phases"] = tuple(Phase(**phase) for phase in fields["phases"])
            for name, kind in parts.items():
                if name in fields:
                    fields[name] = kind(**{k: _tuple(v) for k, v in dict(fields[name]).items()})
            return cls(**{key: _tuple(value) for key, value in fields.items()})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {str(error).replace('__init__()', '').strip()}") from None

    def to_json(self) -> dict[str, Any]:
        """Return plain data; tuples become lists in the file."""
        return dataclasses.asdict(self)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
