"""``elastates run`` with several agents, which here are neighbours on one machine."""

import os
import signal
import sys
from pathlib import Path

from launching import Launched, Launcher
from polling import until

RANK_SCRIPT = Path(__file__).parent / "launched_rank.py"
SECRET = "5ec4e7" * 8


def agent(launch: Launcher, port: int, *options: str, ranks: list[str], secret: str = SECRET) -> Launched:
    meeting = ["--master", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "elaswave.launcher", *meeting, *options, RANK_SCRIPT, *ranks]
    return launch(command, env={"ELASWAVE_SECRET": secret})


def test_deaths_and_fences_cross_nodes_and_no_agent_is_special(launch: Launcher, free_port: int) -> None:
    ranks = ["0:joined,agent_ended", "1:joined,fence=2,death=2,agent_lost=0", "2:signal"]
    nodes = [agent(launch, free_port, "--nnodes", "3", "--node-rank", str(node), ranks=ranks) for node in range(3)]
    nodes[1].wait_for("heard death .*'rank': 2, 'node': 2, .*'how': 'was fenced")
    nodes[0].wait_for("heard death .*'rank': 2, 'node': 2")
    orphan = int(nodes[0].wait_for(r"pid (\d+) of rank 0")[1])
    os.kill(nodes[0].pid, signal.SIGKILL)
    nodes[1].wait(expect=0)
    nodes[2].wait(expect=0)  # its rank is dead, the job went on and finished
    assert "node 0 is lost: its connection ended" in nodes[2].output
    assert "done 1" in nodes[1].output
    nodes[0].wait_for("done 0")  # a rank whose agent was killed goes on
    until(lambda: orphan not in nodes[0].pids())


def test_a_node_that_comes_late_gives_a_dead_rank_a_new_process(launch: Launcher, free_port: int) -> None:
    ranks = ["0:joined,death=1,rejoined=1", "1:joined,die_once"]
    first = agent(launch, free_port, "--nproc-per-node", "2", ranks=ranks)
    first.wait_for("heard death .*'rank': 1")
    stranger = agent(launch, free_port, "--join", ranks=ranks, secret="00" * 16)
    late = agent(launch, free_port, "--join", ranks=ranks)
    first.wait(expect=0)
    late.wait(expect=0)
    assert "has joined with 1 spares" in first.output
    assert "rank 1: a spare of node 1 takes its place" in first.output
    assert "done 1" in late.output
    assert "2 of 2 ranks finished; exit status 0" in first.output
    stranger.wait(expect=85)
    assert "does not know this job's secret" in stranger.output


def test_agents_that_do_not_all_meet_say_who_is_missing(launch: Launcher, free_port: int) -> None:
    alone = agent(launch, free_port, "--nnodes", "3", "--failure-timeout-s", "0.1", ranks=[])
    alone.wait(expect=85)
    assert f"the agents of nodes [1, 2] did not come to 127.0.0.1:{free_port} within 1 s" in alone.output


def test_more_ranks_than_the_nodes_have_are_refused(launch: Launcher, free_port: int) -> None:
    options = ["--nnodes", "2", "--min-ranks", "3"]
    nodes = [agent(launch, free_port, *options, "--node-rank", str(node), ranks=[]) for node in range(2)]
    for one in nodes:
        one.wait(expect=2)
        assert "--min-ranks must be at most the number of ranks, 2 on 2 nodes (--nproc-per-node), got 3" in one.output


def test_two_that_die_at_once_both_get_a_place_although_there_is_one_spare(launch: Launcher, free_port: int) -> None:
    ranks = ["all:joined,wait_if_first"]
    options = ["--nnodes", "2", "--replace"]
    spares = ["--node-rank", "1", "--nproc-per-node", "0", "--spares", "1"]
    first = agent(launch, free_port, *options, "--nproc-per-node", "2", "--min-ranks", "2", ranks=ranks)
    second = agent(launch, free_port, *options, *spares, ranks=ranks)
    second.wait_for("is warm")
    pids = [int(first.wait_for(rf"pid (\d+) of rank {rank}")[1]) for rank in range(2)]
    for rank in range(2):
        first.wait_for(f"rank {rank} waits")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    first.wait(expect=0)
    second.wait(expect=0)
    assert "2 of 2 ranks finished" in first.output
