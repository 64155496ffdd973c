"""The same scenes on a Ray cluster of two nodes, one of which goes away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mapengine.serving.batch.pools import RayPool
from mapengine.serving.batch.run import BatchError, Tally, run_batch
from mapengine.serving.batch.worker import Answer

from .small_scenes import InlinePool, leftovers, rows_of, small_batch, states_of, write_scenes

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each on this machine, started once."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # here, because its import takes seconds

    found = Cluster(initialize_head=True, head_node_args=NODE)
    found.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    yield found
    found.shutdown()


def test_scenes_survive_a_node_that_goes_away(cluster: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    scenes, out = write_scenes(tmp_path / "scenes", 24), tmp_path / "out"
    (scenes / "s007" / "0.png").write_bytes(b"noise")
    before: dict[str, int] = {}

    def written() -> dict[str, int]:
        return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("scenes/*/result.json")}

    def take_away(tally: Tally, answer: Answer) -> None:
        if tally.done == 8:
            before.update(written())
            (other,) = cluster.worker_nodes
            cluster.remove_node(other, allow_graceful=False)

    with RayPool(cluster.address, on_gpu=False) as pool:
        assert pool.processors() == 1
        tally = run_batch(small_batch(tiny_bundle, scenes, out), pool, progress=take_away)
        assert len(cluster.worker_nodes) == 0
        assert (tally.done, tally.failed, tally.left) == (23, 1, 0)
        assert len(states_of(out)) == 24
        assert "0.png" in rows_of(out)["s007"]["error"]
        assert before.items() <= written().items()  # nothing was done twice
        assert leftovers(out) == []
        # What a cluster did, a process of this machine finds done.
        again = run_batch(small_batch(tiny_bundle, scenes, out), InlinePool())
        assert (again.before, again.done, again.failed) == (23, 0, 1)
        # An engine that a node cannot load stops the batch, with the node's sentence.
        with pytest.raises(BatchError, match=r"the engine alone takes .* and a worker may take 1 MB"):
            run_batch(small_batch(tiny_bundle, scenes, tmp_path / "other", memory=1_000_000), pool)
