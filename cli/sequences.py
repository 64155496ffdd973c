"""``mapengine eval --sequence``: maps of walks and recordings against their truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mapengine.calibration.evaluation import HELD_OUT_SEED
from mapengine.calibration.evaluation.evaluate import warn_of_training_seeds
from mapengine.calibration.scenes import render_walk
from mapengine.calibration.sequences import (
    GIVEN,
    SEQUENCE_EVALUATION,
    RecordedSequence,
    SequenceScore,
    evaluate_sequence,
    mean_values,
)
from mapengine.calibration.sequences.evaluate import rounded
from mapengine.calibration.sequences.report import SUMMARY_HEAD, described_sequences, sequence_table, summary_rows
from mapengine.runtime import Engine, Mapper
from mapengine.runtime.backend_table import PACKAGES
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_markdown, write_record
from mapengine.runtime.writing.output_checks import InputPaths

from .console import Steps, show_facts, show_table
from .options import value_of
from .outputs import check_files
from .plots.figures import PLOT, check_plots
from .plots.sequences import draw_sequences

RENDERED = "rendered"
WALKS, WALK_FRAMES = 20, 100
"""How many walks are rendered unless a number is given, and of how many frames."""


@dataclass(frozen=True)
class SequenceOptions:
    """What ``mapengine eval --sequence`` was asked for.

    Attributes:
        source: ``rendered``, or the path of a recording.
        count, frames, seed: of walks; None where not given. Of a recording, ``frames`` are the first ones.
        every: take each so many-th frame of a recording.
        intrinsics: camera of a recording without.
        size: width and height in pixels.
        given: what the network gets of every frame beside its image.
        mapper: arguments of :class:`mapengine.runtime.Mapper`.
        json_file, markdown, plot_file: where results go.
    """

    source: str
    count: int | None
    frames: int | None
    seed: int | None
    every: int | None
    intrinsics: Path | None
    size: tuple[int, int]
    given: Collection[str]
    mapper: dict[str, Any]
    json_file: Path | None
    markdown: Path | None
    plot_file: Path | None

    def check(self, model: str) -> None:
        """Refuse options that do not fit together, and files that cannot be written.

        Raises:
            typer.BadParameter, OutputError, BackendUnavailableError: see there.
        """
        if self.source == RENDERED:
            for option, value in (("--every", self.every), ("--intrinsics", self.intrinsics)):
                if value is not None:
                    raise typer.BadParameter("it belongs to a recording, and walks are rendered", param_hint=option)
        else:
            for option, number in (("--scenes", self.count), ("--seed", self.seed)):
                if number is not None:
                    raise typer.BadParameter(
                        f"it belongs to rendered walks, and --sequence names {self.source}", param_hint=option
                    )
        files = {
            "--json": (self.json_file, f"{SEQUENCE_EVALUATION} record"),
            "--markdown": (self.markdown, SEQUENCE_EVALUATION),
            "--plot": (self.plot_file, PLOT),
        }
        read: list[str | Path] = [model] if self.source == RENDERED else [model, Path(self.source)]
        check_files(files, InputPaths([] if self.intrinsics is None else [self.intrinsics], read))
        if self.plot_file is not None:
            check_plots()

    @property
    def first_seed(self) -> int | None:
        """Seed of the first walk; None for a recording."""
        return None if self.source != RENDERED else HELD_OUT_SEED if self.seed is None else self.seed

    def sequences(self) -> Iterator[tuple[str, Any]]:
        """Yield names and sequences, each when the one before it is done."""
        seed = self.first_seed
        if seed is None:
            path = Path(self.source)
            every, intrinsics = self.every or 1, self.intrinsics
            yield path.name, RecordedSequence(path, self.size, frames=self.frames, every=every, intrinsics=intrinsics)
            return
        warn_of_training_seeds(seed)
        for number in range(seed, seed + (self.count or WALKS)):
            with value_of("--frames"):
                walk = render_walk(number, self.frames or WALK_FRAMES, *self.size)
            yield str(number), walk


def evaluate_sequences(options: SequenceOptions, model: str, load: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
    """Evaluate, show and write; ``load`` returns the engine and what a record says of it.

    Raises:
        typer.BadParameter: the model is no bundle, or as :meth:`SequenceOptions.check`.
    """
    options.check(model)
    scores: dict[str, SequenceScore] = {}
    with Steps() as step:
        step(f"loading {model}")
        engine, facts = load()
        if not isinstance(engine, Engine):
            raise typer.BadParameter(
                f"a sequence is mapped by a bundle, and {model} runs in PyTorch; build it first", param_hint="MODEL"
            )
        total = 1 if options.first_seed is None else options.count or WALKS
        step("evaluating")
        for name, sequence in options.sequences():
            frames = _counted(sequence, lambda part, name=name: step.part((len(scores) + part) / total, name))  # type: ignore[misc]
            scores[name] = evaluate_sequence(
                Mapper(engine, **options.mapper),
                frames,
                given=options.given,
                window=options.mapper["window"],
                norm_type=engine.data_norm_type,
            )
        record = {
            "benchmark": SEQUENCE_EVALUATION,
            **facts,
            "data": RENDERED if options.first_seed is not None else "recorded",
            **record_origin(*PACKAGES),
            "size": "{}x{}".format(*options.size),
            "seed": options.first_seed,
            "given": [word for word in GIVEN if word in options.given],
            "mapper": options.mapper,
            "results": {name: score.to_json() for name, score in scores.items()},
            "mean": rounded(mean_values([score.values for score in scores.values()])),
        }
        if options.json_file is not None:
            write_record(options.json_file, record)
        if options.markdown is not None:
            text = f"# {facts['model']}\n\n{sequence_table(record)}"
            write_markdown(options.markdown, SEQUENCE_EVALUATION, text)
        if options.plot_file is not None:
            draw_sequences(record, options.plot_file)
    print()
    show_facts(
        [
            ("model", f"{record['model']}, {record['precision']}, {record['where']}"),
            ("data", described_sequences(record)),
            ("alignment", "ATE: rigid, and scaled by a similarity; accuracy, completeness: rigid; the others: none"),
        ]
    )
    show_table(SUMMARY_HEAD, summary_rows(record), right=SUMMARY_HEAD[1:])
    for path in (options.json_file, options.markdown, options.plot_file):
        if path is not None:
            print(f"Wrote {path}")


def _counted(sequence: Any, progress: Callable[[float], None]) -> Iterator[Any]:
    for number, frame in enumerate(sequence):
        progress(number / len(sequence))
        yield frame
