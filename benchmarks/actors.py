"""What a message between actors costs, and that memory does not grow with their number.

Speed is reported, never asserted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import torch  # noqa: F401  (the extension finds libtorch only once torch has been imported)

from benchmarks import machine, memory
from benchmarks.files import write_json
from benchmarks.machine import MB

import _elastates


def run(num_messages: int) -> dict[str, Any]:
    """Both paths, warmed up; memory before and after all messages."""
    _send(max(1, num_messages // 100))
    memory.settle()
    rss_before_mb = memory.resident_bytes() / MB
    hop_ns, messages_per_s = _send(num_messages)
    return {
        "same_thread_hop_ns": hop_ns,
        "cross_thread_messages_per_s": messages_per_s,
        "messages": num_messages,
        "rss_before_mb": rss_before_mb,
        "rss_after_mb": memory.resident_bytes() / MB,
        "machine": machine.describe(Path.cwd()),
    }


def _send(num_messages: int) -> tuple[float, float]:
    return (
        _elastates.actor_same_thread_hop_ns(num_messages),
        _elastates.actor_cross_thread_messages_per_s(num_messages),
    )


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the report goes")
    parser.add_argument("--messages", type=int, default=10**8, help="sent on each path (%(default)s)")
    options = parser.parse_args()
    report = run(options.messages)
    write_json(options.json, report)
    print(
        f"same thread {report['same_thread_hop_ns']:.1f} ns a hop; across threads "
        f"{report['cross_thread_messages_per_s'] / 1e6:.1f} million messages/s; resident memory "
        f"{report['rss_before_mb']:.1f} -> {report['rss_after_mb']:.1f} MB over {report['messages']} messages each"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
