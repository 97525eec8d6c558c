"""How long torchft's survivors need after the death of a replica: a part of benchmarks/recovery.py.

    python benchmarks/recovery_torchft.py --replicas 4 --heartbeat-ms 1000 --join-ms 100

Replica groups of one process each on torchft's gloo take steps of about 50 ms on a small model; the last one gets
SIGKILL. Prints one line of JSON: seconds from the signal until another has committed a step without it, the same less a
normal step, and how many steps it threw away. The two times are those of torchft's lighthouse, by default as its
command `torchft_lighthouse` has them. Needs torch, numpy and `pip install torchft`, nothing of ours, so that any Python
that has them can run it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

WARM_STEPS = 20
WAIT_S = 90.0
SLEEP_S = 0.05
WIDTH = 128


class Step(NamedTuple):
    """What a replica writes down about a step, when it has ended."""

    at_s: float
    """of the monotonic clock, which all processes of a machine share"""
    num_participants: int
    is_committed: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4, help="processes (default: 4)")
    parser.add_argument("--heartbeat-ms", type=int, default=5000, help="silence that is a death (default: 5000)")
    parser.add_argument("--join-ms", type=int, default=60000, help="a quorum waits so long for all (default: 60000)")
    parser.add_argument("--check", action="store_true", help="end with 0 if torchft is here, do nothing")
    parser.add_argument("--replica", nargs=2, metavar=("ADDRESS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replica:
        replicate(options.replica[0], Path(options.replica[1]))
        return
    try:
        from torchft.coordination import LighthouseServer
    except ImportError as error:
        raise SystemExit(f"torchft cannot be imported ({error}): pip install torchft numpy") from error
    if options.check:
        return
    times_ms = {"join_timeout_ms": options.join_ms, "heartbeat_timeout_ms": options.heartbeat_ms}
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=1, **times_ms)
    print(json.dumps(kill_one(lighthouse.address(), options.replicas)))


def kill_one(lighthouse: str, num_replicas: int) -> dict[str, Any]:
    """Kill the last replica; what the first one saw of it."""
    with replicas(lighthouse, num_replicas) as (processes, file):
        before = wait_for_steps(file, lambda steps: steps if is_warm(steps, num_replicas) else None)
        killed_s = time.monotonic()
        os.kill(processes[-1].pid, signal.SIGKILL)
        after = wait_for_steps(file, lambda steps: since(steps, killed_s, num_replicas))
    normal_s = statistics.median(b.at_s - a.at_s for a, b in itertools.pairwise(before[-WARM_STEPS:]))
    took_s = after[-1].at_s - killed_s
    return {
        "recovery_s": round(took_s, 3),
        "recovery_less_a_step_s": round(took_s - normal_s, 3),
        "normal_step_s": round(normal_s, 3),
        "num_thrown_away": sum(not step.is_committed for step in after),
        "num_left": after[-1].num_participants,
    }


def is_warm(steps: list[Step], num_replicas: int) -> bool:
    """Whether all of them have just committed some steps together."""
    recent = steps[-WARM_STEPS:]
    return len(recent) == WARM_STEPS and all(s.is_committed and s.num_participants == num_replicas for s in recent[-3:])


def since(steps: list[Step], killed_s: float, num_replicas: int) -> list[Step] | None:
    """The steps behind the kill, up to the first that was committed without the dead; None if there is none yet."""
    behind = [step for step in steps if step.at_s > killed_s]
    good = (n for n, step in enumerate(behind, 1) if step.is_committed and step.num_participants < num_replicas)
    end = next(good, None)
    return None if end is None else behind[:end]


def wait_for_steps(file: Path, look: Any) -> list[Step]:
    """What ``look`` makes of the steps of a replica, once it makes something of them."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        whole, _, _ = file.read_text().rpartition("\n") if file.exists() else ("", "", "")
        found = look([Step(*json.loads(line)) for line in whole.splitlines()])
        if found is not None:
            return list(found)
        time.sleep(0.01)
    raise SystemExit(f"not within {WAIT_S:g} s: the replicas' quorum of all, or a step without the dead one")


@contextmanager
def replicas(lighthouse: str, count: int) -> Iterator[tuple[list[subprocess.Popen[bytes]], Path]]:
    """The processes, and the file with the steps of the first; killed at the end."""
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, f"{number}.jsonl") for number in range(count)]
        commands = [[sys.executable, __file__, "--replica", lighthouse, str(file)] for file in files]
        nowhere = subprocess.DEVNULL
        processes = [subprocess.Popen(command, stdout=nowhere, stderr=nowhere) for command in commands]
        try:
            yield processes, files[0]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def replicate(lighthouse: str, file: Path) -> None:
    """In a replica: train as long as the one who started it lives, write the steps down."""
    parent = os.getppid()
    import torch
    import torch.distributed as dist
    from torchft import Manager, Optimizer, ProcessGroupGloo

    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    net = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(2)])
    adam = torch.optim.AdamW(net.parameters())

    def load(state: dict[str, Any]) -> None:
        net.load_state_dict(state["net"])
        adam.load_state_dict(state["adam"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        load_state_dict=load,
        state_dict=lambda: {"net": net.state_dict(), "adam": adam.state_dict()},
        min_replica_size=1,
        timeout=timedelta(seconds=30),
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        lighthouse_addr=lighthouse,
        replica_id=file.stem,
        hostname="127.0.0.1",
    )
    optimizer = Optimizer(manager, adam)
    with file.open("a", buffering=1) as lines:
        while os.getppid() == parent:
            optimizer.zero_grad()  # asks for a quorum
            net(torch.randn(8, WIDTH)).square().mean().backward()
            for parameter in net.parameters():  # torchft 0.2's own DDP ends with an assertion when a peer dies in it
                manager.allreduce(parameter.grad).wait()
            time.sleep(SLEEP_S)
            before = manager.current_step()
            optimizer.step()
            step = Step(time.monotonic(), manager.num_participants(), manager.current_step() > before)
            lines.write(json.dumps(step) + "\n")


if __name__ == "__main__":
    main()
