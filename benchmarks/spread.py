"""Many measurements in three numbers, and in which order to take them."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and 95th percentile, and how many there were."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), digits),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], digits),
        "count": len(ordered),
    }


def interleave(counts: Mapping[Name, int]) -> list[Name]:
    """Every name so many times, each spread evenly over the whole: all meet the same moods of the machine."""
    moments = [((number + 0.5) / count, name) for name, count in counts.items() for number in range(count)]
    return [name for _, name in sorted(moments, key=lambda moment: moment[0])]
