"""How right the map of a sequence is: its path, its depth and its surfaces, over rendered walks and recordings.

In use:

    from mapengine.calibration.scenes import render_walk
    from mapengine.calibration.sequences import evaluate_sequence
    from mapengine.runtime import Engine, Mapper

    mapper = Mapper(Engine.load("build/engine"), window=8, overlap=3)
    score = evaluate_sequence(mapper, render_walk(1_000_000, 60))
    print(score.values["ate"], score.values["drift_percent"])
"""

from .evaluate import GIVEN, Location, SequenceMapper, SequenceScore, TrueFrame, evaluate_sequence, mean_values
from .recorded import RecordedSequence
from .report import SEQUENCE_EVALUATION, SEQUENCE_METRICS, sequence_table

__all__ = [
    "GIVEN",
    "SEQUENCE_EVALUATION",
    "SEQUENCE_METRICS",
    "Location",
    "RecordedSequence",
    "SequenceMapper",
    "SequenceScore",
    "TrueFrame",
    "evaluate_sequence",
    "mean_values",
    "sequence_table",
]
