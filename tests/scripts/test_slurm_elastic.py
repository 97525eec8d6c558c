"""scripts/slurm/elastic.sbatch on a real Slurm: a node fails and the job goes on, a spare takes over, a requeue."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from polling import until
from slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "elastic.sbatch"
RANK_SCRIPT = ROOT / "tests" / "elaswave" / "launched_rank.py"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not() or "a Slurm can be started"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm"), num_nodes=3) as cluster:
        yield cluster


class Job:
    """A batch job and its log."""

    def __init__(self, slurm: Cluster, directory: Path, *ranks: str, sbatch: tuple[str, ...], **settings: str) -> None:
        self._slurm, self._log = slurm, directory / "job.log"
        given = {"PYTHON": sys.executable, "TRAIN_SCRIPT": str(RANK_SCRIPT), "MASTER_HOST": "127.0.0.1", **settings}
        export = "ALL," + ",".join(f"{name}={value}" for name, value in given.items())
        options = ["--parsable", f"--export={export}", f"--output={self._log}", f"--chdir={directory}"]
        self.id = slurm.command("sbatch", *options, "--cpus-per-task=1", *sbatch, SCRIPT, *ranks).strip()

    @property
    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def field(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self._slurm.command("scontrol", "show", "job", self.id))
        assert found
        return found[1]

    def wait_for(self, pattern: str) -> None:
        def is_there() -> bool:
            over = self.field("JobState") in ("FAILED", "COMPLETED", "CANCELLED", "NODE_FAIL")
            found = bool(re.search(pattern, self.output))
            assert found or not over, f"the job has ended without {pattern!r}:\n{self.output}{self._slurm.logs()}"
            return found

        until(is_there)

    def wait(self) -> str:
        """The state in which it ends."""
        until(lambda: self.field("JobState") not in ("PENDING", "RUNNING", "COMPLETING"))
        return self.field("JobState")


def test_near_its_time_limit_a_job_is_told_ends_well_and_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path, "all:joined,signal", sbatch=("--nodes=1",), PROCS_PER_NODE="2")
    job.wait_for("heard joined .*'rank': 0")
    job.wait_for("heard joined .*'rank': 1")
    (results,) = tmp_path.glob(".elastates-*")  # of this run; the requeued one makes its own
    slurm.command("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_for("time limit near: training ended with status 0, requeueing job")
    until(lambda: job.field("Restarts") == "1")
    slurm.command("scancel", job.id)
    until(lambda: not results.exists())


def test_a_node_fails_a_spare_node_takes_over_and_the_job_succeeds(slurm: Cluster, tmp_path: Path) -> None:
    ranks = ("0:joined,agent_lost=1,rejoined=1", "1:joined,wait_if_first")
    job = Job(slurm, tmp_path, *ranks, sbatch=("--nodes=3",), PROCS_PER_NODE="1", SPARE_NODES="1")
    job.wait_for("spare 2.0 .* is warm")
    job.wait_for("rank 1 waits")
    slurm.kill_node("n2")
    slurm.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=power")  # as a health check would
    assert job.wait() == "COMPLETED", job.output + slurm.logs()
    assert "node 1 is lost" in job.output
    assert "rank 1: a spare of node 2 takes its place" in job.output
    assert {"done 0", "done 1"} <= set(job.output.splitlines())
