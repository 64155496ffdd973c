"""What the float32 network predicts for the inputs that a bundle is checked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mapengine.runtime.bundle.build_record import Parity
from mapengine.runtime.bundle.requests import ServedRequests
from mapengine.runtime.checks.parity import Predictions, measure_parity
from mapengine.runtime.inference import MultiViewInference

from .parity_cases import GOLDEN, GOLDEN_SIZE, Views, golden_views, served_cases, small_size

Predict = Callable[[Sequence[Mapping[str, Any]]], Predictions]


class ReferencePredictions:
    """Predictions of the reference for the golden input and the parity cases of a bundle, each computed once.

    Attributes:
        inputs: views by case; :data:`.parity_cases.GOLDEN` is the golden input.
    """

    def __init__(self, model: MultiViewInference, requests: ServedRequests) -> None:
        """Prepare the inputs; nothing is predicted yet.

        Args:
            model: float32 reference.
            requests: that the bundle serves, which the inputs are among.
        """
        norm = model.data_norm_type
        golden = golden_views(norm, small_size(requests, GOLDEN_SIZE), requests.views)
        self.inputs: dict[str, Views] = {GOLDEN: golden, **served_cases(norm, requests)}
        self._model = model
        self._known: dict[str, Predictions] = {}

    def __getitem__(self, case: str) -> Predictions:
        """Return what the reference predicts for a case."""
        if case not in self._known:
            self._known[case] = self._model.predict(self.inputs[case], use_amp=False)
        return self._known[case]

    def pairs(self, predict: Predict) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
        """Return what ``predict`` gives for every input, and what the reference does."""
        return {case: predict(views) for case, views in self.inputs.items()}, {case: self[case] for case in self.inputs}

    def parity(self, engine: MultiViewInference, measured_with: str) -> Parity:
        """Measure how far an engine is from the reference over the parity cases, without the golden input.

        Raises:
            ParityError: a prediction is not finite.
        """
        cases = [case for case in self.inputs if case != GOLDEN]
        found = {case: engine.predict(self.inputs[case]) for case in cases}
        return measure_parity(found, {case: self[case] for case in cases}, measured_with)
