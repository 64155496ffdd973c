"""A small network with outlier channels, cases, and one calibration of it per worker of a test run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mapengine.calibration.data.cases import Cases, make_cases
from mapengine.calibration.ranges import Calibration
from mapengine.export import build_engine
from mapengine.export.bundles.parity_cases import parity_cases
from mapengine.export.graphs.tracing import export_stages
from mapengine.export.model.reference import MapAnything
from mapengine.export.quantization import CalibrationOptions, calibrate, fold_calibration
from mapengine.export.quantization.fold import correct_biases
from mapengine.runtime.bundle.store import Bundle

from .outlier_channels import with_outlier_channels


@pytest.fixture(scope="session")
def cases() -> Cases:
    """Three cases that use every modality, one and more views."""
    known = parity_cases("dinov2", (56, 42))
    return make_cases({name: known[name] for name in ("image, 1 view", "mixed", "depth")}, "small cases")


@pytest.fixture(scope="session")
def network(reference: Callable[..., MapAnything]) -> MapAnything:
    """``preset:tiny`` with outliers as trained transformers have them, computing the same."""
    return with_outlier_channels(reference("preset:tiny"))


@pytest.fixture(scope="session")
def calibration(network: MapAnything, cases: Cases) -> Calibration:
    return calibrate(network, cases, CalibrationOptions())


@pytest.fixture(scope="session")
def mixed_calibration(network: MapAnything, cases: Cases, calibration: Calibration) -> Calibration:
    """With rotations in the aggregator beside the smoothing of everything else. As nothing that is folded changes what
    other layers read, layers of two calibrations go together."""
    other = {layer.name: layer for layer in calibrate(network, cases, CalibrationOptions(smooth=False)).layers}
    layers = (
        other[layer.name] if layer.stage == "aggregator" and other[layer.name].rotated else layer
        for layer in calibration.layers
    )
    return replace(calibration, layers=tuple(layers))


@pytest.fixture(scope="session")
def folded_network(network: MapAnything, mixed_calibration: Calibration) -> MapAnything:
    """What is exported of ``mixed_calibration``: smoothing, rotation and corrected biases in the weights."""
    return correct_biases(fold_calibration(network, mixed_calibration.layers), mixed_calibration)


@pytest.fixture(scope="session")
def folded_stages(folded_network: MapAnything, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the traced stages of ``folded_network``, in float32."""
    folder = tmp_path_factory.mktemp("folded")
    export_stages(folded_network, folder)
    return folder


@contextmanager
def count_calls() -> Iterator[Counter[str]]:
    """Count calls of what takes long in a build: hashes, foldings, and predictions by their views."""
    found: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def counted(owner: Any, name: str, key: Callable[..., str]) -> None:
            before = getattr(owner, name)

            def call(*given: Any, **options: Any) -> Any:
                found[key(*given)] += 1
                return before(*given, **options)

            patch.setattr(owner, name, call)

        def views(network: MapAnything, given: Any) -> str:
            return f"{id(network)} {[sorted(view) for view in given]} {[view['img'].shape for view in given]}"

        counted(MapAnything, "weights_hash", lambda network: "hash")
        counted(MapAnything, "predict", views)
        # By their names, as the package has a function `calibrate`.
        for name in ("calibrate", "network"):
            counted(sys.modules[f"mapengine.export.quantization.{name}"], "fold_calibration", lambda *given: "fold")
        yield found


@pytest.fixture(scope="session")
def folded_build(
    network: MapAnything, mixed_calibration: Calibration, shared_folder: Path
) -> tuple[Bundle, Counter[str]]:
    """An INT8 bundle with smoothing, rotation and bias correction, and how often its build called what takes long.

    All workers share it: copy it before changing it.
    """
    folder = shared_folder / "folded-int8"
    counted = folder.with_suffix(".json")
    with FileLock(f"{folder}.lock"):
        if not counted.exists():
            with count_calls() as counts:
                build_engine(network, folder, precision="int8", calibration=mixed_calibration)
            counted.write_text(json.dumps(counts), encoding="utf-8")
    return Bundle.open(folder), Counter(json.loads(counted.read_text(encoding="utf-8")))
