"""Deltas against full checkpoints: bytes written, time until durable, and what comparing costs where all changes.

    python -m benchmarks.deltas --mb 512 --repeats 7 --json FILE

Three states of ``--mb`` MB: an adapter of 1 % on a frozen base (``lora``), an embedding of which 2 % of the rows change
(``rows``), and one in which everything changes (``dense``). Full and delta checkpointers of each take turns at the same
states; medians and best of the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from datastates import Checkpointer

MB = 10**6
ROW_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One workload under one kind of checkpoints; medians, and times at best."""

    workload: str
    kind: str
    written_mb: float
    safe_ms: float
    safe_best_ms: float
    durable_ms: float
    durable_best_ms: float


def table(mb: int) -> torch.Tensor:
    """[rows, 4096] float32."""
    return torch.randn(mb * MB // ROW_BYTES, ROW_BYTES // 4)


def touch_adapter(state: torch.Tensor) -> None:
    state[: len(state) // 100] += 1


def touch_rows(state: torch.Tensor) -> None:
    state[torch.randperm(len(state))[: len(state) // 50]] += 1


def touch_all(state: torch.Tensor) -> None:
    state += 1


WORKLOADS: dict[str, Callable[[torch.Tensor], None]] = {"lora": touch_adapter, "rows": touch_rows, "dense": touch_all}
KINDS: dict[str, int | None] = {"full": None, "delta": 1 << 30}


def measure(directory: Path, workload: str, mb: int, repeats: int) -> list[Figure]:
    """Full and delta checkpoints in turns, each of the same values."""
    state = {"state": table(mb)}
    open_ones = {
        kind: Checkpointer(directory / f"{workload}-{kind}", full_every=full_every, lazy=("state",), keep_last=1)
        for kind, full_every in KINDS.items()
    }
    samples: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for step in range(repeats + 2):  # the first is full in any case, the second the first that compares
        WORKLOADS[workload](state["state"])
        order = list(KINDS) if step % 2 else list(reversed(KINDS))
        for kind in order:
            sample = save(open_ones[kind], step, state)
            if step >= 2:
                samples[kind].append(sample)
    for checkpoints in open_ones.values():
        checkpoints.close()
    return [figure(workload, kind, taken) for kind, taken in samples.items()]


def save(checkpoints: Checkpointer, step: int, state: dict[str, torch.Tensor]) -> tuple[float, float, float]:
    """(bytes written, seconds until the state may change, seconds until durable)."""
    written = checkpoints.stats().bytes_written_total
    begun_s = time.perf_counter()
    taken = checkpoints.checkpoint(step, state)
    checkpoints.gate()
    safe_s = time.perf_counter() - begun_s
    taken.durable.result()
    durable_s = time.perf_counter() - begun_s
    return checkpoints.stats().bytes_written_total - written, safe_s, durable_s


def figure(workload: str, kind: str, samples: list[tuple[float, float, float]]) -> Figure:
    written, safe_s, durable_s = zip(*samples, strict=True)
    return Figure(
        workload=workload,
        kind=kind,
        written_mb=round(statistics.median(written) / MB, 2),
        safe_ms=round(1e3 * statistics.median(safe_s), 1),
        safe_best_ms=round(1e3 * min(safe_s), 1),
        durable_ms=round(1e3 * statistics.median(durable_s), 1),
        durable_best_ms=round(1e3 * min(durable_s), 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=512, help="size of each state, MB (default %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=7, help="measured checkpoints of each kind (default %(default)s)"
    )
    parser.add_argument("--directory", type=Path, default=None, help="where to write (default: a temporary directory)")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for workload in WORKLOADS:
            for found in measure(Path(directory), workload, options.mb, options.repeats):
                figures.append(found)
                print(
                    f"{found.workload:6} {found.kind:6} {found.written_mb:8.2f} MB written; "
                    f"safe {found.safe_ms:7.1f} ms, best {found.safe_best_ms:7.1f}; "
                    f"durable {found.durable_ms:7.1f} ms, best {found.durable_best_ms:7.1f}"
                )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(found) for found in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
