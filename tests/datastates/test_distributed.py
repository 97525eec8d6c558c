"""Real ranks: killed and resumed, restored on other numbers of ranks, in disagreement, damaged, dying.

``distributed_job.py`` is what they run; they report in lines that begin with ``RESULT``.
"""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from launching import Launched, Launcher
from torch.distributed.checkpoint import HuggingFaceStorageReader

from datastates.directory import read_manifest

JOB = Path(__file__).with_name("distributed_job.py")


class Job:
    """The ranks of one scenario."""

    def __init__(self, launch: Launcher, store: Path, scenario: str, *arguments: object, num_ranks: int) -> None:
        self.ranks: list[Launched] = launch.ranks(
            JOB,
            scenario,
            str(store),
            *map(str, arguments),
            num_ranks=num_ranks,
            port=0,  # ranks meet over the file
            # torch looks up the names of peers' addresses, which takes 5 s where nobody answers.
            env={"GLOO_SOCKET_IFNAME": "lo", "RES_OPTIONS": "timeout:1 attempts:1"},
        )

    def results(self, name: str, ranks: list[int] | None = None, timeout_s: float = 100) -> list[Any]:
        """What each rank reported under ``name``, as soon as it has."""
        chosen = self.ranks if ranks is None else [self.ranks[rank] for rank in ranks]
        pattern = rf"^RESULT {re.escape(name)} (.*)$"
        return [json.loads(rank.wait_for(pattern, timeout_s=timeout_s)[1]) for rank in chosen]

    def wait(self) -> None:
        for rank in self.ranks:
            rank.wait(timeout_s=60)


# ---- training


@pytest.mark.slow
def test_four_ranks_killed_and_resumed_have_the_bits_of_an_uninterrupted_job(launch: Launcher, tmp_path: Path) -> None:
    """Saved at step 5, killed in the middle of a later checkpoint, compared at step 20."""
    run = tmp_path / "run"
    first = Job(launch, tmp_path / "store1", "train", run, tmp_path / "uninterrupted", num_ranks=4)
    assert first.results("dumped") == [True] * 4
    for rank in first.ranks:
        rank.signal(signal.SIGKILL)
    for rank in first.ranks:
        assert rank.wait(expect=None) == -signal.SIGKILL
    assert [path.name for path in run.glob("step-*")] == ["step-00000005"]
    assert len(list(run.glob(".tmp-step-00000021-*"))) == 1

    second = Job(launch, tmp_path / "store2", "train", run, tmp_path / "resumed", num_ranks=4)
    assert second.results("start") == [6] * 4
    assert second.results("cleared")[0] == [".lock", "step-00000005", "step-00000105"]
    assert second.results("dumped") == [True] * 4

    wanted, found = (
        [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(4)] for name in ("uninterrupted", "resumed")
    )
    for rank in range(4):
        assert wanted[rank].keys() == found[rank].keys()
        assert [name for name in wanted[rank] if not torch.equal(wanted[rank][name], found[rank][name])] == []
    means = [tuple(values["model.norm.running_mean"].tolist()) for values in wanted]
    assert len(set(means)) == 4  # every rank's own statistics came back to it
    assert_stored_once_and_balanced(run / "step-00000005")


def assert_stored_once_and_balanced(checkpoint: Path) -> None:
    """12.7 MB of replicated state: no byte twice, the ranks' shares within 5 % of each other."""
    manifest = read_manifest(checkpoint)
    unique = sum(
        torch.Size(info.shape).numel() * getattr(torch, info.dtype).itemsize for info in manifest.tensors.values()
    )
    stored = [file.size_bytes - file.header_bytes for file in manifest.files]
    assert len(stored) == 4
    assert sum(stored) == unique
    assert max(stored) < 1.05 * min(stored)
    assert [name for name in manifest.tensors if name.endswith("norm.running_mean")] == [
        "model.norm.running_mean",
        *(f"per_rank.{rank}.model.norm.running_mean" for rank in (1, 2, 3)),
    ]


# ---- other numbers of ranks


@pytest.fixture(scope="module")
def of_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(directory, expected values) of a state in many layouts, saved by four ranks."""
    root = tmp_path_factory.mktemp("layouts")
    launcher = Launcher(cwd=root)
    try:
        job = Job(launcher, root / "store", "save_layouts", root / "run", root / "expected.pt", num_ranks=4)
        assert job.results("published") == ["step-00000001"] * 4
        assert job.results("as distributed") == [[]] * 4
        job.wait()
    finally:
        launcher.close()
    return root / "run", root / "expected.pt"


@pytest.mark.slow
def test_four_ranks_then_two_then_three_hold_the_same_bits(
    of_four: tuple[Path, Path], launch: Launcher, tmp_path: Path
) -> None:
    """DDP, FSDP2, and DTensors sharded by rows, by columns, on a plane of ranks, and with empty shards."""
    directory, expected = of_four
    for step, num_ranks in ((2, 2), (3, 3)):
        store = tmp_path / f"store{num_ranks}"
        job = Job(launch, store, "load_layouts", directory, expected, step, num_ranks=num_ranks)
        assert job.results("start") == [step] * num_ranks
        assert job.results("different") == [[]] * num_ranks
        assert job.results("unknown") == [[]] * num_ranks
        job.wait()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninit:UserWarning")
def test_stock_dcp_reads_what_four_sharded_ranks_wrote(of_four: tuple[Path, Path]) -> None:
    directory, expected = of_four
    wanted = torch.load(expected)
    state = {name: torch.zeros_like(value) for name, value in wanted.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(directory / "step-00000001")))
    assert [name for name, value in wanted.items() if not torch.equal(state[name], value)] == []


# ---- disagreement, damage, failures of one rank


@pytest.fixture(scope="module")
def disagreements(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Two ranks that go through every scenario of ``distributed_job.SCENARIOS``."""
    root = tmp_path_factory.mktemp("disagree")
    launcher = Launcher(cwd=root)
    yield Job(launcher, root / "store", "disagree", root / "runs", num_ranks=2)
    launcher.close()


def assert_refused_alike(results: list[list[Any]], says: str) -> None:
    """All ranks failed the first checkpoint for the same reason, published the next, and left nothing else."""
    for failed, good, steps, _ in results:
        assert re.search(says, failed), failed
        assert good == ""
        assert steps == [7]
    assert results[0][3] == [".lock", "step-00000007"]


def test_one_rank_saves_by_itself_what_all_hold(disagreements: Job) -> None:
    (_, refused, *other, _), (saved, _, *one, part) = disagreements.results("one_for_all")
    assert saved == ""
    assert "DirectoryBusyError" in refused
    assert one == other == [5, True]
    assert "hold 2 of the 4 elements of half, a sharded tensor of shape [4]" in part


def test_replicas_that_differ_are_refused_by_name_and_ranks(disagreements: Job) -> None:
    says = r"model\.weight differs between ranks 0 and 1, but looks like a replica"
    assert_refused_alike(disagreements.results("diverged"), says)


def test_ranks_that_ask_for_different_steps_are_refused(disagreements: Job) -> None:
    says = r"CoordinationError: .*different steps \(rank 0: 3, rank 1: 4\)"
    assert_refused_alike(disagreements.results("different_steps"), says)


def test_ranks_that_hold_different_shapes_are_refused(disagreements: Job) -> None:
    says = r"value is float32\[2\] on rank 0 but float32\[3\] on rank 1"
    assert_refused_alike(disagreements.results("different_shapes"), says)


def test_a_failed_write_of_one_rank_fails_all_and_names_it(disagreements: Job) -> None:
    says = r"checkpoint of step 1.* on rank 1: .*rank-00001.*No space left on device"
    assert_refused_alike(disagreements.results("write_fails"), says)


def test_one_full_arena_makes_all_ranks_skip(disagreements: Job) -> None:
    for skipped, good, steps in disagreements.results("one_is_full"):
        assert re.search("CheckpointSkipped: .*no arena room on rank 1", skipped), skipped
        assert (good, steps) == ("", [0, 2])


def test_room_is_counted_in_what_a_rank_writes(disagreements: Job) -> None:
    assert disagreements.results("room_for_two") == [[["", ""], ["", ""]]] * 2


def test_a_state_refused_on_one_rank_does_not_put_the_ranks_out_of_step(disagreements: Job) -> None:
    (first, of_one), (refused, of_other) = [(r[0], r[1:]) for r in disagreements.results("state_of_one_refused")]
    assert "rank 1" in first
    assert refused.startswith("TypeError: state['thing']")
    assert of_one == of_other == ["", [1]]


def test_structures_that_change_are_agreed_on_anew(disagreements: Job) -> None:
    assert disagreements.results("structure_changes") == [[["", "", ""], [0, 1, 2]]] * 2


def test_ranks_that_see_different_directories_are_told(disagreements: Job) -> None:
    for error in disagreements.results("different_directories"):
        assert re.match(r"NotOneDirectoryError: ranks 1 \(.*\) do not see the .*of-rank-\d that rank 0 sees", error), (
            error
        )


def test_damage_in_one_ranks_files_makes_all_fall_back_together(disagreements: Job) -> None:
    assert disagreements.results("damage") == [[1, True]] * 2


def test_python_state_comes_back_to_its_rank(disagreements: Job) -> None:
    assert disagreements.results("own_python_state") == [[0, [0.0, 0.0]], [1, [1.0, 1.0]]]


# ---- death


@pytest.mark.parametrize(("victim", "when"), [(2, "before"), (2, "within"), (0, "within")])
def test_the_death_of_a_rank_fails_the_others_in_time_and_names_it(
    victim: int, when: str, launch: Launcher, tmp_path: Path
) -> None:
    job = Job(launch, tmp_path / "store", "die", tmp_path / "run", victim, when, num_ranks=3)
    survivors = [rank for rank in range(3) if rank != victim]
    for error, step_error, elapsed_s, steps in job.results("outcome", survivors):
        assert re.match(rf"(Coordination|Checkpoint)Error: checkpoint of step 1.*rank {victim}", error), error
        assert step_error == ""
        assert elapsed_s < 20
        assert steps == [0]
    assert job.results("closed", survivors) == [True, True]
    for rank in survivors:
        job.ranks[rank].wait(timeout_s=20)
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-00000000"]
