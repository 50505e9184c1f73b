"""How much memory is left: of the machine, and of the control groups that this process is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MEMORY_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_MEMORY_V2 = ("memory.max", "memory.current", "")


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that can still be used before the kernel ends a process; None where it doesn't say.

    Args:
        root: Where `proc` and `sys` are.
    """
    left = [bytes_left for bytes_left in (_of_machine(root), *_of_groups(root)) if bytes_left]
    return min(left, default=None)


def _of_machine(root: Path) -> int | None:
    try:
        facts = _table(root / "proc/meminfo")
    except OSError:
        return None
    return facts["MemAvailable"] * 1024 if "MemAvailable" in facts else None


def _of_groups(root: Path) -> Iterator[int]:
    """Of every group with a limit, from this process's own up to the one that is mounted."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        names, mount = (_MEMORY_V2, "") if number == "0" else (_MEMORY_V1, "memory")
        top = root / "sys/fs/cgroup" / mount
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            left = _of_group(folder, *names)
            if left is not None:
                yield left
            if folder == top:
                break


def _of_group(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    try:
        # Cached files count as used, and are dropped where memory is asked for.
        facts = _table(folder / "memory.stat")
        cached = facts[f"{prefix}inactive_file"] + facts[f"{prefix}active_file"]
        return max(_number(folder / limit) - _number(folder / used) + cached, 1)
    except (OSError, KeyError, ValueError):  # not mounted here, or "max"
        return None


def _number(path: Path) -> int:
    return int(path.read_text())


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
