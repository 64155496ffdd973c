"""The pose graph: where windows are, after what is known between them has been weighed, loops among it.

A node is the similarity that takes a window's own frame into the map's. An edge says where node j is in the frame of
node i, and how uncertain that is. Edges of consecutive windows are right but inexact; a loop may be wrong altogether.
So loops have a truncated square as loss: a loop counts fully, or not at all for a fixed price. Which of them count is
chosen by their covariance: what a loop says is compared with where the windows and the other loops want it, in standard
deviations of both. A robust kernel over a loop's own residual cannot do that: a long chain of windows follows one wrong
loop until that residual is small.

Each step solves sparse normal equations by SciPy's LU factorisation (SuperLU), with damping (Levenberg-Marquardt).
Why SciPy: 300 nodes with 11 loops take 0.3 s and 3000 with 41 take 6 s on one core, and it has wheels for every Python
from 3.10 on. gtsam 4.3 with its GncLMOptimizer ends at the same optimum in 1 s and 57 s, where it gave up a right loop;
it needs pytest to be installed, and has no such release for Python 3.10. ``scipy.optimize.least_squares`` stays sparse
with an iterative solver alone, which was far from the optimum of the 3000 nodes after 60 evaluations. SciPy is the
extra ``map`` and is imported when a graph is solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendUnavailableError, InputError
from ..similarity import Float64, Similarity, cross_matrices, exp_matrices, inverse_matrices, log_matrices

Kind = Literal["window", "loop"]
LOOP_BOUND = 5.0
"""Standard deviations: a loop that is farther from where everything else wants it is not believed."""
_ROUNDS = 6
_MOVES = 4
_STEPS = 40
_CONVERGED = 1e-7
_TOGETHER = 8
"""Loops whose covariance is computed at once."""
_LOOSE = 1e-9
"""Of the diagonal: holds nodes that no window joins to a fixed one, which then are as good as free."""
_DAMPING = (1e-9, 1e-6, 1e12)
"""Least, first and largest damping, relative to the diagonal."""
_SERIES = (1 / 2, 1 / 12, 0, -1 / 720, 0, 1 / 30240, 0, -1 / 1209600, 0, 1 / 47900160)


@dataclass(frozen=True, eq=False)
class Edge:
    """What is known between two nodes.

    Attributes:
        i, j: numbers of the nodes.
        relative: from the frame of node j into that of node i.
        rotation, translation, scale: standard deviations: radians, units of the frame of node j, and of the logarithm.
        kind: ``"window"`` for what is right but for noise, ``"loop"`` for what may be wrong altogether.
    """

    i: int
    j: int
    relative: Similarity
    rotation: float
    translation: float
    scale: float = 0.05
    kind: Kind = "window"


@dataclass(frozen=True, eq=False)
class Solution:
    """A graph, solved.

    Attributes:
        nodes: from each node's frame into the map's.
        believed: per edge, whether it counted; every edge of a window does.
        cost: sum of the squared residuals of these, in standard deviations.
    """

    nodes: list[Similarity]
    believed: NDArray[np.bool_]
    cost: float


def solve(
    nodes: Sequence[Similarity], edges: Sequence[Edge], *, scale: bool = False, fixed: Iterable[int] = (0,)
) -> Solution:
    """Move the nodes to where the edges want them, in least squares.

    Args:
        nodes: a first estimate, such as edges of windows one after the other give it.
        edges: in any order.
        scale: whether nodes may grow (Sim(3)); else they keep their scale (SE(3)), which is for metric windows.
        fixed: numbers of nodes that stay. Of nodes that no chain of edges joins to one of these, the first stays.

    Returns:
        The solution. The same graph gives the same numbers.

    Raises:
        InputError: an edge between nodes that are not there or are the same, or with a deviation that is not positive.
        BackendUnavailableError: SciPy is not installed.
    """
    _check(nodes, edges)
    if not nodes:
        return Solution([], np.ones(len(edges), bool), 0.0)
    anchors = _anchors(len(nodes), edges, fixed)
    problem = _Problem.of(nodes, edges, scale, anchors)
    places = np.stack([node.matrix() for node in _placed(nodes, edges, anchors)])
    believed = np.ones(len(edges), bool)
    solved = list(nodes)
    if problem.free.size and edges:
        places, believed = _solve(problem, places)
        for node in problem.free.tolist():
            found = Similarity.of_matrix(places[node])
            solved[node] = found if scale else Similarity(found.rotation, found.translation, nodes[node].scale)
    cost = float(np.sum(problem.residuals(places)[believed] ** 2)) if edges else 0.0
    return Solution(solved, believed, cost)


def _check(nodes: Sequence[Similarity], edges: Sequence[Edge]) -> None:
    for number, edge in enumerate(edges):
        if not (0 <= edge.i < len(nodes) and 0 <= edge.j < len(nodes)) or edge.i == edge.j:
            raise InputError(
                f"edge {number} joins nodes {edge.i} and {edge.j}; give two different ones of the {len(nodes)} nodes"
            )
        deviations = (edge.rotation, edge.translation, edge.scale)
        if not all(0 < value < math.inf for value in deviations):
            raise InputError(f"edge {number} has the standard deviations {deviations}; give positive ones")


def _parts(count: int, edges: Iterable[Edge]) -> list[int]:
    """The first node of the part that each node belongs to, where edges join nodes to parts."""
    root = list(range(count))

    def find(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for edge in edges:
        first, second = sorted((find(edge.i), find(edge.j)))
        root[second] = first
    return [find(node) for node in range(count)]


def _anchors(count: int, edges: Sequence[Edge], fixed: Iterable[int]) -> set[int]:
    """Numbers of the nodes that stay: those that were asked for, and the first of each part without one."""
    anchors = {node for node in fixed if 0 <= node < count}
    part = _parts(count, edges)
    return anchors | set(part) - {part[node] for node in anchors}


def _placed(nodes: Sequence[Similarity], edges: Sequence[Edge], anchors: set[int]) -> list[Similarity]:
    """Return the nodes, with those that only loops join to an anchor brought to where a loop wants them: of several
    loops, the one that the others agree with most."""
    part = _parts(len(nodes), [edge for edge in edges if edge.kind == "window"])
    placed, result = {part[node] for node in anchors}, list(nodes)
    while True:
        moves: dict[int, list[tuple[Edge, Similarity]]] = {}
        for edge in edges:
            there, here = (edge.i, edge.j) if part[edge.i] in placed else (edge.j, edge.i)
            if part[there] in placed and part[here] not in placed:
                relative = edge.relative if here == edge.j else edge.relative.inverse()
                moves.setdefault(part[here], []).append((edge, result[there] @ relative @ result[here].inverse()))
        if not moves:
            return result
        moving, candidates = next(iter(moves.items()))
        moved = {node: result[node] for node in range(len(nodes)) if part[node] == moving}

        joining = [edge for edge, _ in candidates]
        best = min((move for _, move in candidates), key=partial(_disagreement, result, joining, moved))
        for node, place in moved.items():
            result[node] = best @ place
        placed.add(moving)


def _disagreement(
    nodes: Sequence[Similarity], edges: Sequence[Edge], part: Mapping[int, Similarity], move: Similarity
) -> float:
    """How little edges agree with a move of a part's nodes: the sum of their tangents, each of which counts up to 1."""
    ends = {node: move @ place for node, place in part.items()}
    off = [(ends.get(e.i, nodes[e.i]) @ e.relative).inverse() @ ends.get(e.j, nodes[e.j]) for e in edges]
    return float(np.sum(np.minimum(np.linalg.norm([one.log() for one in off], axis=1), 1)))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Edges as arrays; D is 6 or 7, the numbers of a tangent."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    wanted: Float64
    """(E, 4, 4), the inverses of the relative similarities."""
    precision: Float64
    """(E, D), over which deviations are divided."""
    is_loop: NDArray[np.bool_]
    free: NDArray[np.intp]
    """Numbers of the nodes that move, (F,)."""
    column: NDArray[np.intp]
    """Of each node among the free ones, or -1."""

    @classmethod
    def of(cls, nodes: Sequence[Similarity], edges: Sequence[Edge], scale: bool, anchors: set[int]) -> _Problem:
        free = np.array([node for node in range(len(nodes)) if node not in anchors], np.intp)
        column = np.full(len(nodes), -1, np.intp)
        column[free] = np.arange(len(free))
        deviations = [(*[edge.rotation] * 3, *[edge.translation] * 3, edge.scale) for edge in edges]
        return cls(
            np.array([edge.i for edge in edges], np.intp),
            np.array([edge.j for edge in edges], np.intp),
            np.array([edge.relative.inverse().matrix() for edge in edges]).reshape(-1, 4, 4),
            1 / np.array(deviations).reshape(-1, 7)[:, : 7 if scale else 6],
            np.array([edge.kind == "loop" for edge in edges], bool),
            free,
            column,
        )

    @property
    def size(self) -> int:
        """Numbers of a tangent."""
        return self.precision.shape[1]

    def residuals(self, places: Float64) -> Float64:
        """Return (E, D), in standard deviations."""
        between = inverse_matrices(places[self.first]) @ places[self.second]
        return log_matrices(self.wanted @ between)[:, : self.size] * self.precision

    def linearize(self, places: Float64) -> tuple[Float64, Any]:
        """Return residuals (E, D), and their derivatives as a sparse matrix (E * D, F * D), by tangents that move nodes
        as ``place @ exp(tangent)``."""
        between = inverse_matrices(places[self.first]) @ places[self.second]
        tangents = log_matrices(self.wanted @ between)
        by_second = _inverse_right_jacobians(tangents)
        by_first = -by_second @ _adjoints(inverse_matrices(between))
        cut = slice(0, self.size)
        precision = self.precision[:, :, None]
        shape = (*self.precision.shape, self.size)
        row = np.arange(self.precision.size).reshape(*self.precision.shape, 1)
        rows, columns, values = [], [], []
        for nodes, derivative in ((self.first, by_first), (self.second, by_second)):
            moves = self.column[nodes] >= 0
            column = self.column[nodes][:, None, None] * self.size + np.arange(self.size)
            rows.append(np.broadcast_to(row, shape)[moves].ravel())
            columns.append(np.broadcast_to(column, shape)[moves].ravel())
            values.append((derivative[:, cut, cut] * precision)[moves].ravel())
        jacobian = sparse_matrices().csr_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
            shape=(self.precision.size, len(self.free) * self.size),
        )
        return tangents[:, cut] * self.precision, jacobian

    def moved(self, places: Float64, step: Float64) -> Float64:
        """Return the places after a step (F * D,)."""
        result = places.copy()
        result[self.free] = places[self.free] @ exp_matrices(step.reshape(-1, self.size))
        return result


def _adjoints(matrices: Float64) -> Float64:
    """Return (E, 7, 7) that take tangents to those of the same motion seen through similarities (E, 4, 4)."""
    scale = np.cbrt(np.linalg.det(matrices[:, :3, :3]))[:, None, None]
    rotation, translation = matrices[:, :3, :3] / scale, matrices[:, :3, 3]
    result = np.zeros((len(matrices), 7, 7))
    result[:, :3, :3] = rotation
    result[:, 3:6, :3] = cross_matrices(translation) @ rotation
    result[:, 3:6, 3:6] = matrices[:, :3, :3]
    result[:, 3:6, 6] = -translation
    result[:, 6, 6] = 1
    return result


def _inverse_right_jacobians(tangents: Float64) -> Float64:
    """Return (E, 7, 7): by what log(exp(tangent) exp(d)) changes with a small d, from the series of Bernoulli numbers,
    which is exact to 1e-9 up to half a radian and to 1e-3 at half a turn."""
    bracket = np.zeros((len(tangents), 7, 7))
    turn, velocity, growth = tangents[:, :3], tangents[:, 3:6], tangents[:, 6]
    bracket[:, :3, :3] = cross_matrices(turn)
    bracket[:, 3:6, :3] = cross_matrices(velocity)
    bracket[:, 3:6, 3:6] = cross_matrices(turn) + growth[:, None, None] * np.eye(3)
    bracket[:, 3:6, 6] = -velocity
    result, power = np.tile(np.eye(7), (len(tangents), 1, 1)), np.eye(7)
    for factor in _SERIES:
        power = power @ bracket
        result += factor * power
    return result


def _solve(problem: _Problem, places: Float64) -> tuple[Float64, NDArray[np.bool_]]:
    """Return places, and which edges are believed."""
    believed = np.ones(len(problem.first), bool)
    loops = np.flatnonzero(problem.is_loop)
    for _ in range(_ROUNDS):
        before = believed.copy()
        if loops.size:
            believed[loops] = _choose(*_loops_beside_windows(problem, places, loops), problem.size)
        chosen_again = bool((believed == before).all())
        places = _descend(problem, places, believed)
        if chosen_again:
            break
    return places, believed


def _loops_beside_windows(problem: _Problem, places: Float64, loops: NDArray[np.intp]) -> tuple[Float64, Float64]:
    """Return what the loops would be off by if only windows counted, (L * D,), and its covariance (L * D, L * D): what
    windows are uncertain by, and a loop itself, whose part is the identity."""
    residuals, jacobian = problem.linearize(places)
    of_loop = np.repeat(problem.is_loop, problem.size)
    windows, ends = jacobian[~of_loop], jacobian[of_loop]
    solve = _factorized((windows.T @ windows).tocsc(), _LOOSE)
    off = residuals.ravel()[of_loop] - ends @ solve(windows.T @ residuals.ravel()[~of_loop])
    # So many loops at a time that what windows move with them is never there for all: it is dense.
    rows = _TOGETHER * problem.size
    parts = [ends[start : start + rows] for start in range(0, ends.shape[0], rows)]
    return off, np.eye(len(off)) + np.concatenate([ends @ solve(part.toarray().T) for part in parts], axis=1)


def _choose(off: Float64, covariance: Float64, size: int) -> NDArray[np.bool_]:
    """Return which loops (L,) to believe: those with which the cost of all windows and loops together is least, where a
    loop that is not believed costs :data:`LOOP_BOUND` squared.

    The search starts once with all loops and once with none, leaves out or takes in the loop by which the cost falls
    most, and ends where none does; the cheaper end counts.
    """
    best, least = np.zeros(len(off) // size, bool), math.inf
    for start in (True, False):
        chosen = np.full(len(off) // size, start)
        for _ in range(_MOVES * len(chosen)):
            cost, squares = _chosen_cost(off, covariance, chosen, size)
            gains = np.where(chosen, squares - LOOP_BOUND**2, LOOP_BOUND**2 - squares)
            move = int(np.argmax(gains))
            if gains[move] <= 0:
                break
            chosen[move] = not chosen[move]
        if cost < least:
            best, least = chosen, cost
    return best


def _chosen_cost(off: Float64, covariance: Float64, chosen: NDArray[np.bool_], size: int) -> tuple[float, Float64]:
    """Return the cost of believing the chosen loops (L,), and for every loop the squared distance, in standard
    deviations, from where windows and the other chosen loops want it (L,)."""
    inside = np.repeat(chosen, size)
    inverse = np.linalg.inv(covariance[np.ix_(inside, inside)])
    pull = inverse @ off[inside]
    squares = np.empty(len(chosen))
    blocks = np.arange(int(chosen.sum()) * size).reshape(-1, size)
    own = inverse[blocks[:, :, None], blocks[:, None, :]]
    squares[chosen] = np.sum(pull[blocks] * np.linalg.solve(own, pull[blocks][..., None])[..., 0], axis=1)
    outside = np.arange(len(off)).reshape(-1, size)[~chosen]
    across = covariance[outside.ravel()][:, inside].reshape(len(outside), size, int(inside.sum()))
    rest = off[outside] - across @ pull
    spread = covariance[outside[:, :, None], outside[:, None, :]] - across @ (inverse @ across.swapaxes(1, 2))
    squares[~chosen] = np.sum(rest * np.linalg.solve(spread, rest[..., None])[..., 0], axis=1)
    return float(off[inside] @ pull) + LOOP_BOUND**2 * len(outside), squares


def _descend(problem: _Problem, places: Float64, believed: NDArray[np.bool_]) -> Float64:
    """Return the places after damped Gauss-Newton steps, until the cost of the edges that are believed stands still."""
    counts = np.repeat(believed, problem.size)
    damping = _DAMPING[1]
    cost = float(np.sum(problem.residuals(places)[believed] ** 2))
    for _ in range(_STEPS):
        residuals, jacobian = problem.linearize(places)
        jacobian, residuals = jacobian[counts], residuals.ravel()[counts]
        matrix, gradient = (jacobian.T @ jacobian).tocsc(), jacobian.T @ residuals
        while True:
            tried = problem.moved(places, _factorized(matrix, damping)(-gradient))
            reached = float(np.sum(problem.residuals(tried)[believed] ** 2))
            if reached <= cost:
                break
            damping *= 10
            if damping > _DAMPING[2]:
                return places
        gained, cost, places = cost - reached, reached, tried
        damping = max(damping / 10, _DAMPING[0])
        if gained <= _CONVERGED * cost:
            break
    return places


def _factorized(matrix: Any, damping: float) -> Callable[[Float64], Float64]:
    """Return what solves equations with a sparse, symmetric matrix whose diagonal is raised by a share of itself."""
    sparse = sparse_matrices()
    diagonal = matrix.diagonal()
    damped = matrix + sparse.diags(damping * diagonal + np.finfo(np.float64).tiny, format="csc")
    # A positive definite matrix needs no pivots, and an ordering that keeps its symmetry fills it in least.
    factors = sparse.linalg.splu(
        damped, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    solve: Callable[[Float64], Float64] = factors.solve
    return solve


def sparse_matrices() -> Any:
    """Return SciPy's sparse matrices, and with them what solves their equations (BackendUnavailableError)."""
    try:
        import scipy.sparse.linalg
    except ImportError:
        raise BackendUnavailableError(
            "closing loops needs SciPy, which is not installed; pip install 'mapengine[map]'"
        ) from None
    return scipy.sparse
