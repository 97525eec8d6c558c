"""Save and load one training state with every checkpoint library that is installed, side by side.

Every repeat measures all contenders and the machine's ceilings in a new random order; see ``protocol.py`` for what is
measured and ``ratios.py`` for what is divided by what. Speed is reported, never asserted; wrong bytes from ours are an
error. Peers: ``pip install -r benchmarks/requirements.txt``; one that is missing is reported as skipped.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks import ceilings, machine, protocol, ratios, reading, tiny_tensors
from benchmarks.contenders import DCP_NAMES, NAMES, OURS, create
from benchmarks.contenders.base import IO_THREADS
from benchmarks.files import write_json
from benchmarks.machine import MB
from benchmarks.progress import quiet_libraries, say
from benchmarks.workload import TinyTensors, Workload

CEILING = "ceiling"


class Run:
    """The samples of one run. A contender that cannot be used, or fails once, is left out of later repeats."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options = options
        self.root = root
        self.order = random.Random(options.seed)
        self.samples: dict[str, list[protocol.Sample]] = {name: [] for name in options.contenders}
        self.tiny: dict[str, list[tiny_tensors.TinySample]] = {}
        self.reading: reading.Reading | None = None
        self.ceilings: list[ceilings.Ceiling] = []
        self.settings: dict[str, dict[str, Any]] = {}
        self.excluded: dict[str, dict[str, Any]] = {}

    def measure_all(self, workload: Workload) -> None:
        """All repeats, interleaved."""
        for repeat in range(self.options.repeats):
            names = [*self.samples, CEILING]
            self.order.shuffle(names)
            for name in names:
                if name == CEILING:
                    self._measure_ceilings(repeat, workload.num_bytes)
                elif name not in self.excluded:
                    self._measure(repeat, name, workload)

    def measure_tiny(self) -> None:
        """Ours and synchronous DCP on many small tensors."""
        state = TinyTensors(self.options.tiny_count, tiny_tensors.TINY_BYTES // 4, self.options.seed)
        names = [name for name in ("dcp_sync", OURS) if name in self.samples and name not in self.excluded]
        self.tiny = {name: [] for name in names}
        for _ in range(self.options.tiny_repeats):
            self.order.shuffle(names)
            for name in names:
                contender = create(name, state, self.root / f"tiny-{name}", self.options.arena_mb)
                sample = tiny_tensors.measure(contender)
                self.tiny[name].append(sample)
                say(
                    f"tiny    {name:20s} first save {sample.first_save_s:6.2f}  save {sample.save_s:6.2f}  "
                    f"load {sample.load_s:6.2f} s"
                )

    def measure_reading(self) -> None:
        """Ours and DCP: resharding, and one tensor of many."""
        self.reading = reading.measure(
            self.root / "reading",
            size_bytes=self.options.reshard_mb * MB,
            many_count=self.options.many_count,
            repeats=self.options.reading_repeats,
            seed=self.options.seed,
        )

    def _measure_ceilings(self, repeat: int, size_bytes: int) -> None:
        ceiling = ceilings.measure(self.root, size_bytes, self.options.copy_threads)
        self.ceilings.append(ceiling)
        say(f"{repeat}       {CEILING:20s} write {ceiling.write_mb_s:5.0f}  read {ceiling.read_mb_s:5.0f} MB/s")

    def _measure(self, repeat: int, name: str, workload: Workload) -> None:
        try:
            contender = create(name, workload, self.root / name, self.options.arena_mb)
            sample = protocol.measure(contender, workload)
        except ImportError as error:
            self.excluded[name] = {"skipped": str(error)}
            say(f"{repeat}       {name:20s} skipped: {error}")
        except Exception as error:
            if name == OURS:
                raise
            # A peer that fails is a finding, not the end of the run.
            self.excluded[name] = {"failed": repr(error), "correct": False}
            say(f"{repeat}       {name:20s} failed: {error!r}")
        else:
            self.samples[name].append(sample)
            self.settings[name] = contender.settings()
            say(
                f"{repeat}       {name:20s} call {sample.call_s * 1e3:6.1f}  stall {sample.stall_s * 1e3:6.0f}  "
                f"durable {sample.durable_s * 1e3:6.0f} ms  restore {ratios.restore_mb_s(sample):5.0f} MB/s  "
                f"{'correct' if sample.correct else 'WRONG'}"
            )

    def contenders_report(self) -> dict[str, Any]:
        """By name; raw samples also of one that failed later."""
        report: dict[str, Any] = {}
        for name, samples in self.samples.items():
            figures = {**ratios.summary(samples), "settings": self.settings[name]} if samples else {}
            report[name] = {**figures, **self.excluded.get(name, {})}
        return report

    def ratios_report(self) -> dict[str, float | None]:
        """What the run shows."""
        usable = {name: samples for name, samples in self.samples.items() if name not in self.excluded}
        return ratios.compute(
            ours=usable.get(OURS, []),
            peers={name: samples for name, samples in usable.items() if name != OURS},
            dcp={name: usable[name] for name in DCP_NAMES if name in usable},
            ceilings=self.ceilings,
            tiny=self.tiny,
            reading=self.reading,
        )

    def ours_is_correct(self) -> bool:
        """Whether ours gave back every bit, every time; also where it was not asked."""
        read = (*self.reading.reshard, *self.reading.reshard_columns, *self.reading.one_of_many) if self.reading else ()
        return all(sample.correct for sample in (*self.samples.get(OURS, ()), *self.tiny.get(OURS, ()), *read))


def report(run: Run, workload: Workload) -> dict[str, Any]:
    """The whole JSON document."""
    options = run.options
    return {
        "size_mb": workload.num_bytes / MB,
        "num_tensors": len(workload.tensors),
        "repeats": options.repeats,
        "contenders": run.contenders_report(),
        "arena_mb": run.settings.get(OURS, {}).get("arena_mb"),
        "ceiling": ratios.ceiling_summary(run.ceilings),
        "ratios": run.ratios_report(),
        "ratio_definitions": ratios.DEFINITIONS,
        **(ratios.reading_summary(run.reading) if run.reading else {}),
        "tiny_tensors": {
            "count": options.tiny_count,
            "bytes_each": tiny_tensors.TINY_BYTES,
            "samples": {name: [asdict(sample) for sample in samples] for name, samples in run.tiny.items()},
        },
        "step": {
            "what": "forward/backward of the saved model, torch's default intra-op threads, no optimizer step",
            "tokens": len(workload.tokens),
            "at_least_s": options.step_s,
        },
        "threads": {"io_threads_of_contenders_that_take_a_number": IO_THREADS, "memcpy_threads": options.copy_threads},
        "probe": {
            "write": f"O_DIRECT, {ceilings.REQUEST_BYTES} byte writes, one thread, fsync of file and directory",
            "read": f"O_DIRECT, cold, {ceilings.REQUEST_BYTES} byte reads, queue depth one per thread, 1 or 2 threads",
        },
        "machine": machine.describe(run.root),
        "seed": options.seed,
    }


def print_summary(document: dict[str, Any]) -> None:
    """The table a person reads."""
    columns = ("call_ms", "stall_ms", "safe_ms", "durable_ms", "durable_mb_s", "restore_mb_s", "peak_extra_mb")
    print(f"{'':20s}" + "".join(f"{column:>14s}" for column in columns) + "  correct")
    for name, figures in document["contenders"].items():
        if "call_ms" in figures:
            row = "".join(f"{figures[column]:14.1f}" for column in columns)
            print(f"{name:20s}{row}  {figures['correct']}")
        else:
            print(f"{name:20s}  {figures}")
    limits = document["ceiling"]
    print(
        f"ceiling: write {limits['write_mb_s']:.0f} MB/s, read {limits['read_mb_s']:.0f} MB/s, "
        f"memcpy {limits['memcpy_gb_s']:.1f} GB/s; arena {document['arena_mb']} MB"
    )
    for name in ("reshard_4_to_2_mb_s", "reshard_4_to_2_columns_mb_s", "one_tensor_of_many_ms"):
        if name in document:
            print(f"{name}: ours {document[name]['ours']:.1f}, dcp {document[name]['dcp']:.1f}")
    for name, value in document["ratios"].items():
        print(f"{name:20s} {'-' if value is None else format(value, '.3f'):>8s}   {ratios.DEFINITIONS[name]}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size-mb", type=int, default=1024, help="bytes of the tensors, in units of 10^6 (%(default)s)"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the report goes")
    parser.add_argument("--repeats", type=int, default=5, help="of every contender (%(default)s)")
    parser.add_argument(
        "--contenders", type=lambda text: text.split(","), default=list(NAMES), help=f"of {','.join(NAMES)} (all)"
    )
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--seed", type=int, default=0, help="of values and order (%(default)s)")
    parser.add_argument("--arena-mb", type=int, help="bound on our host memory (as the library chooses)")
    parser.add_argument("--copy-threads", type=int, default=2, help="of the memcpy probe: as many as we copy with")
    parser.add_argument("--step-s", type=float, default=1.0, help="least length of a training step (%(default)s)")
    parser.add_argument("--num-tiny", type=int, default=2000, help="1 KB parameters in the model (%(default)s)")
    parser.add_argument("--tiny-count", type=int, default=50_000, help="4 KB tensors of the second part (%(default)s)")
    parser.add_argument("--tiny-repeats", type=int, default=3, help="of the second part; 0: leave it out (%(default)s)")
    parser.add_argument("--reshard-mb", type=int, default=512, help="that 4 ranks save and 2 load (%(default)s)")
    parser.add_argument("--many-count", type=int, default=5000, help="64 KB tensors to read one of (%(default)s)")
    parser.add_argument("--reading-repeats", type=int, default=5, help="of those two; 0: leave them out (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := set(options.contenders) - set(NAMES):
        parser.error(f"unknown contenders {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return options


def main() -> int:
    """Measure, report; non-zero if ours lost a bit."""
    options = parse_options()
    quiet_libraries()
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="elastates-bench-", dir=options.dir) as name:
        run = Run(options, Path(name))
        workload = Workload(options.size_mb * MB, options.num_tiny, options.seed)
        say(f"step: {workload.calibrate(options.step_s):.2f} s of {len(workload.tokens)} tokens")
        run.measure_all(workload)
        if options.tiny_repeats:
            run.measure_tiny()
        if options.reading_repeats:
            run.measure_reading()
        document = report(run, workload)
    write_json(options.json, document)
    print_summary(document)
    return 0 if run.ours_is_correct() else 1


if __name__ == "__main__":
    sys.exit(main())
