"""Cores and memory that a container leaves to a process, read from trees of control groups."""

import pytest

from slm_np import machine


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """groups(lines, files) makes a tree of control groups, for a process with 8 cores. Returns (group file, root)."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def make(lines, files):
        root, group_file = tmp_path / "cgroup", tmp_path / "self"
        group_file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n", encoding="utf-8")
        return group_file, root

    return make


def version1(folder, quota, period=100_000):
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


HYBRID = ["12:memory:/docker/ab", "4:cpu,cpuacct:/docker/ab", "1:name=systemd:/docker/ab", "0::/docker/ab"]


@pytest.mark.parametrize(
    "lines, files, cores",
    [
        (["0::/"], {"cpu.max": "max 100000"}, 8),
        (["0::/"], {"cpu.max": "200000 100000"}, 2),
        (["0::/"], {"cpu.max": "150000 100000"}, 2),
        (["0::/"], {"cpu.max": "10000 100000"}, 1),
        (["0::/"], {"cpu.max": "6400000 100000"}, 8),
        (["0::/a/b"], {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (["0::/a/b"], {"a/cpu.max": "max 100000", "a/b/cpu.max": "50000 10000"}, 5),
        (["0::/a:b"], {"a:b/cpu.max": "20000 10000"}, 2),
        (["0::/not/mounted/here"], {"cpu.max": "400000 100000"}, 4),
        (["0::/../other"], {"cpu.max": "max 100000", "other/cpu.max": "100000 100000"}, 1),
        (["0::/"], {"cpu.max": "nonsense"}, 8),
        (["0::/"], {"cpu.max": "100 0"}, 8),
        (["garbage", "", "0::/"], {"cpu.max": "200000 100000"}, 2),
        (["4:cpu,cpuacct:/"], version1("cpu,cpuacct", -1), 8),
        (["4:cpu,cpuacct:/"], version1("cpu,cpuacct", 250_000), 3),
        (["4:cpu,cpuacct:/docker/ab"], version1("cpu,cpuacct/docker/ab", 200_000), 2),
        (["4:cpu,cpuacct:/docker/ab"], version1("cpu,cpuacct", 200_000), 2),
        (["4:cpu:/pod/ab"], version1("cpu/pod", 300_000) | version1("cpu/pod/ab", -1), 3),
        (["4:cpu:/"], version1("cpu", 500_000, 250_000), 2),
        (["4:cpuset:/", "5:cpuacct:/"], version1("cpuset", 100_000) | version1("cpuacct", 100_000), 8),
        (HYBRID, version1("cpu/docker/ab", 600_000) | {"unified/docker/ab/cgroup.procs": ""}, 6),
        (["0::/"], {}, 8),
        ([], {"cpu.max": "200000 100000"}, 8),
    ],
)
def test_a_cpu_quota_bounds_the_cores(groups, lines, files, cores):
    assert machine.available_cores(*groups(lines, files)) == cores


def test_affinity_bounds_a_quota(groups, monkeypatch):
    tree = groups(["0::/"], {"cpu.max": "600000 100000"})
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.available_cores(*tree) == 1
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert machine.available_cores(*tree) == 1
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 5)
    assert machine.available_cores(*tree) == 5


def test_cores_without_control_groups(groups, tmp_path):
    assert machine.available_cores(tmp_path / "missing", tmp_path) == 8


def memory(folder, limit, used, inactive):
    return {
        f"{folder}memory.max": str(limit),
        f"{folder}memory.current": str(used),
        f"{folder}memory.stat": f"anon 5\ninactive_file {inactive}",
    }


def test_available_memory_respects_the_limits_of_nested_groups(groups):
    inner, outer = memory("a/b/", 1_000_000, 700_000, 50_000), memory("a/", 2_000_000, 1_900_000, 0)
    assert machine._container_available(*groups(["0::/a/b"], inner)) == 350_000
    assert machine._container_available(*groups(["0::/a/b"], inner | outer)) == 100_000
    unlimited = groups(["0::/a/b"], memory("a/b/", "max", 700_000, 50_000) | memory("a/", "max", 1, 0))
    with pytest.raises(ValueError):
        machine._container_available(*unlimited)
    assert machine.available_bytes() is None or machine.available_bytes() > 0


def test_available_memory_of_version_1(groups):
    files = {
        "memory/docker/ab/memory.limit_in_bytes": "1000000",
        "memory/docker/ab/memory.usage_in_bytes": "700000",
        "memory/docker/ab/memory.stat": "inactive_file 1\ntotal_inactive_file 50000",
    }
    assert machine._container_available(*groups(HYBRID, files)) == 350_000
