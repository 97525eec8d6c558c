"""The plan of a job: every element stored once, bytes balanced, the same on every rank."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datastates.plan import CUT_BYTES, Held, JobPlan, LayoutConflictError, Piece, per_rank_name, plan_job
from oneflow_sbp import Box

some = settings(max_examples=50)


def held(name: str, shape: tuple[int, ...], box: Box | None = None, itemsize: int = 4, group: int = 0) -> Held:
    return Held(name, {1: "uint8", 4: "float32"}[itemsize], itemsize, shape, box or Box.whole(shape), group)


def sharded(name: str, shape: tuple[int, ...], num_parts: int) -> list[Held]:
    """One row range per part; the last parts may be empty."""
    rows = -(-shape[0] // num_parts)
    cuts = [min(i * rows, shape[0]) for i in range(num_parts + 1)]
    return [
        held(name, shape, Box((a, *(0 for _ in shape[1:])), (b - a, *shape[1:]))) for a, b in itertools.pairwise(cuts)
    ]


# A few elements of a tensor stand for many: an item of 64 KiB makes cuts happen at sizes that NumPy can count.
def coarse(name: str, shape: tuple[int, ...], box: Box) -> Held:
    return Held(name, "float32", 1 << 16, shape, box, 0)


@st.composite
def jobs(draw: st.DrawFn) -> list[list[Held]]:
    """Replicated, sharded, doubly laid out (sharded in half the ranks, each half alike) and partial holdings."""
    num_ranks = draw(st.integers(1, 5))
    job: list[list[Held]] = [[] for _ in range(num_ranks)]
    for i in range(draw(st.integers(0, 8))):
        shape = tuple(draw(st.lists(st.integers(0, 40), min_size=0, max_size=2)))
        ranks = draw(st.sets(st.integers(0, num_ranks - 1), min_size=1).map(sorted))
        num_parts = draw(st.integers(1, len(ranks))) if shape else 1
        parts = sharded(f"t{i}", shape, num_parts) if shape else [held(f"t{i}", shape)]
        for place, rank in enumerate(ranks):
            part = parts[place % num_parts]
            job[rank].append(coarse(part.name, shape, part.box))
    return job


def count_stores(job: list[list[Held]], plan: JobPlan) -> dict[str, np.ndarray]:
    """How often each element of each tensor is written."""
    counts = {tensor.name: np.zeros(tensor.shape, dtype=int) for tensors in job for tensor in tensors}
    for pieces in plan.pieces:
        for piece in pieces:
            counts[piece.name][piece.box.relative_to(Box.whole(counts[piece.name].shape))] += 1
    return counts


@some
@given(jobs())
def test_every_element_is_stored_exactly_once(job: list[list[Held]]) -> None:
    counts = count_stores(job, plan_job(job))
    for name, count in counts.items():
        assert np.all(count == 1), f"{name}: {count}"


@some
@given(jobs())
def test_a_rank_writes_one_piece_of_a_tensor_and_only_what_it_holds(job: list[list[Held]]) -> None:
    for tensors, pieces in zip(job, plan_job(job).pieces, strict=True):
        assert len({piece.name for piece in pieces}) == len(pieces)
        for piece in pieces:
            source = tensors[piece.index]
            assert source.name == piece.name
            assert piece.box.numel == 0 or piece.box.intersect(source.box) == piece.box
            assert piece.box.numel == 0 or piece.box.flat_range_in(source.box) is not None


@some
@given(jobs())
def test_an_empty_box_is_stored_too_so_that_its_name_comes_back(job: list[list[Held]]) -> None:
    stored = {piece.name for pieces in plan_job(job).pieces for piece in pieces}
    assert stored == {tensor.name for tensors in job for tensor in tensors}


@some
@given(jobs())
def test_the_plan_depends_on_nothing_but_what_is_held(job: list[list[Held]]) -> None:
    again = [[Held(h.name, h.dtype, h.itemsize_bytes, h.shape, h.box, h.group) for h in tensors] for tensors in job]
    assert plan_job(job) == plan_job(again)


@given(st.integers(2, 8), st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), min_size=1, max_size=10))
def test_replicas_are_balanced_within_what_cannot_be_cut(num_ranks: int, shapes: list[tuple[int, int]]) -> None:
    tensors = [coarse(f"t{i}", shape, Box.whole(shape)) for i, shape in enumerate(shapes)]
    plan = plan_job([tensors] * num_ranks)
    loads = [sum(piece.box.numel << 16 for piece in pieces) for pieces in plan.pieces]
    # a tensor below the cut size moves as a whole, a larger one in rows; a stub below a quarter of it is not left over
    grain = max(h.nbytes if h.nbytes < CUT_BYTES else h.nbytes // h.shape[0] + CUT_BYTES // 4 for h in tensors)
    assert max(loads) <= sum(loads) / num_ranks + 2 * grain


def test_one_large_replica_is_shared_evenly() -> None:
    job = [[held("w", (1024, 1024))]] * 4
    assert [sum(p.box.numel for p in pieces) for pieces in plan_job(job).pieces] == [256 * 1024] * 4


def test_a_rank_with_much_of_its_own_writes_less_of_the_common() -> None:
    common = held("common", (256, 1024))
    plan = plan_job([[common, held("own", (256, 1024))], [common]])
    names = [{piece.name for piece in pieces} for pieces in plan.pieces]
    assert names == [{"own"}, {"common"}]


def test_a_small_replica_is_not_cut() -> None:
    rows = CUT_BYTES // 4096 - 1
    plan = plan_job([[held("w", (rows, 1024))]] * 4)
    assert sum(map(len, plan.pieces)) == 1


def test_sharded_boxes_stay_where_they_are() -> None:
    parts = sharded("w", (10, 3), 4)
    plan = plan_job([[part] for part in parts])
    assert [pieces[0].box for pieces in plan.pieces] == [part.box for part in parts]


def test_values_of_one_rank_alone_are_stored_under_a_name_of_their_own() -> None:
    mean = held("bn.mean", (4,), group=-1)
    plan = plan_job([[mean], [mean], [mean]], own=[frozenset(), frozenset(), frozenset({0})])
    assert sorted(piece.name for pieces in plan.pieces for piece in pieces) == ["bn.mean", "per_rank.2.bn.mean"]
    assert plan.pieces[2] == (Piece(0, per_rank_name(2, "bn.mean"), mean.box),)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (held("w", (3, 2)), r"w is float32\[2, 3\] on rank 0 but float32\[3, 2\] on rank 1"),
        (held("w", (2, 3), itemsize=1), r"w is float32\[2, 3\] on rank 0 but uint8\[2, 3\] on rank 1"),
    ],
)
def test_one_name_with_two_layouts_is_refused_with_ranks_and_remedy(other: Held, said: str) -> None:
    with pytest.raises(LayoutConflictError, match=said + r".*DTensor.*datastates\.per_rank"):
        plan_job([[held("w", (2, 3))], [other]])


def test_a_state_without_tensors_has_a_plan() -> None:
    assert plan_job([[], []]).pieces == ((), ())
