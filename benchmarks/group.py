"""All-reduce of backend "elastic" against gloo: 2, 4 and 8 ranks on this machine, 4 ranks on two hosts.

Every rank is in a group of each backend; the two take turns, case by case and repeat by repeat, so that a slow minute
of the machine hits both. A repeat's time is that of its slowest rank, its CPU time that of all ranks, threads included.
Two hosts are two network namespaces with a cable between them: needs root, and is left out with the reason elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks import machine
from benchmarks.files import write_json
from benchmarks.group_rank import BACKENDS, KB, MIB, sizes_up_to
from benchmarks.hosts import Hosts

RANK_PROGRAM = Path(__file__).resolve().parent / "group_rank.py"
GROUP_SIZES = (2, 4, 8)
LIMIT_S = 240

DEFINITIONS = {
    "allreduce_64mb_n4": "gloo ms / ours, 64 MiB, 4 ranks of one host",
    "allreduce_16mb_n4": "the same, 16 MiB",
    "allreduce_1mb_n4": "the same, 1 MiB",
    "latency_4kb_n8": "gloo ms / ours, 4 KiB, 8 ranks of one host",
    "cpu_per_gb": "our CPU seconds / gloo's, 1 to 64 MiB on 2, 4 and 8 ranks of one host, each size by its bytes; less"
    " is better",
    "tcp_64mb_n4": "gloo ms / ours, 64 MiB, 2 + 2 ranks on two hosts",
}
FLOORS = {
    "allreduce_64mb_n4": (">=", 2.0),
    "allreduce_16mb_n4": (">=", 2.0),
    "allreduce_1mb_n4": (">=", 2.0),
    "latency_4kb_n8": (">=", 3.0),
    "cpu_per_gb": ("<=", 1.0),
    "tcp_64mb_n4": (">=", 0.95),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one size took in one group; the nth entries of both backends come from the same repeat."""

    hosts: int
    num_ranks: int
    size_bytes: int
    times_ms: dict[str, list[float]]
    """By backend, of the slowest rank, one per repeat."""
    cpu_s: dict[str, list[float]]
    """By backend, of all ranks together, one per repeat."""

    def median_ms(self, backend: str) -> float:
        return statistics.median(self.times_ms[backend])

    @property
    def speedup(self) -> float:
        """Median over the repeats of gloo's time / ours."""
        pairs = zip(self.times_ms["gloo"], self.times_ms["elastic"], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def cpu_s_per_gb(self, backend: str) -> float:
        return statistics.median(self.cpu_s[backend]) / self.size_bytes * 1e9


def run_job(
    num_ranks: int,
    *,
    largest_bytes: int,
    hosts: int = 1,
    address: str = "127.0.0.1",
    command_of: Callable[[int], list[str]] = lambda rank: [],
) -> list[Case]:
    """Start the ranks, wait for them, and put their reports together.

    Args:
        num_ranks: in the group.
        largest_bytes: no tensor is larger.
        hosts: they run on; rank 0 at ``address``.
        command_of: rank -> words before its command line.

    Raises:
        RuntimeError: a rank failed; the message has the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "MASTER_ADDR": address,
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(num_ranks),
            "GLOO_SOCKET_IFNAME": "lo" if hosts == 1 else "eth0",
        }
        ranks = [
            subprocess.Popen(
                [*command_of(rank), sys.executable, "-P", str(RANK_PROGRAM), directory, str(largest_bytes)],
                env={**environment, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(num_ranks)
        ]
        _wait_for(ranks)
        reports = [json.loads(Path(directory, f"{rank}.json").read_text()) for rank in range(num_ranks)]
    return [_case(reports, size_bytes, hosts) for size_bytes in sizes_up_to(largest_bytes)]


def _wait_for(ranks: Sequence[subprocess.Popen[str]]) -> None:
    try:
        outputs = [rank.communicate(timeout=LIMIT_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    failed = [number for number, rank in enumerate(ranks) if rank.returncode != 0]
    if failed:
        raise RuntimeError(f"ranks {failed} failed; rank {failed[0]} wrote:\n{outputs[failed[0]][-3000:]}")


def _case(reports: Sequence[dict[str, Any]], size_bytes: int, hosts: int) -> Case:
    """One size from the reports of all ranks."""
    cases = [report[str(size_bytes)] for report in reports]

    def each(figure: str, backend: str, join: Callable[[Sequence[float]], float]) -> list[float]:
        return [join(of_ranks) for of_ranks in zip(*(case[backend][figure] for case in cases), strict=True)]

    return Case(
        hosts=hosts,
        num_ranks=len(reports),
        size_bytes=size_bytes,
        times_ms={backend: each("ms", backend, max) for backend in BACKENDS},
        cpu_s={backend: each("cpu_s", backend, sum) for backend in BACKENDS},
    )


def compute_ratios(cases: Sequence[Case]) -> dict[str, float | None]:
    """All ratios; None for one whose cases were left out."""
    by_key = {(case.hosts, case.num_ranks, case.size_bytes): case for case in cases}

    def speedup(hosts: int, num_ranks: int, size_bytes: int) -> float | None:
        case = by_key.get((hosts, num_ranks, size_bytes))
        return case.speedup if case else None

    large = [case for case in cases if case.hosts == 1 and case.size_bytes >= MIB]
    cpu = {backend: sum(case.cpu_s_per_gb(backend) for case in large) for backend in BACKENDS}
    return {
        "allreduce_64mb_n4": speedup(1, 4, 64 * MIB),
        "allreduce_16mb_n4": speedup(1, 4, 16 * MIB),
        "allreduce_1mb_n4": speedup(1, 4, MIB),
        "latency_4kb_n8": speedup(1, 8, 4 * KB),
        "cpu_per_gb": cpu["elastic"] / cpu["gloo"] if large else None,
        "tcp_64mb_n4": speedup(2, 4, 64 * MIB),
    }


def meets(name: str, ratio: float | None) -> bool | None:
    """Whether a ratio is on the right side of its floor; None if it was not measured."""
    relation, floor = FLOORS[name]
    if ratio is None:
        return None
    return ratio >= floor if relation == ">=" else ratio <= floor


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def run_on_two_hosts(num_ranks: int, largest_bytes: int) -> list[Case]:
    """The same with half of the ranks in one network namespace and half in another."""
    with Hosts(2) as hosts:
        return run_job(
            num_ranks,
            largest_bytes=largest_bytes,
            hosts=2,
            address=hosts[0].address,
            command_of=lambda rank: hosts[rank * 2 // num_ranks].command(),
        )


def print_report(report: dict[str, Any], cases: Sequence[Case]) -> None:
    print(f"{'hosts':>5} {'ranks':>5} {'KiB':>6} {'gloo ms':>9} {'ours ms':>9} {'gloo/ours':>9} {'CPU ours/gloo':>13}")
    for case in cases:
        cpu = case.cpu_s_per_gb("elastic") / case.cpu_s_per_gb("gloo")
        print(
            f"{case.hosts:5} {case.num_ranks:5} {case.size_bytes // KB:6} {case.median_ms('gloo'):9.2f} "
            f"{case.median_ms('elastic'):9.2f} {case.speedup:9.2f} {cpu:13.2f}"
        )
    for name, ratio in report["ratios"].items():
        relation, floor = FLOORS[name]
        verdict = {True: "", False: "  MISSED", None: ""}[meets(name, ratio)]
        shown = "left out" if ratio is None else f"{ratio:.2f}"
        print(f"{name:18} {shown:>8} (floor {relation} {floor:g}){verdict}")
    if report["two_hosts_left_out"]:
        print(f"two hosts left out: {report['two_hosts_left_out']}")


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the report goes")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(GROUP_SIZES), help="group sizes (%(default)s)")
    parser.add_argument("--largest-mb", type=int, default=64, help="MiB of the largest tensor (%(default)s)")
    parser.add_argument("--no-hosts", action="store_true", help="leave out the two hosts")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ranks and namespaces go as well
    largest_bytes = options.largest_mb * MIB
    cases = [case for n in options.ranks for case in run_job(n, largest_bytes=largest_bytes)]
    problem = "--no-hosts" if options.no_hosts else Hosts.problem()
    if not problem:
        cases += run_on_two_hosts(4, largest_bytes)
    ratios = compute_ratios(cases)
    report = {
        "ratios": ratios,
        "floors": {name: {"relation": relation, "floor": floor} for name, (relation, floor) in FLOORS.items()},
        "missed": [name for name, ratio in ratios.items() if meets(name, ratio) is False],
        "definitions": DEFINITIONS,
        "two_hosts_left_out": problem,
        "cases": [asdict(case) for case in cases],
        "machine": machine.describe(Path.cwd()),
    }
    write_json(options.json, report)
    print_report(report, cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
