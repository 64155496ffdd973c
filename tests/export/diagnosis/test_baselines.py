"""The PyTorch baselines."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mapengine.export import load_model
from mapengine.export.bundles.parity_cases import sample_inputs
from mapengine.export.diagnosis.baselines import compile_stages


@pytest.mark.slow
def test_a_compiled_network_predicts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        # What torch.compile does after tracing is left out: compiling C++ takes a minute and is not ours.
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = load_model("preset:tiny"), load_model("preset:tiny")
    compile_stages(compiled)
    views = sample_inputs((56, 42), ["kdp", ""], "dinov2")
    for expected, found in zip(plain.predict(views), compiled.predict(views), strict=True):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert len(traced) >= 4  # one of each stage, at least
