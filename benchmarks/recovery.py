"""How long survivors need after the death of a rank: the group alone, hangs, and a whole training step.

    python benchmarks/recovery.py --json runs/bench/recovery.json

group: n processes all-reduce 1 MB without pause; one of them gets SIGKILL at a random moment. Times are counted from
the signal, medians and 95th percentiles over the survivors of all trials: until the pending operation raised, until the
survivors agreed on a view, how long taking it up took, until the first right sum of the new group.
reconfigure: the same group size, gloo's own way on a torch that has it (2.15): time for n - 1 members to reconfigure
and do a first all-reduce; nobody dies there and nothing is pending, which is the easier case.
hang: seconds from the moment a training thread falls asleep, or holds the GIL, until the others hear that it is dead.
training: examples/train_gpt.py --backend elastic, each rank under a quota of half a core where cgroups can be written:
from SIGKILL to the next committed step, less a normal step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

import elaswave
from benchmarks.files import write_json
from elaswave.chaos.acts import ACTS, Surroundings, limit_cpu
from elaswave.chaos.targets import Target, find_ranks
from elaswave.timeline import read_milestones

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = (1 << 20) // 4
WAIT_S = 120.0
CPU_QUOTA = 0.5

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs per group size (default: 50)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 8], help="processes (default: 4 8)")
    parser.add_argument("--hangs", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--failure-timeout-s", type=float, default=10.0, help="of the jobs that hang (default: 10)")
    parser.add_argument("--training-kills", type=int, default=10, help="SIGKILLs to a training rank (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    result: Row = {"torch": torch.__version__, "cores": os.cpu_count(), "group": {}, "reconfigure": {}, "hang": {}}
    for size in options.sizes:
        result["group"][f"n{size}"] = measure_group(size, options.kills, draw)
        print(json.dumps({f"n{size}": result["group"][f"n{size}"]}), flush=True)
        if hasattr(dist, "_reconfigure"):
            result["reconfigure"][f"n{size}"] = measure_reconfigure(size, max(3, options.kills // 10))
            print(json.dumps({"reconfigure": result["reconfigure"]}), flush=True)
    for kind in ("sleep", "hold_gil") if options.hangs else ():
        result["hang"][kind] = measure_hang(kind, options.hangs, options.failure_timeout_s)
        print(json.dumps({kind: result["hang"][kind]}), flush=True)
    if options.training_kills:
        result["training"] = measure_training(options.training_kills, draw)
        print(json.dumps({"training": result["training"]}), flush=True)
    if options.json:
        write_json(options.json, result)


def spread(times_ms: list[float]) -> Row:
    """Median and 95th percentile, and how many."""
    ordered = sorted(times_ms)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3),
        "count": len(ordered),
    }


# ---- the group alone ------------------------------------------------------------------------------------------------


def measure_group(size: int, kills: int, draw: random.Random) -> Row:
    """Kill one of ``size`` so many times, each time in a new group."""
    rows = [row for _ in range(kills) for row in kill_one(size, draw)]
    found: Row = {"wrong_sums": sum(not row["right"] for row in rows)}
    for name in ("unblocked_ms", "agreed_ms", "edit_ms", "first_sum_ms"):
        found[name] = spread([row[name] for row in rows])
    return found


def kill_one(size: int, draw: random.Random) -> list[Row]:
    """One trial; what each survivor measured."""
    with members(size, survive) as (processes, pipes):
        for pipe in pipes:
            expect(pipe)
        time.sleep(draw.uniform(0.005, 0.05))  # a random moment of their all-reduces
        victim = draw.randrange(size)
        killed_s = time.monotonic()
        os.kill(processes[victim].pid, signal.SIGKILL)
        told = [expect(pipe) for rank, pipe in enumerate(pipes) if rank != victim]
    return [
        {
            "unblocked_ms": (one["unblocked_s"] - killed_s) * 1e3,
            "agreed_ms": (one["agreed_s"] - killed_s) * 1e3,
            "edit_ms": (one["edited_s"] - one["agreed_s"]) * 1e3,
            "first_sum_ms": (one["summed_s"] - killed_s) * 1e3,
            "right": one["sum"] == size - 1,
        }
        for one in told
    ]


def survive(pipe: Connection) -> None:
    """A member: sums until somebody dies, then goes on with the others."""
    group = elaswave.ElasticGroup.of()
    value = torch.ones(ELEMENTS)
    dist.all_reduce(value)
    pipe.send("ready")
    try:
        while True:
            dist.all_reduce(value.fill_(1))
    except dist.DistBackendError as error:
        unblocked_s = time.monotonic()
        if elaswave.lost(error) is None:
            raise
    group.revoke()
    view = group.agree()
    agreed_s = time.monotonic()
    group.edit(view)
    edited_s = time.monotonic()
    dist.all_reduce(value.fill_(1))
    summed_s = time.monotonic()
    times = {"unblocked_s": unblocked_s, "agreed_s": agreed_s, "edited_s": edited_s, "summed_s": summed_s}
    pipe.send({**times, "sum": value[0].item()})


# ---- gloo's reconfigure ---------------------------------------------------------------------------------------------


def measure_reconfigure(size: int, trials: int) -> Row:
    """What gloo needs to go on with one member less, when nobody has died and nothing is pending."""
    times: list[float] = []
    for _ in range(trials):
        with members(size, reconfigure, backend="gloo") as (_, pipes):
            times += [expect(pipe)["ms"] for pipe in pipes[:-1]]
    return {"reconfigured_and_first_sum_ms": spread(times)}


def reconfigure(pipe: Connection) -> None:
    """A member of a gloo group in torch's reconfigure regime."""
    store, rank, size = (
        dist.distributed_c10d._get_default_store(),
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
    )
    torch_dist: Any = dist  # torch 2.13, by which types are checked, has no such thing
    value = torch.ones(ELEMENTS)
    for attempt, num_members in enumerate((size, size - 1)):
        if rank >= num_members:
            break
        store.set(f"{attempt}/{rank}", torch_dist._get_reconfigure_handle())
        handles = [store.get(f"{attempt}/{other}").decode() for other in range(num_members)]
        begun_s = time.monotonic()
        torch_dist._reconfigure(uuid=attempt + 1, handles=handles, timeout=timedelta(seconds=WAIT_S)).wait()
        dist.all_reduce(value)
        took_ms = (time.monotonic() - begun_s) * 1e3
    pipe.send({"ms": took_ms})


# ---- processes ------------------------------------------------------------------------------------------------------


@contextmanager
def members(size: int, body: Any, backend: str = "elastic") -> Iterator[tuple[list[Any], list[Connection]]]:
    """``size`` forked processes in one group, each running ``body(pipe)``; killed at the end."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as directory:
        pairs = [context.Pipe() for _ in range(size)]
        processes = [
            context.Process(target=be_member, args=(rank, size, f"{directory}/store", backend, body, pairs[rank][1]))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            yield processes, [mine for mine, _ in pairs]
        finally:
            for process in processes:
                process.kill()
                process.join()


def be_member(rank: int, size: int, store: str, backend: str, body: Any, pipe: Connection) -> None:
    """In the child."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    regime: Row = {"enable_reconfigure": True} if backend == "gloo" else {}
    dist.init_process_group(backend, store=dist.FileStore(store, size), rank=rank, world_size=size, **regime)
    body(pipe)
    signal.pause()  # until the trial is over: leaving is not what is measured


def expect(pipe: Connection) -> Any:
    """What a member says next."""
    if not pipe.poll(WAIT_S):
        raise SystemExit(f"a member said nothing within {WAIT_S:g} s")
    return pipe.recv()


# ---- hangs ----------------------------------------------------------------------------------------------------------


def measure_hang(kind: str, trials: int, failure_timeout_s: float) -> Row:
    """Seconds until the others hear of the death of a rank that hangs."""
    times = []
    for _ in range(trials):
        with tempfile.TemporaryDirectory() as directory:
            timeline = Path(directory)
            options = ["--min-ranks", "1", "--failure-timeout-s", failure_timeout_s]
            with job(4, timeline, options, [ROOT / "benchmarks" / "recovery_steps.py"]) as agent:
                targets = wait_for_steps(agent, timeline, 4, 10)
                struck_s = time.monotonic()
                ACTS[kind](targets[2], Surroundings())
                times += wait_for_notes(agent, timeline, "death", [t.pid for t in targets if t.rank != 2], struck_s)
    return {"failure_timeout_s": failure_timeout_s, "detected_s": spread(times), "floor_s": failure_timeout_s * 1.1}


# ---- training -------------------------------------------------------------------------------------------------------


def measure_training(kills: int, draw: random.Random) -> Row:
    """Milliseconds from a SIGKILL to the next committed step of the survivors, less a normal step."""
    losses_ms: list[float] = []
    steps_ms: list[float] = []
    has_quota = False
    while len(losses_ms) < kills:
        with tempfile.TemporaryDirectory() as directory:
            timeline = Path(directory) / "timeline"
            script = [ROOT / "examples" / "train_gpt.py", "--backend", "elastic", "--run-dir", f"{directory}/run"]
            shape = ["--micro-batch", "1", "--context", "64", "--global-batch", "8", "--steps", "100000"]
            quiet = ["--eval-every", "0", "--checkpoint-every", "0", "--cache-dir", ROOT / "runs" / "data"]
            with job(4, timeline, ["--min-ranks", "1"], [*script, *shape, *quiet]) as agent:
                targets = wait_for_steps(agent, timeline, 4, 5)
                has_quota = None not in [limit_cpu(target, CPU_QUOTA) for target in targets]
                before = last_step(timeline, targets)
                wait_for_steps(agent, timeline, 4, before + 10)
                time.sleep(draw.uniform(0.0, 1.0))
                victim = draw.choice(targets)
                normal_ms = median_step_ms(timeline, targets)
                struck_s = time.monotonic()
                os.kill(victim.pid, signal.SIGKILL)
                survivors = [target.pid for target in targets if target != victim]
                times_s = wait_for_notes(agent, timeline, "committed", survivors, struck_s, after="edited")
                losses_ms.append(max(times_s) * 1e3 - normal_ms)
                steps_ms.append(normal_ms)
    return {
        "recovery_ms": spread(losses_ms),
        "normal_step_ms_median": round(statistics.median(steps_ms), 1),
        "cpu_quota_cores": CPU_QUOTA if has_quota else None,
    }


@contextmanager
def job(size: int, timeline: Path, options: list[Any], script: list[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A job under the launcher, ended at the end."""
    command = [sys.executable, "-m", "elaswave.launcher", "--nproc-per-node", size, *options, *script]
    environment = {**os.environ, "ELASWAVE_TIMELINE": str(timeline), "ELASWAVE_CHAOS": "1", "PYTHONPATH": _path()}
    agent = subprocess.Popen([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield agent
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.send_signal(signal.SIGTERM)  # twice: now
        agent.wait(WAIT_S)


def _path() -> str:
    return os.pathsep.join(
        entry for entry in (str(Path(elaswave.__file__).parents[1]), os.environ.get("PYTHONPATH")) if entry
    )


def wait_for_steps(agent: subprocess.Popen[bytes], timeline: Path, size: int, step: int) -> list[Target]:
    """The ranks, once each of them has committed ``step``."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s and agent.poll() is None:
        files = list(timeline.glob("*.timeline.jsonl"))
        reached = [any(n["what"] == "committed" and n["step"] >= step for n in read_milestones(f)) for f in files]
        if sum(reached) == size:
            pid = int(files[0].name.split(".")[0])
            return find_ranks(pid=pid)
        time.sleep(0.05)
    raise SystemExit(f"the job did not reach step {step} (exit status {agent.poll()})")


def wait_for_notes(
    agent: subprocess.Popen[bytes], timeline: Path, what: str, pids: list[int], since_s: float, after: str = ""
) -> list[float]:
    """For each process, seconds from ``since_s`` to its first such milestone; the first behind another, if asked."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s and agent.poll() is None:
        found = [first_note(timeline, pid, what, since_s, after) for pid in pids]
        times = [at_s - since_s for at_s in found if at_s is not None]
        if len(times) == len(pids):
            return times
        time.sleep(0.02)
    raise SystemExit(f"no {what} within {WAIT_S:g} s (exit status {agent.poll()})")


def first_note(timeline: Path, pid: int, what: str, since_s: float, after: str) -> float | None:
    """When a process reached a milestone."""
    notes = [note for note in read_milestones(timeline / f"{pid}.timeline.jsonl") if note["at_s"] >= since_s]
    if after:
        since_s = next((note["at_s"] for note in notes if note["what"] == after), float("inf"))
    return next((note["at_s"] for note in notes if note["what"] == what and note["at_s"] >= since_s), None)


def last_step(timeline: Path, targets: list[Target]) -> int:
    """The newest committed step of any of them."""
    notes = [note for target in targets for note in read_milestones(timeline / f"{target.pid}.timeline.jsonl")]
    return max(note["step"] for note in notes if note["what"] == "committed")


def median_step_ms(timeline: Path, targets: list[Target]) -> float:
    """Of the last ten steps of the first of them."""
    notes = read_milestones(timeline / f"{targets[0].pid}.timeline.jsonl")
    times = [note["at_s"] for note in notes if note["what"] == "committed"][-11:]
    return statistics.median(b - a for a, b in itertools.pairwise(times)) * 1e3


if __name__ == "__main__":
    main()
