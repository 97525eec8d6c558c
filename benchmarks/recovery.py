"""How long survivors need after the death of a rank: the group alone, hangs, and a whole training step.

    python benchmarks/recovery.py --gloo-python PYTHON --torchft-python PYTHON --json runs/bench/recovery.json

group: SIGKILL to a member of a group that sums without pause (benchmarks/recovery_group.py), for every group size, and
in the JSON above the sizes the worst of them. Beside it, in turns with it: gloo's own way to go on with a member less,
which needs torch 2.15 (benchmarks/recovery_gloo.py), and torchft on gloo, tuned and at its defaults
(benchmarks/recovery_torchft.py). Each runs in the Python that is named, or in this one; where it cannot, the JSON says
why, and has no figure.
hang: a training thread that sleeps or holds the GIL, until the others hear of its end (benchmarks/recovery_hang.py).
training: SIGKILL to a rank of a GPT job until the next committed step (benchmarks/recovery_training.py).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after installed packages: ours may be one of them

from benchmarks import machine, recovery_group, recovery_hang, recovery_training
from benchmarks.files import write_json
from benchmarks.peers import Peer
from benchmarks.spread import interleave

HERE = Path(__file__).resolve().parent
TORCHFT = {
    "tuned": ("--heartbeat-ms", "1000", "--join-ms", "100"),
    "defaults": ("--heartbeat-ms", "5000", "--join-ms", "60000"),
}
"""Times of its lighthouse; the defaults are those of its command `torchft_lighthouse`."""
FLOORS = {"unblocked_ms_median": 20.0, "agreed_ms_median": 50.0, "edit_ms_median": 5.0}
"""At most, of `group`."""

Row = dict[str, Any]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a benchmark that is ended ends what it started
    options = parse_options()
    draw = random.Random(options.seed)
    result: Row = {"machine": machine.describe(HERE), "seed": options.seed, "floors": FLOORS}
    for measure in (measure_group, measure_hangs, measure_training):
        for name, figures in measure(options, draw).items():
            result[name] = figures
            print(json.dumps({name: figures}), flush=True)
        result["load_average_1min_at_the_end"] = machine.describe(HERE)["load_average_1min"]
        if options.json:  # after each part: should the next one fail, this one was measured all the same
            write_json(options.json, result)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs per group size (default: 50)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 8], help="members of a group (default: 4 8)")
    parser.add_argument("--gloo-trials", type=int, default=10, help="per group size (default: 10)")
    parser.add_argument("--gloo-python", default=sys.executable, metavar="PYTHON", help="one with torch 2.15")
    parser.add_argument("--torchft-trials", type=int, default=5, help="of each of two settings (default: 5)")
    parser.add_argument("--torchft-python", default=sys.executable, metavar="PYTHON", help="one with torchft")
    parser.add_argument("--torchft-replicas", type=int, default=4, help="(default: 4)")
    parser.add_argument("--hangs", type=int, default=3, help="of each kind (default: 3)")
    parser.add_argument("--failure-timeout-s", type=float, default=10.0, help="of the jobs that hang (default: 10)")
    parser.add_argument("--training-kills", type=int, default=10, help="SIGKILLs to a training rank (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    return parser.parse_args()


def measure_group(options: argparse.Namespace, draw: random.Random) -> Row:
    """Our group of every size, and in turns with it what can be measured of its peers."""
    if not options.kills:
        return {}
    peers = make_peers(options)
    rows: dict[int, list[Row]] = {size: [] for size in options.sizes}
    turns: dict[int | str, int] = dict.fromkeys(options.sizes, options.kills)
    trials = {name: options.torchft_trials if name in TORCHFT else options.gloo_trials for name in peers}
    turns |= {name: trials[name] for name, peer in peers.items() if not peer.why_not}
    for who in interleave(turns):
        if isinstance(who, int):
            rows[who] += recovery_group.kill_one(who, draw)
        else:
            peers[who].trial()
    return {"group": summarize_group(rows), **report_peers(peers)}


def make_peers(options: argparse.Namespace) -> dict[str, Peer]:
    """By the name of a torchft setting, or by gloo's group size."""
    python, replicas = options.torchft_python, options.torchft_replicas
    gloo = {f"n{n}": Peer(options.gloo_python, "recovery_gloo.py", "--size", n) for n in options.sizes}
    torchft = {
        name: Peer(python, "recovery_torchft.py", "--replicas", replicas, *arguments)
        for name, arguments in TORCHFT.items()
    }
    return gloo | torchft


def summarize_group(rows: dict[int, list[Row]]) -> Row:
    """For each size, and above them the worst of all sizes."""
    by_size = {f"n{size}": recovery_group.summarize(of_size) for size, of_size in rows.items()}
    worst = recovery_group.worst_of(by_size)
    return {**worst, "is_within": {name: worst[name] <= most for name, most in FLOORS.items()}, **by_size}


def report_peers(peers: dict[str, Peer]) -> dict[str, Row]:
    """gloo by group size, torchft by setting."""
    return {
        "gloo_reconfigure": {
            name: peer.report(("edit_ms", "edit_and_first_sum_ms"))
            for name, peer in peers.items()
            if name not in TORCHFT
        },
        "torchft": {
            name: {"lighthouse": " ".join(TORCHFT[name]), **peer.report(("recovery_s", "recovery_less_a_step_s"))}
            for name, peer in peers.items()
            if name in TORCHFT
        },
    }


def measure_hangs(options: argparse.Namespace, _: random.Random) -> Row:
    """Both kinds by turns; `hang_detected_s` is the slowest of all who heard."""
    timeout_s = options.failure_timeout_s
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in recovery_hang.KINDS}
    for kind in interleave(dict.fromkeys(recovery_hang.KINDS, options.hangs)):
        rows[kind] += recovery_hang.hang_one(kind, timeout_s)
    found = {kind: recovery_hang.summarize(of_kind, timeout_s) for kind, of_kind in rows.items() if of_kind}
    slowest_s = {kind: one["detected_s"]["max"] for kind, one in found.items()}
    return {"hang_detected_s": slowest_s, "hang": found} if found else {}


def measure_training(options: argparse.Namespace, draw: random.Random) -> Row:
    """Kills in one job of the GPT example."""
    return {"training": recovery_training.measure(options.training_kills, draw)} if options.training_kills else {}


if __name__ == "__main__":
    main()
