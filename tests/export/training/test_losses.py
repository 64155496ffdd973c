"""The training losses: zero for the truth, blind to the unknown unit, finite everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mapengine.export.training.batch import Batch, Targets, make_batch
from mapengine.export.training.config import InputMix, LossWeights
from mapengine.export.training.dataset import SceneStore
from mapengine.export.training.losses import Predictions, loss_terms, training_loss

GEOMETRY = ("pointmap", "local_points", "depth", "relative", "rays", "rotation", "translation", "gradient", "normal")


@pytest.fixture(scope="module")
def batch(scenes: SceneStore) -> Batch:
    with_sky = np.flatnonzero((scenes.depth_z[:, :4].numpy() == 0).mean(axis=(1, 2, 3)) > 0.05)
    part = with_sky[:3], slice(0, 4)
    return make_batch(
        scenes.images[part],
        scenes.depth_z[part].float(),
        scenes.intrinsics[part],
        scenes.poses[part],
        InputMix(),
        np.random.default_rng(0),
    )


def truth(targets: Targets, unit: float = 1.0) -> Predictions:
    """The targets as a prediction, in another unit than metres."""
    valid = targets.depth > 0
    depth = torch.where(valid, targets.depth, 5.0)
    return Predictions(
        rays=targets.rays,
        depth=depth / unit,
        confidence=torch.ones_like(depth),
        mask_logits=torch.where(valid, 20.0, -20.0),
        quaternions=targets.quaternions,
        translations=targets.translations / unit,
        scale=torch.full((len(depth), 1), unit),
    )


@pytest.mark.parametrize("unit", [1.0, 0.2, 7.0])
def test_the_truth_costs_nothing_in_any_unit(batch: Batch, unit: float) -> None:
    for name, value in loss_terms(truth(batch.targets, unit), batch.targets, alpha=0.2).items():
        assert value.item() == pytest.approx(0, abs=2e-5), name


def test_a_wrong_metric_factor_costs_its_logarithm(batch: Batch) -> None:
    predicted = truth(batch.targets)._replace(scale=torch.full((3, 1), 2.0))
    assert loss_terms(predicted, batch.targets, 0.2)["scale"].item() == pytest.approx(np.log(2), abs=1e-5)


def test_both_signs_of_a_quaternion_are_one_rotation(batch: Batch) -> None:
    predicted = truth(batch.targets)
    flipped = predicted._replace(quaternions=-predicted.quaternions)
    assert loss_terms(flipped, batch.targets, 0.2)["rotation"].item() == pytest.approx(0, abs=1e-5)


def test_every_error_is_noticed_by_its_term(batch: Batch) -> None:
    exact, targets = truth(batch.targets), batch.targets
    generator = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 0.2 * torch.rand(x.shape, generator=generator))

    for field, names in {
        "rays": ("rays", "local_points", "pointmap", "normal"),
        "depth": ("depth", "relative", "local_points", "pointmap", "gradient", "normal"),
        "quaternions": ("rotation", "pointmap"),
        "translations": ("translation", "pointmap"),
        "mask_logits": (),
    }.items():
        value = noisy(getattr(exact, field))
        terms = loss_terms(exact._replace(**{field: value}), targets, 0.2)
        for name in names:
            assert terms[name].item() > 1e-3, (field, name)
    assert loss_terms(exact._replace(mask_logits=-exact.mask_logits), targets, 0.2)["mask"].item() > 10


def test_pixels_without_depth_do_not_count(batch: Batch) -> None:
    exact = truth(batch.targets)
    valid = batch.targets.depth > 0
    assert not valid.all()
    wild = exact._replace(depth=torch.where(valid, exact.depth, 1e4))
    first, second = (loss_terms(p, batch.targets, 0.2) for p in (exact, wild))
    for name in ("pointmap", "local_points", "depth", "relative", "translation", "scale", "gradient", "normal"):
        assert first[name].item() == pytest.approx(second[name].item(), abs=1e-6), name


def test_confidence_is_high_where_errors_are_small(batch: Batch) -> None:
    """The minimum of C e - alpha log C over C is at alpha / e."""
    exact = truth(batch.targets)
    predicted = exact._replace(depth=exact.depth * (1 + 0.05 * torch.rand(exact.depth.shape)))

    def cost(confidence: float) -> float:
        raised = predicted._replace(confidence=torch.full_like(exact.depth, confidence))
        return loss_terms(raised, batch.targets, 0.2)["pointmap"].item()

    error = cost(1.0)
    best = 0.2 / error
    assert cost(best) < min(cost(best * 0.7), cost(best * 1.4))


def test_gradients_are_finite_even_for_the_truth(batch: Batch) -> None:
    exact = truth(batch.targets)
    leaves = Predictions(*(x.clone().requires_grad_() for x in exact))
    total, terms = training_loss(leaves, batch.targets, LossWeights())
    total.backward()
    assert set(terms) == set(GEOMETRY) | {"scale", "mask"}
    for name, leaf in leaves._asdict().items():
        assert leaf.grad is not None, name
        assert bool(leaf.grad.isfinite().all()), name


def test_the_total_is_the_weighted_sum(batch: Batch) -> None:
    predicted = truth(batch.targets)._replace(scale=torch.full((3, 1), 3.0))
    weights = LossWeights(scale=0.25)
    total, terms = training_loss(predicted, batch.targets, weights)
    expected = sum(getattr(weights, name) * value.item() for name, value in terms.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
