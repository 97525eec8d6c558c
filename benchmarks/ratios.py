"""From samples to figures: pure arithmetic, no clock and no disk.

A ratio is the median over repeats of (side that divides first / other side), both from the same repeat, so that a slow
minute of the machine hits both. MB = 10^6 bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.ceilings import Ceiling
from benchmarks.machine import MB
from benchmarks.protocol import Sample
from benchmarks.reading import Reading, ReadingSample
from benchmarks.tiny_tensors import TinySample

DEFINITIONS = {
    "stall_vs_best_peer": "our stall / that of the correct peer with the least median stall; less is better",
    "durable_vs_ceiling": "our durable MB/s / plain O_DIRECT write + fsync MB/s",
    "durable_vs_best_peer": "our durable MB/s / that of the correct peer with the highest median",
    "restore_vs_ceiling": "our cold restore MB/s / plain cold O_DIRECT read MB/s",
    "restore_vs_dcp": "our cold restore MB/s / the best of torch.distributed.checkpoint's in that repeat",
    "reshard_vs_dcp": "our MB/s / DCP's: what 4 ranks saved by rows loaded by 2 ranks by rows, cold",
    "reshard_columns_vs_dcp": "the same by columns: both ranks need a part of everything that is stored",
    "one_tensor_vs_dcp": "our ms / DCP's to open a checkpoint of many tensors and read one, cold; less is better",
    "tiny_tensors_vs_dcp": "min over save (after a first one) and load of dcp_sync seconds / our seconds, many 4 KB",
}

Samples = Mapping[str, Sequence[Sample]]
"""Samples by contender; the n-th of each contender come from the n-th repeat."""


def durable_mb_s(sample: Sample) -> float:
    """Bytes of the tensors over the time from the call to durable, nothing beside it."""
    return sample.num_bytes / sample.durable_s / MB


def restore_mb_s(sample: Sample) -> float:
    """Bytes of the tensors over the time to have them back in place, cold."""
    return sample.num_bytes / sample.restore_s / MB


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """One contender's figures: medians, and every raw sample."""

    def median(figure: Callable[[Sample], float]) -> float:
        return statistics.median(figure(sample) for sample in samples)

    return {
        "call_ms": median(lambda s: s.call_s) * 1e3,
        "stall_ms": median(lambda s: s.stall_s) * 1e3,
        "safe_ms": median(lambda s: s.safe_s) * 1e3,
        "durable_ms": median(lambda s: s.durable_s) * 1e3,
        "durable_mb_s": median(durable_mb_s),
        "restore_mb_s": median(restore_mb_s),
        "peak_extra_mb": max(sample.peak_extra_mb for sample in samples),
        "correct": is_correct(samples),
        "gate_ms": median(lambda s: s.gate_s) * 1e3,
        "plain_step_ms": median(lambda s: s.plain_step_s) * 1e3,
        "overlapped_step_ms": median(lambda s: s.overlapped_step_s) * 1e3,
        "stall_until_durable_ms": median(lambda s: s.stall_until_durable_s) * 1e3,
        "safe_overlapped_ms": median(lambda s: s.safe_overlapped_s) * 1e3,
        "durable_overlapped_ms": median(lambda s: s.durable_overlapped_s) * 1e3,
        "repeats": len(samples),
        "samples": [_raw(sample) for sample in samples],
    }


def is_correct(samples: Sequence[Sample]) -> bool:
    """Whether every repeat gave back the bits at the call."""
    return all(sample.correct for sample in samples)


def ceiling_summary(ceilings: Sequence[Ceiling]) -> dict[str, Any]:
    """Medians, and every raw measurement."""
    return {
        "write_mb_s": statistics.median(ceiling.write_mb_s for ceiling in ceilings),
        "read_mb_s": statistics.median(ceiling.read_mb_s for ceiling in ceilings),
        "memcpy_gb_s": statistics.median(ceiling.memcpy_gb_s for ceiling in ceilings),
        "samples": [asdict(ceiling) for ceiling in ceilings],
    }


def compute(
    ours: Sequence[Sample],
    peers: Samples,
    dcp: Samples,
    ceilings: Sequence[Ceiling],
    tiny: Mapping[str, Sequence[TinySample]],
    reading: Reading | None = None,
) -> dict[str, float | None]:
    """All ratios; one that lacks a side is None."""
    correct_peers = {name: samples for name, samples in peers.items() if samples and is_correct(samples)}
    least_stall = best_of(correct_peers, lambda s: -s.stall_s)
    most_durable = best_of(correct_peers, durable_mb_s)
    return {
        "stall_vs_best_peer": paired(_each(ours, lambda s: s.stall_s), _each(least_stall, lambda s: s.stall_s)),
        "durable_vs_ceiling": paired(_each(ours, durable_mb_s), [ceiling.write_mb_s for ceiling in ceilings]),
        "durable_vs_best_peer": paired(_each(ours, durable_mb_s), _each(most_durable, durable_mb_s)),
        "restore_vs_ceiling": paired(_each(ours, restore_mb_s), [ceiling.read_mb_s for ceiling in ceilings]),
        "restore_vs_dcp": paired(
            _each(ours, restore_mb_s),
            [max(speeds) for speeds in zip(*(_each(s, restore_mb_s) for s in dcp.values() if s), strict=False)],
        ),
        "reshard_vs_dcp": paired(_dcp_s(reading, "reshard"), _ours_s(reading, "reshard")),
        "reshard_columns_vs_dcp": paired(_dcp_s(reading, "reshard_columns"), _ours_s(reading, "reshard_columns")),
        "one_tensor_vs_dcp": paired(_ours_s(reading, "one_of_many"), _dcp_s(reading, "one_of_many")),
        "tiny_tensors_vs_dcp": tiny_ratio(tiny.get("ours", ()), tiny.get("dcp_sync", ())),
    }


def reading_summary(reading: Reading) -> dict[str, Any]:
    """Medians of both libraries, and every raw sample."""

    def medians(samples: Sequence[ReadingSample], figure: Callable[[float], float]) -> dict[str, float]:
        return {
            "ours": statistics.median(figure(sample.ours_s) for sample in samples),
            "dcp": statistics.median(figure(sample.dcp_s) for sample in samples),
        }

    return {
        "reshard_4_to_2_mb_s": medians(reading.reshard, lambda s: reading.reshard_bytes / s / MB),
        "reshard_4_to_2_columns_mb_s": medians(reading.reshard_columns, lambda s: reading.reshard_bytes / s / MB),
        "one_tensor_of_many_ms": medians(reading.one_of_many, lambda s: s * 1e3),
        "reading": asdict(reading),
    }


def _ours_s(reading: Reading | None, what: str) -> list[float]:
    return [sample.ours_s for sample in getattr(reading, what, ())]


def _dcp_s(reading: Reading | None, what: str) -> list[float]:
    return [sample.dcp_s for sample in getattr(reading, what, ())]


def best_of(samples: Samples, figure: Callable[[Sample], float]) -> Sequence[Sample]:
    """Samples of the contender with the highest median ``figure``; none where there is no contender."""
    return max(samples.values(), key=lambda each: statistics.median(_each(each, figure)), default=())


def tiny_ratio(ours: Sequence[TinySample], dcp: Sequence[TinySample]) -> float | None:
    """The worse of saving and loading."""
    save = paired([sample.save_s for sample in dcp], [sample.save_s for sample in ours])
    load = paired([sample.load_s for sample in dcp], [sample.load_s for sample in ours])
    return None if save is None or load is None else min(save, load)


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Median of the quotients of the repeats that both sides have."""
    quotients = [above / below for above, below in zip(numerators, denominators, strict=False)]
    return statistics.median(quotients) if quotients else None


def _each(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> list[float]:
    return [figure(sample) for sample in samples]


def _raw(sample: Sample) -> dict[str, Any]:
    raw = {**asdict(sample), "stall_s": sample.stall_s, "correct": sample.correct}
    raw["num_differences"] = len(sample.differences)
    raw["differences"] = sample.differences[:10]
    return raw
