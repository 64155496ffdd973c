"""Loops bring a drifted walk back, wrong loops change nothing, and derivatives are those of the residuals."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from mapengine.runtime import BackendUnavailableError, InputError
from mapengine.runtime.mapping.loops.pose_graph import Edge, Solution, solve
from mapengine.runtime.mapping.similarity import Similarity

Array = np.ndarray[Any, Any]
DRIFT = (0.01, 0.02, 0.01)


class Walk:
    """Two rounds over a circle, with what consecutive nodes know of each other, and the path that it adds up to."""

    def __init__(self, count: int, seed: int, scale: bool = False) -> None:
        self.rng, self.scale = np.random.default_rng(seed), scale
        self.truth = []
        for angle in np.arange(count) / count * 4 * np.pi:
            c, s = np.cos(angle), np.sin(angle)
            rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
            self.truth.append(Similarity(rotation, np.array([c, 0.1 * np.sin(3 * angle), s]) * count / 50))
        self.windows = [self.edge(k, k + 1) for k in range(count - 1)]
        self.start = [self.truth[0]]
        for edge in self.windows:
            self.start.append(self.start[-1] @ edge.relative)

    def edge(self, i: int, j: int, kind: Any = "window", drift: tuple[float, float, float] = DRIFT) -> Edge:
        noise = self.rng.normal(size=7) * np.repeat(drift, (3, 3, 1))
        relative = self.truth[i].inverse() @ self.truth[j]
        return Edge(i, j, relative @ Similarity.exp(noise[: 7 if self.scale else 6]), *drift, kind=kind)

    def loops(self, count: int) -> list[Edge]:
        half = len(self.truth) // 2
        return [self.edge(half + int(i), int(i), "loop") for i in self.rng.integers(0, half, count)]

    def error(self, nodes: list[Similarity]) -> float:
        squares = [np.sum((a.translation - b.translation) ** 2) for a, b in zip(nodes, self.truth, strict=True)]
        return float(np.sqrt(np.mean(squares)))

    def solve(self, edges: list[Edge]) -> Solution:
        return solve(self.start, edges, scale=self.scale)


def tangents(nodes: list[Similarity], others: list[Similarity]) -> Array:
    return np.array([(a.inverse() @ b).log() for a, b in zip(nodes, others, strict=True)])


@pytest.mark.parametrize("scale", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_closed_walk_with_drift_is_brought_back(scale: bool) -> None:
    walk = Walk(60, 3, scale)
    exact = (1e-5, 1e-5, 1e-5)
    closing = [walk.edge(30 + k, k, "loop", exact) for k in range(30)]
    closing += [walk.edge(0, k, "loop", exact) for k in (1, 7, 15, 22)]
    found = walk.solve([*walk.windows, *closing])
    assert found.believed.all()
    assert walk.error(found.nodes) < walk.error(walk.start) / 3
    known = [1, 7, 15, 22, 31, 37, 45, 52]
    np.testing.assert_allclose(tangents([walk.truth[k] for k in known], [found.nodes[k] for k in known]), 0, atol=2e-4)


@pytest.mark.parametrize("scale", [False, True])
def test_a_wrong_loop_among_right_ones_does_not_bend_the_map(scale: bool) -> None:
    walk = Walk(100, 5, scale)
    right = [*walk.windows, *walk.loops(10)]
    alone = walk.solve(right)
    for wrong in (
        Edge(95, 33, Similarity.identity(), *DRIFT, kind="loop"),
        Edge(20, 60, Similarity(np.diag([-1.0, 1, -1]), np.array([1.0, 0, 0])), *DRIFT, kind="loop"),
    ):
        found = walk.solve([*right, wrong])
        assert found.believed.tolist() == [True] * len(right) + [False]
        np.testing.assert_allclose(tangents(alone.nodes, found.nodes), 0, atol=1e-5)


def test_a_wrong_loop_that_is_alone_is_not_believed_either() -> None:
    walk = Walk(40, 6)
    found = walk.solve([*walk.windows, Edge(39, 10, Similarity.identity(), *DRIFT, kind="loop")])
    assert not found.believed[-1]
    np.testing.assert_allclose(tangents(walk.start, found.nodes), 0, atol=1e-9)


def test_wrong_loops_that_agree_with_each_other_lose_against_more_right_ones() -> None:
    walk = Walk(80, 7)
    elsewhere = Similarity(np.eye(3), np.array([0.0, 0, 1.0]))
    wrong = [
        Edge(70 + k, 5 + k, walk.truth[70 + k].inverse() @ elsewhere @ walk.truth[5 + k], *DRIFT, kind="loop")
        for k in range(3)
    ]
    right = walk.loops(8)
    found = walk.solve([*walk.windows, *wrong, *right])
    assert found.believed.tolist() == [True] * 79 + [False] * 3 + [True] * 8


@pytest.mark.slow
@pytest.mark.parametrize("scale", [False, True])
def test_the_solution_is_a_minimum_of_what_it_says(scale: bool) -> None:
    walk = Walk(7, 8, scale)
    edges = [*walk.windows, *walk.loops(3)]
    found = walk.solve(edges)

    def cost(nodes: list[Similarity]) -> float:
        squares = 0.0
        for edge in edges:
            off = (edge.relative.inverse() @ nodes[edge.i].inverse() @ nodes[edge.j]).log()
            squares += float(np.sum((off / np.repeat((edge.rotation, edge.translation, edge.scale), (3, 3, 1))) ** 2))
        return squares

    least = cost(found.nodes)
    assert found.cost == pytest.approx(least)
    for node in range(1, 7):
        for axis in range(7 if scale else 6):
            for step in (-1e-4, 1e-4):
                moved = list(found.nodes)
                moved[node] = moved[node] @ Similarity.exp(step * np.eye(7)[axis])
                assert cost(moved) > least


def test_steps_are_those_of_newton_near_the_solution() -> None:
    # With wrong derivatives the solver would stand still late or elsewhere: noise-free edges are met to rounding.
    walk = Walk(30, 9, scale=True)
    none = (1e-12, 1e-12, 1e-12)
    edges = [walk.edge(k, k + 1, drift=none) for k in range(29)] + [walk.edge(29, k, "loop", none) for k in (0, 9)]
    found = solve(walk.start, [Edge(e.i, e.j, e.relative, *DRIFT, kind=e.kind) for e in edges], scale=True)
    np.testing.assert_allclose(tangents(walk.truth, found.nodes), 0, atol=1e-7)


def test_rigid_graphs_keep_scales_and_nodes_that_stay_stay() -> None:
    walk = Walk(20, 10)
    edges = [*walk.windows, *walk.loops(2)]
    found = solve(walk.start, edges, fixed=(4, 19))
    assert all(node.scale == 1 for node in found.nodes)
    for node in (4, 19):
        np.testing.assert_array_equal(found.nodes[node].matrix(), walk.start[node].matrix())
    assert not np.allclose(found.nodes[0].matrix(), walk.start[0].matrix())


def test_parts_that_nothing_joins_keep_their_first_node() -> None:
    walk = Walk(20, 11)
    edges = [edge for edge in walk.windows if edge.i != 9] + [walk.edge(10, 19, "loop")]
    found = solve(walk.start, edges)
    np.testing.assert_array_equal(found.nodes[10].matrix(), walk.start[10].matrix())
    np.testing.assert_allclose(tangents(walk.start[:10], found.nodes[:10]), 0, atol=1e-9)
    assert found.believed.all()


def test_a_part_that_only_loops_join_is_placed_by_them() -> None:
    walk = Walk(20, 12)
    exact = (1e-6, 1e-6, 1e-6)
    pieces = [walk.edge(k, k + 1, drift=exact) for k in range(19) if k != 9]
    there = Similarity.exp(np.array([0.2, 0.1, 0, 0.5, 0, 0.3]))
    start = walk.truth[:10] + [there @ node for node in walk.truth[10:]]
    loops = [walk.edge(10 + k, k, "loop", exact) for k in range(3)]
    found = solve(start, [*pieces, *loops])
    assert found.believed.all()
    np.testing.assert_allclose(tangents(walk.truth, found.nodes), 0, atol=1e-4)


def test_the_same_graph_gives_the_same_numbers() -> None:
    walk = Walk(50, 13)
    edges = [*walk.windows, *walk.loops(4)]
    first, second = walk.solve(edges), walk.solve(edges)
    for a, b in zip(first.nodes, second.nodes, strict=True):
        np.testing.assert_array_equal(a.matrix(), b.matrix())


def test_graphs_without_edges_or_nodes_are_as_they_were() -> None:
    walk = Walk(3, 14)
    assert solve([], []).nodes == []
    assert solve(walk.start, []).nodes == walk.start
    assert solve(walk.start[:1], []).cost == 0


@pytest.mark.slow
def test_three_thousand_windows_are_solved() -> None:
    walk = Walk(3000, 15)
    edges = [*walk.windows, *walk.loops(10), Edge(2990, 1000, Similarity.identity(), *DRIFT, kind="loop")]
    found = walk.solve(edges)
    assert found.believed.tolist() == [True] * (len(edges) - 1) + [False]
    assert walk.error(found.nodes) < walk.error(walk.start) / 2


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (Edge(0, 5, Similarity.identity(), *DRIFT), "joins nodes 0 and 5"),
        (Edge(1, 1, Similarity.identity(), *DRIFT), "joins nodes 1 and 1"),
        (Edge(0, 1, Similarity.identity(), 0.0, 1.0), "standard deviations"),
        (Edge(0, 1, Similarity.identity(), 1.0, float("nan")), "standard deviations"),
    ],
)
def test_edges_that_cannot_be_are_refused(edge: Edge, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve([Similarity.identity()] * 3, [edge])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(5, 16)
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(BackendUnavailableError, match=r"mapengine\[map\]"):
        walk.solve([*walk.windows, *walk.loops(1)])
