"""A network that is written in INT8 or FP8: what is in its weights, and how its layers round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mapengine.calibration.ranges import Calibration
from mapengine.runtime.checks.parity import Predictions

from ..model.reference import MapAnything
from .fake_quantization import simulate_rounding
from .fold import correct_biases, fold_calibration
from .layers import check_layers
from .weights_only import WeightsOnly


@dataclass(frozen=True)
class QuantizedNetwork:
    """A calibration and the network that it is folded into.

    Attributes:
        network: float32, with smoothing and rotation in its weights.
        calibration: how its layers round; or, where weights alone are in 8 bits, which layers they are of.
    """

    network: MapAnything
    calibration: Calibration | WeightsOnly

    @classmethod
    def of(cls, model: MapAnything, calibration: Calibration | WeightsOnly) -> QuantizedNetwork:
        """Fold a calibration into the model that was calibrated, which stays as it is.

        Raises:
            CalibrationError: it has other layers than the model, or an entry does not fit its layer.
        """
        if isinstance(calibration, Calibration):
            check_layers(model, calibration)
            model = fold_calibration(model, calibration.layers, calibration.kept_layers)
        return cls(model, calibration)

    @property
    def exported(self) -> MapAnything:
        """The network whose stages are quantised: biases are corrected too."""
        if isinstance(self.calibration, Calibration):
            return correct_biases(self.network, self.calibration)
        return self.network

    def predict(self, views: Sequence[Mapping[str, Any]]) -> Predictions:
        """Return what the network predicts when its layers round, in PyTorch."""
        with simulate_rounding(self.network, self.calibration.quantized, self.calibration.precision):
            return self.network.predict(views, use_amp=False)
