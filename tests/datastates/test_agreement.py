"""Agreement: the same decision on every rank, and messages that name those who stand in the way."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datastates import ArenaExhaustedError, CheckpointError, CheckpointSkipped, CoordinationError
from datastates.agreement import Begin, check_answers, check_replicas, diverging, make_save_plan
from datastates.manifest import DataFile, Manifest, ObjectsFile, dump, load
from datastates.plan import Held
from datastates.providers import COPIED
from oneflow_sbp import Box

READY = Begin(step=3, digest="d", ready=True, attempt="a", problem="", copied_crc32c=[1], samples=[(0, 0, 4, 7)])


def held(name: str, shape: tuple[int, ...], box: Box | None = None, group: int = COPIED) -> Held:
    return Held(name, "float32", 4, shape, box or Box.whole(shape), group)


def test_what_a_rank_says_arrives_as_it_was() -> None:
    arrived = Begin.load(READY.dump())
    assert replace(arrived, samples=[tuple(s) for s in arrived.samples]) == READY


def test_all_ready_is_agreement() -> None:
    for policy in ("wait", "skip", "error"):
        check_answers([READY, READY], policy)


def test_a_problem_of_any_rank_fails_all_and_names_every_such_rank() -> None:
    answers = [READY, replace(READY, problem="OSError: no"), replace(READY, problem="gone")]
    with pytest.raises(CheckpointError, match=r"^rank 1: OSError: no; rank 2: gone$"):
        check_answers(answers, "wait")


def test_different_steps_are_refused_with_all_of_them() -> None:
    with pytest.raises(CoordinationError, match=r"rank 0: 3, rank 1: 4\).*on all ranks alike"):
        check_answers([READY, replace(READY, step=4)], "wait")


def test_without_room_the_policy_decides() -> None:
    answers = [READY, replace(READY, ready=False), replace(READY, ready=False)]
    check_answers(answers, "wait")
    with pytest.raises(CheckpointSkipped, match="no arena room on rank 1, 2"):
        check_answers(answers, "skip")
    with pytest.raises(ArenaExhaustedError, match=r"no arena room on rank 1, 2; .*arena_mb"):
        check_answers(answers, "error")


def test_replicas_whose_samples_differ_are_refused_by_name() -> None:
    both = [[held("w", (2,), group=0)], [held("w", (2,), group=0)]]
    check_replicas(both, [[(0, 0, 8, 5)], [(0, 0, 8, 5)]])
    with pytest.raises(CheckpointError, match=r"w differs between ranks 0 and 1.*datastates\.per_rank"):
        check_replicas(both, [[(0, 0, 8, 5)], [(0, 0, 8, 6)]])


def test_shards_are_no_replicas_of_each_other() -> None:
    shards = [[held("w", (4,), Box((0,), (2,)), 0)], [held("w", (4,), Box((2,), (2,)), 0)]]
    check_replicas(shards, [[(0, 0, 8, 5)], [(0, 0, 8, 6)]])


def test_copied_values_that_differ_belong_to_the_higher_rank() -> None:
    lazy, mean, count = held("w", (2,), group=0), held("mean", (2,)), held("count", ())
    job = [[lazy, mean, count]] * 3
    assert diverging(job, [[1, 2], [1, 2], [1, 2]]) == (frozenset(), frozenset(), frozenset())
    assert diverging(job, [[1, 2], [9, 2], [1, 8]]) == (frozenset(), frozenset({1}), frozenset({2}))
    assert diverging(job[:1], [[]]) == (frozenset(),)


def test_a_part_that_differs_between_its_replicas_is_refused() -> None:
    part = held("mean", (4,), Box((0,), (2,)))
    with pytest.raises(CheckpointError, match=r"mean differs between ranks that hold the same part"):
        diverging([[part], [part]], [[1], [2]])


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[list[Held]], tuple[frozenset[int], ...]]:
    """Ranks that hold replicas, some of them diverging, and shards."""
    num_ranks = draw(st.integers(1, 4))
    shapes = draw(st.lists(st.lists(st.integers(0, 6), max_size=3).map(tuple), max_size=5))
    replicas = [held(f"r{i}", shape) for i, shape in enumerate(shapes)]
    rows = draw(st.integers(0, 9))
    per_rank = -(-rows // num_ranks)
    job = []
    for rank in range(num_ranks):
        begin, end = min(rank * per_rank, rows), min((rank + 1) * per_rank, rows)
        job.append([*replicas, held("sharded", (rows, 2), Box((begin, 0), (end - begin, 2)))])
    own = [draw(st.sets(st.integers(0, len(shapes) - 1))) if shapes and rank else set() for rank in range(num_ranks)]
    return job, tuple(map(frozenset, own))


@settings(max_examples=50)
@given(jobs())
def test_every_plan_makes_a_manifest_that_readers_accept(
    job: tuple[list[list[Held]], tuple[frozenset[int], ...]],
) -> None:
    ranks, own = job
    plan = make_save_plan(ranks, {}, own, 4096)
    files = tuple(
        DataFile(f"{r}", f.size_bytes, len(f.header), 0, f.extent_ends, np.zeros(len(f.extent_ends), dtype=np.uint32))
        for r, f in enumerate(plan.files)
    )
    objects = tuple(ObjectsFile(f"o{r}", 0, 0) for r in range(len(ranks)))
    written = Manifest(0, len(ranks), plan.tensors, files, objects, plan.aliases)
    found = load(dump(written, plan.tensors_text), "manifest.json")
    assert dict(found.tensors) == dict(plan.tensors)
    names = {h.name for tensors in ranks for h in tensors}
    assert names <= set(found.tensors)
    assert set(found.tensors) - names == {
        f"per_rank.{rank}.{ranks[rank][index].name}" for rank, indices in enumerate(own) for index in indices
    }
