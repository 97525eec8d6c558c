"""The launcher's pure parts: what became of whom, who takes whose place, which environment and files a rank gets."""

from pathlib import Path

import pytest

from elaswave import exits
from elaswave.launcher import events, places, plan
from elaswave.launcher.events import AgentLost, Death, Entered, Hang, Joined, Pace, Spares, Started
from elaswave.launcher.options import Options
from elaswave.launcher.plan import Job, Node
from elaswave.launcher.roster import Roster
from elaswave.timeouts import Timeouts


def roster(*, num_nodes: int = 2, per_node: int = 2) -> Roster:
    """All ranks running."""
    all_ranks = Roster({node: range(node * per_node, (node + 1) * per_node) for node in range(num_nodes)})
    for rank, seat in list(all_ranks.seats.items()):
        all_ranks.apply(Started(rank=rank, node=seat.node, attempt=0, pid=100 + rank))
    return all_ranks


def death(of: Roster, rank: int, status: int = 137, *, is_replaced: bool = False) -> Death:
    seat = of.seats[rank]
    return Death(
        rank=rank,
        node=seat.node,
        attempt=seat.attempt,
        pid=seat.pid,
        id="",
        status=status,
        how="",
        is_replaced=is_replaced,
    )


def test_left_are_those_that_run_finished_or_are_replaced() -> None:
    ranks = roster()
    ranks.apply(death(ranks, 0, exits.FINISHED))
    ranks.apply(death(ranks, 1))
    ranks.apply(death(ranks, 2, is_replaced=True))
    assert (ranks.num_left(), ranks.num_finished(), ranks.is_over()) == (3, 1, False)
    assert [seat.rank for seat in ranks.vacant()] == [1]


def test_the_job_is_over_when_nothing_that_can_be_reached_runs() -> None:
    ranks = roster()
    for rank in (0, 1):
        ranks.apply(death(ranks, rank, exits.FINISHED))
    assert not ranks.is_over()
    ranks.apply(AgentLost(node=1, why=""))
    assert ranks.is_over()
    assert (ranks.exit_status(min_ranks=2), ranks.num_left()) == (exits.FINISHED, 2)
    assert ranks.exit_status(min_ranks=3) == exits.NO_QUORUM


def test_the_status_is_that_of_the_last_failure_when_too_few_finished() -> None:
    ranks = roster(num_nodes=1)
    ranks.apply(death(ranks, 0, exits.FENCED))
    ranks.apply(death(ranks, 1, 3))
    assert ranks.exit_status(min_ranks=1) == 3


def test_the_state_is_lost_when_all_that_run_wait_for_the_dead() -> None:
    ranks = roster(num_nodes=1)
    ranks.apply(death(ranks, 0, is_replaced=True))
    ranks.apply(Started(rank=0, node=0, attempt=1, pid=200))
    ranks.apply(Joined(rank=0, node=0, attempt=1, id="new", handle=""))
    assert not ranks.has_lost_its_state()  # rank 1 will let it in
    ranks.apply(death(ranks, 1))
    assert ranks.has_lost_its_state()
    ranks.apply(Entered(rank=0, node=0, attempt=1))
    assert not ranks.has_lost_its_state()


def test_the_state_is_not_known_to_be_lost_where_members_may_live_or_somebody_has_finished() -> None:
    for last, is_lost in (
        ([death(roster(), 3)], True),
        ([death(roster(), 3), AgentLost(node=1, why="cut")], False),
        ([death(roster(), 3, exits.FINISHED)], False),
    ):
        ranks = roster()
        for event in (*(death(ranks, rank) for rank in (0, 1, 2)), *last):
            ranks.apply(event)
        ranks.apply(Started(rank=0, node=0, attempt=1, pid=200))
        assert not ranks.has_lost_its_state()  # it may be a script that does not join
        ranks.apply(Joined(rank=0, node=0, attempt=1, id="new", handle=""))
        assert ranks.has_lost_its_state() == is_lost


def test_who_replaces_those_that_lost_their_quorum_waits_for_nobody() -> None:
    ranks = roster()
    ranks.apply(AgentLost(node=0, why="cut"))
    for rank in (2, 3):
        ranks.apply(death(ranks, rank, exits.NO_QUORUM, is_replaced=True))
        ranks.apply(Started(rank=rank, node=1, attempt=1, pid=200 + rank))
        assert not ranks.has_lost_its_state()
    for rank in (2, 3):
        ranks.apply(Joined(rank=rank, node=1, attempt=1, id="new", handle=""))
    assert ranks.has_lost_its_state()
    assert ranks.has_lost_quorum()


def test_news_of_an_earlier_process_of_a_rank_change_nothing() -> None:
    ranks = roster()
    late = death(ranks, 1)
    ranks.apply(Started(rank=1, node=0, attempt=1, pid=200))
    ranks.apply(late)
    assert ranks.seats[1].is_running
    ranks.apply(Joined(rank=1, node=0, attempt=0, id="old", handle=""))
    ranks.apply(Joined(rank=1, node=0, attempt=1, id="new", handle=""))
    assert (ranks.rank_of("old"), ranks.rank_of("new")) == (None, 1)


def test_the_history_leads_a_newcomer_to_the_same_state() -> None:
    ranks = roster()
    for event in (
        Joined(rank=0, node=0, attempt=0, id="a", handle="h"),
        Entered(rank=0, node=0, attempt=0),
        death(ranks, 3),
        Spares(node=0, num_free=2),
        AgentLost(node=1, why="cut"),
    ):
        ranks.apply(event)
    newcomer = Roster({0: range(2), 1: range(2, 4)})
    for event in ranks.history():
        newcomer.apply(events.decode(events.encode(event)))
    assert newcomer.seats == ranks.seats
    assert (newcomer.lost_nodes, newcomer.free_spares) == (ranks.lost_nodes, ranks.free_spares)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="not an event of this version"):
        events.decode({"event": "party", "rank": 1})
    with pytest.raises(ValueError, match="not an event of this version"):
        events.decode({"event": "spares", "node": 1})


def test_silence_and_pace_are_of_running_ranks_only() -> None:
    ranks = roster()
    ranks.apply(Hang(rank=1, node=0, step=3, silent_s=30))
    ranks.apply(Pace(rank=1, node=0, median_s=0.5))
    assert (ranks.silent_ranks, ranks.median_s) == ({1}, {1: 0.5})
    ranks.apply(death(ranks, 1))
    assert (ranks.silent_ranks, ranks.median_s) == (set(), {})


@pytest.mark.parametrize(
    ("spares", "may_start", "expected"),
    [
        ({0: 1, 1: 1}, True, (1, True)),  # of the same node
        ({0: 1}, True, (0, True)),  # of another
        ({0: 0}, True, (1, False)),  # a new process
        ({}, False, None),
    ],
)
def test_who_takes_a_dead_ranks_place(spares: dict[int, int], may_start: bool, expected: object) -> None:
    ranks = roster()
    for node, num_free in spares.items():
        ranks.apply(Spares(node=node, num_free=num_free))
    fill = places.after_death(ranks, rank=3, node=1, may_start=may_start)
    assert (fill and (fill.node, fill.is_spare)) == expected
    assert fill is None or (fill.rank, fill.attempt) == (3, 1)


def test_the_lowest_living_agent_gives_vacant_places_to_spares() -> None:
    ranks = roster(num_nodes=3)
    ranks.apply(death(ranks, 4))
    ranks.apply(AgentLost(node=0, why="cut"))
    ranks.apply(Spares(node=2, num_free=2))
    assert places.vacancies(ranks, node=2, living=[1, 2]) == []
    fills = places.vacancies(ranks, node=1, living=[1, 2])
    assert [(fill.rank, fill.attempt, fill.node) for fill in fills] == [(0, 1, 2), (1, 1, 2)]


def node(number: int, num_workers: int) -> Node:
    return Node(node=number, host=f"h{number}", port=10, store_port=20, num_workers=num_workers, num_spares=0)


def test_ranks_go_through_the_nodes_which_may_differ() -> None:
    job = Job(job="j", secret="ab", nodes={0: node(0, 2), 1: node(1, 3)})
    assert (job.ranks_of(0), job.ranks_of(1), job.num_ranks) == (range(2), range(2, 5), 5)
    assert job.with_node(node(3, 0)).ranks_of(3) == range(5, 5)
    assert job.endpoints() == "h0:10,h1:10"
    assert plan.job_from_wire(plan.job_to_wire(job), secret="ab") == job


def test_a_rank_gets_torchruns_variables_and_ours() -> None:
    job = Job(job="j", secret="ab", nodes={0: node(0, 2), 1: node(1, 3)})
    env = plan.rank_environment(job, node=1, rank=3, local_rank=1, attempt=2, master=job.nodes[0])
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["LOCAL_WORLD_SIZE"]) == ("3", "5", "1", "3")
    assert (env["MASTER_ADDR"], env["MASTER_PORT"], env["TORCHELASTIC_USE_AGENT_STORE"]) == ("h0", "20", "True")
    assert env["ELASWAVE_ATTEMPT"] == "2"
    options = Options(command=("x.py",), timeouts=Timeouts(5), witness="lock", secret="ab")
    env = plan.job_environment(job, options, agent_address="@a", token="t")
    assert (env["ELASWAVE_AGENT"], env["ELASWAVE_FAILURE_TIMEOUT_S"], env["ELASWAVE_WITNESS"]) == ("@a", "5", "lock")


def test_every_process_of_a_rank_has_log_files_of_its_own() -> None:
    names = {plan.rank_logs(Path("d"), rank=3, attempt=attempt) for attempt in range(2)}
    assert names == {(Path(f"d/rank-00003.{n}.out"), Path(f"d/rank-00003.{n}.err")) for n in range(2)}
    assert plan.rank_logs(None, rank=3, attempt=0) == (None, None)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "finished"),
        (3, "exited with 3"),
        (137, "was killed by SIGKILL"),
        (86, "was fenced"),
        (255, "exited with 255"),
    ],
)
def test_ends_in_words(status: int, words: str) -> None:
    assert exits.describe(status) == words
    assert exits.from_wait(-9) == 137
