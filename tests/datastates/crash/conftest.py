"""What tests of crashes share: a recorded run of every kind, made once, in processes of its own."""

from pathlib import Path

import pytest

from benchmarks.crash.runs import Run, deltas, fetching, going_on, replacing, saving, two_ranks


@pytest.fixture(scope="session")
def saving_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return saving(tmp_path_factory.mktemp("saving") / "root", backend="auto")


@pytest.fixture(scope="session")
def deltas_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return deltas(tmp_path_factory.mktemp("deltas") / "root")


@pytest.fixture(scope="session")
def two_ranks_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return two_ranks(tmp_path_factory.mktemp("two_ranks") / "root")


@pytest.fixture(scope="session")
def replacing_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return replacing(tmp_path_factory.mktemp("replacing") / "root")


@pytest.fixture(scope="session")
def going_on_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return going_on(tmp_path_factory.mktemp("going_on") / "root", "while retention renames")


@pytest.fixture(scope="session")
def fetching_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fetching(tmp_path_factory.mktemp("fetching") / "root")


@pytest.fixture(scope="session")
def two_rank_checkpoint(two_ranks_run: Run) -> Path:
    """A whole checkpoint of two ranks."""
    return two_ranks_run.root / "runs" / "gpt" / "step-00000002"
