"""Limits of control groups, read from trees that are laid out as Linux and its containers lay them out."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mapengine.runtime.system.control_groups import MemoryLimits, memory_limits, processor_limit
from mapengine.runtime.system.machine import attainable_bytes, free_bytes, resident_bytes, usable_processors

MIB = 2**20
V2 = "30 23 0:26 {mounted} {top} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {mounted} {top} rw,relatime shared:3 master:1 - cgroup cgroup rw,{controllers}"

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes ``proc`` and the groups of a machine: contents by path, lists of lines joined."""

    def make(group: str, mounts: list[str], files: dict[str, str]) -> Path:
        contents = {"proc/self/cgroup": group, "proc/self/mountinfo": "\n".join(mounts)} | files
        for name, content in contents.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content + "\n")
        return tmp_path

    return make


def version_2(mounted: str = "/", top: str = "/sys/fs/cgroup") -> str:
    return V2.format(mounted=mounted, top=top)


def version_1(controllers: str, mounted: str = "/") -> str:
    top = f"/sys/fs/cgroup/{controllers}"
    return V1.format(mounted=mounted, top=top, controllers=controllers)


def test_a_container_of_version_2_sees_its_own_group_as_the_root(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory.max": str(220 * MIB),
        "sys/fs/cgroup/memory.high": "max",
        "sys/fs/cgroup/memory.current": str(100 * MIB),
        "sys/fs/cgroup/memory.stat": f"anon {60 * MIB}\nfile {40 * MIB}\ninactive_file {30 * MIB}\nactive_file 1",
        "sys/fs/cgroup/cpu.max": "150000 100000",
    }
    root = tree("0::/", [version_2()], files)
    assert memory_limits(root) == MemoryLimits(220 * MIB, 150 * MIB)
    assert processor_limit(root) == 1.5
    assert free_bytes(root) == 150 * MIB
    assert attainable_bytes(root) == min(150 * MIB + resident_bytes(), 220 * MIB)
    assert usable_processors(root) == min(2, usable_processors())


def test_every_group_above_limits_too(tree: Tree) -> None:
    base = "sys/fs/cgroup/user.slice/job 1/step"
    files = {
        f"{base}/memory.max": "max",
        f"{base}/memory.current": str(10 * MIB),
        f"{base}/cpu.max": "max 100000",
        "sys/fs/cgroup/user.slice/job 1/memory.max": str(900 * MIB),
        "sys/fs/cgroup/user.slice/job 1/memory.high": str(800 * MIB),
        "sys/fs/cgroup/user.slice/job 1/memory.current": str(500 * MIB),
        "sys/fs/cgroup/user.slice/job 1/cpu.max": "300000 50000",
        "sys/fs/cgroup/user.slice/memory.max": str(850 * MIB),
        "sys/fs/cgroup/user.slice/memory.current": str(700 * MIB),
        "sys/fs/cgroup/user.slice/cpu.max": "400000 100000",
    }
    # Beyond `high` nothing is killed, but nothing moves either; the group above has the least left.
    root = tree("0::/user.slice/job 1/step", [version_2()], files)
    assert memory_limits(root) == MemoryLimits(800 * MIB, 150 * MIB)
    assert processor_limit(root) == 4


@pytest.mark.parametrize(
    ("group", "mounted"),
    [
        ("/docker/abc", "/docker/abc"),  # a container that sees the names of outside, of groups and of the mount
        ("/docker/abc", "/"),  # of groups alone
        ("/../../elsewhere", "/"),  # a process of another name space
        ("/other", "/docker/abc"),
        ("/", "/../.."),
    ],
)
def test_where_the_path_has_no_folder_the_mount_point_stands_for_the_group(
    group: str, mounted: str, tree: Tree
) -> None:
    files = {
        "sys/fs/cgroup/memory.max": str(300 * MIB),
        "sys/fs/cgroup/memory.current": str(100 * MIB),
        "elsewhere/memory.max": str(MIB),
    }
    assert memory_limits(tree(f"0::{group}", [version_2(mounted)], files)).free == 200 * MIB


def test_a_group_below_what_is_mounted(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory.max": str(300 * MIB),
        "sys/fs/cgroup/memory.current": str(100 * MIB),
        "sys/fs/cgroup/task/memory.max": str(50 * MIB),
        "sys/fs/cgroup/task/memory.current": str(20 * MIB),
    }
    root = tree("0::/docker/abc/task", [version_2("/docker/abc")], files)
    assert memory_limits(root) == MemoryLimits(50 * MIB, 30 * MIB)
    assert processor_limit(root) == math.inf
    assert memory_limits(tree("0::/docker/abcd/task", [version_2("/docker/abc")], files)).free == 200 * MIB


def test_version_1_has_a_tree_per_controller(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": str(9223372036854771712),
        "sys/fs/cgroup/memory/docker/a/memory.usage_in_bytes": str(80 * MIB),
        "sys/fs/cgroup/memory/docker/a/memory.stat": f"inactive_file 7\ntotal_inactive_file {20 * MIB}\n"
        f"hierarchical_memory_limit {400 * MIB}\nhierarchical_memsw_limit 9223372036854771712",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us": "50000",
        "sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    mounts = ["31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw", version_1("memory"), version_1("cpu,cpuacct")]
    root = tree("4:memory:/docker/a\n2:cpu,cpuacct:/jobs\n1:name=systemd:/x\n0::/", mounts, files)
    assert memory_limits(root) == MemoryLimits(400 * MIB, 340 * MIB)
    assert processor_limit(root) == 0.5
    assert usable_processors(root) == 1  # half a processor needs a thread


def test_swap_that_is_used_up_is_a_limit_of_version_1(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(200 * MIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(50 * MIB),
        "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": str(250 * MIB),
        "sys/fs/cgroup/memory/memory.memsw.usage_in_bytes": str(240 * MIB),
    }
    assert memory_limits(tree("4:memory:/", [version_1("memory")], files)).free == 10 * MIB


def test_a_group_of_version_1_that_does_not_count_what_is_below_limits_nothing(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(MIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "0",
        "sys/fs/cgroup/memory/memory.use_hierarchy": "0",
    }
    root = tree("4:memory:/a", [version_1("memory")], files)
    assert memory_limits(root) == MemoryLimits()
    assert processor_limit(root) == math.inf


def test_both_versions_at_once(tree: Tree) -> None:
    files = {
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(300 * MIB),
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(100 * MIB),
        "sys/fs/cgroup/unified/b/cpu.max": "250000 100000",
    }
    mounts = [version_1("memory"), version_2(top="/sys/fs/cgroup/unified")]
    root = tree("4:memory:/a\n0::/b", mounts, files)
    assert memory_limits(root) == MemoryLimits(300 * MIB, 200 * MIB)
    assert processor_limit(root) == 2.5


def test_more_than_the_limit_leaves_nothing(tree: Tree) -> None:
    files = {"sys/fs/cgroup/memory.max": str(10 * MIB), "sys/fs/cgroup/memory.current": str(12 * MIB)}
    root = tree("0::/", [version_2()], files)
    assert free_bytes(root) == 0
    assert attainable_bytes(root) == min(resident_bytes(), 10 * MIB)


def test_a_mount_point_with_a_blank_in_its_name(tree: Tree) -> None:
    files = {"control groups/memory.max": str(10 * MIB), "control groups/memory.current": str(MIB)}
    assert memory_limits(tree("0::/", [version_2(top="/control\\040groups")], files)).free == 9 * MIB


@pytest.mark.parametrize(
    ("group", "mounts", "files"),
    [
        ("0::/", [version_2()], {}),  # the root of the machine has no such files
        ("0::/", [version_2()], {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/cpu.max": "max 100000"}),
        ("0::/", [version_2()], {"sys/fs/cgroup/memory.max": "-5 \x00", "sys/fs/cgroup/cpu.max": "100000 0"}),
        ("0::/", [version_2()], {"sys/fs/cgroup/memory.max": "", "sys/fs/cgroup/cpu.max": ""}),
        ("4:memory:/", [version_2()], {"sys/fs/cgroup/memory.max": "5"}),  # another hierarchy
        ("nonsense\n:\n::", ["nonsense", "- - -", "1 2 3 4 5 - cgroup2 a"], {"sys/fs/cgroup/memory.max": "5"}),
        ("", [], {}),
    ],
)
def test_what_says_nothing_is_no_limit(group: str, mounts: list[str], files: dict[str, str], tree: Tree) -> None:
    root = tree(group, mounts, files)
    assert memory_limits(root) == MemoryLimits()
    assert processor_limit(root) == math.inf
    assert usable_processors(root) == usable_processors()
    assert free_bytes(root) > 0


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == MemoryLimits()
    assert processor_limit(tmp_path) == math.inf


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="this system has no limit of address space")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_address_space_and_data_are_limits_of_free_memory(limit: str) -> None:
    script = (
        "import resource, psutil\n"
        "from mapengine.runtime.system.machine import attainable_bytes, free_bytes, resident_bytes\n"
        "found = psutil.Process().memory_info()\n"
        f"held = found.vms if {limit!r} == 'RLIMIT_AS' else found.data\n"
        f"resource.setrlimit(resource.{limit}, (held + 100 * 2**20,) * 2)\n"
        "print(free_bytes(), attainable_bytes() - resident_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for free in map(int, done.stdout.split()):
        assert 90 * MIB < free <= 100 * MIB
