"""One rank of ``group.py``: ``python group_rank.py DIRECTORY LARGEST`` writes DIRECTORY/RANK.json.

LARGEST: no tensor of more bytes than this.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import torch
import torch.distributed as dist

import elaswave  # noqa: F401  (registers the backend)

KB = 1 << 10
MIB = 1 << 20
CASES = {4 * KB: 41, MIB: 21, 16 * MIB: 9, 64 * MIB: 9}
"""Bytes of a tensor -> how often it is reduced with each backend."""
BACKENDS = ("gloo", "elastic")


def sizes_up_to(largest_bytes: int) -> list[int]:
    """The cases that are no larger."""
    return [size_bytes for size_bytes in CASES if size_bytes <= largest_bytes]


def measure(groups: dict[str, Any], size_bytes: int, num_repeats: int) -> dict[str, dict[str, list[float]]]:
    """Backend -> milliseconds and CPU seconds of this rank, one per repeat.

    The backends take turns, and who begins alternates. The barrier before each is the same one for both.
    """
    tensor = torch.zeros(size_bytes // 4)
    figures: dict[str, dict[str, list[float]]] = {backend: {"ms": [], "cpu_s": []} for backend in BACKENDS}
    for repeat in range(num_repeats):
        for backend in BACKENDS if repeat % 2 == 0 else reversed(BACKENDS):
            dist.barrier(group=groups["elastic"])
            cpu_s, begin_s = time.process_time(), time.perf_counter()
            dist.all_reduce(tensor, group=groups[backend])
            figures[backend]["ms"].append((time.perf_counter() - begin_s) * 1e3)
            figures[backend]["cpu_s"].append(time.process_time() - cpu_s)
    return figures


def check(group: Any, size_bytes: int) -> None:
    """Warms up, and makes sure that what is timed is a sum over all ranks."""
    tensor = torch.arange(size_bytes // 4, dtype=torch.float32) % 1000 + dist.get_rank()
    expected = tensor * dist.get_world_size()
    expected += sum(range(dist.get_world_size())) - dist.get_rank() * dist.get_world_size()
    dist.all_reduce(tensor, group=group)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def main() -> None:
    """Measure all cases and leave the report."""
    torch.set_num_threads(1)
    dist.init_process_group("elastic")
    groups = {"elastic": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
    report = {}
    for size_bytes in sizes_up_to(int(sys.argv[2])):
        for group in groups.values():
            check(group, size_bytes)
        report[size_bytes] = measure(groups, size_bytes, CASES[size_bytes])
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
