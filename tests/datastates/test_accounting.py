"""The books: what is counted, and what is due when."""

from pathlib import Path

import pytest

from datastates import CheckpointError, CheckpointSkipped
from datastates.accounting import Accounts
from datastates.config import CheckpointerConfig
from datastates.directory import CheckpointDirectory
from datastates.handle import Checkpoint
from datastates.publishing import NOTHING, Volume
from datastates.sight.events import Origin
from datastates.tiers.replication import Report


def books(**options: object) -> Accounts:
    return Accounts(CheckpointerConfig.of(options), CheckpointDirectory(Path("run")), Origin("run", 0))


def taken(step: int) -> Checkpoint:
    return Checkpoint(step, step, None, {})


def fail(accounts: Accounts, step: int) -> None:
    accounts.finished(taken(step), CheckpointError(f"step {step}"), NOTHING)


def test_every_outcome_is_counted_once() -> None:
    accounts = books()
    for _ in range(3):
        accounts.begun(0.5)
    accounts.waited(0.25)
    accounts.finished(taken(4), None, Volume(3000, 1000, True))
    accounts.finished(taken(5), CheckpointSkipped("no room"), NOTHING)
    fail(accounts, 6)
    accounts.replicated(Report(4, "url", num_copied=1, num_passed_over=1, sent_bytes=7))
    accounts.replicated(Report(6, error="no", num_failed=2))
    stats = accounts.stats()
    assert (stats.num_begun, stats.num_durable, stats.num_skipped, stats.num_failed) == (3, 1, 1, 1)
    assert (stats.call_s_total, stats.gate_wait_s_total, stats.last_durable_step) == (1.5, 0.25, 4)
    assert (stats.bytes_published_total, stats.bytes_written_total, stats.num_deltas) == (3000, 1000, 1)
    assert (stats.num_replicated, stats.num_replications_failed, stats.num_replications_passed_over) == (1, 2, 1)
    assert (stats.bytes_replicated_total, stats.last_replicated_step) == (7, 4)


def test_a_failure_is_due_once_where_it_is_to_be_raised() -> None:
    quiet, loud = books(), books(on_failure="raise")
    for accounts in (quiet, loud):
        fail(accounts, 1)
    quiet.raise_due()
    with pytest.raises(CheckpointError, match="step 1"):
        loud.raise_due()
    loud.raise_due()


def test_failures_in_a_row_stay_due_until_somebody_goes_back() -> None:
    accounts = books(max_consecutive_failures=2)
    for step in (1, 2):
        fail(accounts, step)
    accounts.finished(taken(3), CheckpointSkipped("no room"), NOTHING)  # neither good nor bad
    for _ in range(2):
        with pytest.raises(CheckpointError, match="2 checkpoints failed in a row; the last one: step 2"):
            accounts.raise_due()
    accounts.begin_anew()
    accounts.raise_due()
    fail(accounts, 4)
    accounts.finished(taken(5), None, Volume(1, 1, False))
    fail(accounts, 6)
    accounts.raise_due()  # not in a row
