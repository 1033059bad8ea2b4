from __future__ import annotations

from pathlib import Path

import pytest

from services.worker.drivers.limits import Cgroups, Limits, _own_cgroups

V1_MOUNTS = """\
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
"""


def test_own_cgroups_are_found_in_both_versions() -> None:
    found = _own_cgroups(V1_MOUNTS, "8:pids:/\n4:memory:/agents/one\n2:cpu,cpuacct:/x\n0::/\n")
    assert found["memory"] == Path("/sys/fs/cgroup/memory/agents/one")
    assert found["pids"] == Path("/sys/fs/cgroup/pids")
    assert found["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct/x")
    assert found[""] == Path("/sys/fs/cgroup/unified")


def test_without_controllers_there_are_no_limits(tmp_path: Path) -> None:
    mounts, own = tmp_path / "mounts", tmp_path / "own"
    mounts.write_text("tmpfs /tmp tmpfs rw 0 0\n")
    own.write_text("")
    assert Cgroups.find("w", mounts=str(mounts), own=str(own)) is None
    mounts.write_text(f"cgroup2 {tmp_path}/nothing cgroup2 rw 0 0\n")
    own.write_text("0::/\n")
    assert Cgroups.find("w", mounts=str(mounts), own=str(own)) is None


def test_a_machine_gets_its_limits_and_nothing_is_left_of_them() -> None:
    cgroups = Cgroups.find("limits-test")
    if cgroups is None:
        pytest.skip("no cgroup is writable here")
    membership = cgroups.create("m1", Limits(memory_bytes=64 << 20, swap_bytes=0, processes=17))
    folders = [Path(path).parent for path in membership.join]
    assert all(folder.name == "m1" for folder in folders)
    assert (folders[-1] / "pids.max").read_text().strip() == "17"
    limit = folders[0] / ("memory.limit_in_bytes" if len(folders) == 2 else "memory.max")
    assert limit.read_text().strip() == str(64 << 20)
    cgroups.create("m1", Limits(memory_bytes=128 << 20, swap_bytes=1 << 20, processes=18))
    assert limit.read_text().strip() == str(128 << 20)
    cgroups.remove("m1")
    cgroups.close()
    assert not any(folder.exists() or folder.parent.exists() for folder in folders)


def test_a_worker_of_the_same_name_that_ends_does_not_take_the_limits_with_it() -> None:
    one, other = Cgroups.find("limits-test"), Cgroups.find("limits-test")
    if one is None or other is None:
        pytest.skip("no cgroup is writable here")
    other.close()
    membership = one.create("m1", Limits(memory_bytes=64 << 20, swap_bytes=0, processes=17))
    assert all(Path(path).exists() for path in membership.join)
    one.remove("m1")
    one.close()
