"""What is left of memory, as the kernel's files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamshard.stream.memory import memory_left

MB = 1 << 20


def tell(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {"proc/meminfo": f"MemTotal: {64 << 10} kB\nMemAvailable: {32 << 10} kB\nHugePages: 0\n"}
GROUP_V2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": f"{MB}\n",
    "sys/fs/cgroup/outer/memory.max": f"{20 * MB}\n",
    "sys/fs/cgroup/outer/memory.current": f"{18 * MB}\n",
    "sys/fs/cgroup/outer/memory.stat": f"inactive_file {2 * MB}\nactive_file {MB}\nshmem 5\n",
}
GROUP_V1 = {
    "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/elsewhere\n0::/\n",
    # In a container the group's path is the host's, and what is mounted is the group itself.
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{10 * MB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{4 * MB}\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\ntotal_active_file 4096\n",
}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        (MACHINE, 32 * MB),
        (MACHINE | GROUP_V2, 5 * MB),
        (MACHINE | GROUP_V1, 6 * MB + 4096),
        (GROUP_V1, 6 * MB + 4096),
    ],
    ids=["unknown", "machine", "v2", "v1", "v1 alone"],
)
def test_the_tightest_limit_counts_and_cached_files_do_not(
    tmp_path: Path, files: dict[str, str], left: int | None
) -> None:
    tell(tmp_path, files)
    assert memory_left(tmp_path) == left


def test_it_is_known_here() -> None:
    left = memory_left()
    assert left is not None
    assert left > MB
