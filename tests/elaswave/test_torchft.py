"""torchft's Manager decides, our group follows: a replica is killed, the others train on, and stay equal."""

import importlib.util
from pathlib import Path

import pytest
import torch
from launching import Launched, Launcher

JOB = Path(__file__).parent / "torchft_job.py"
SAME_JOB = {"ELASWAVE_JOB": "torchft-test", "ELASWAVE_SECRET": "5ec2e7" * 8}


def wait_for_step(replica: Launched, num_participants: int, step: str = r"\d+") -> tuple[int, str]:
    """The first committed step among so many, or this one, and the sum of the parameters after it."""
    found = replica.wait_for(rf"^COMMITTED ({step}) {num_participants} (\S+)$", timeout_s=100)
    return int(found.group(1)), found.group(2)


def test_a_manager_drives_our_group_past_the_death_of_a_replica(launch: Launcher) -> None:
    if not hasattr(torch.distributed, "_reconfigure"):  # nothing to be run: test_backend_reconfigure.py says so
        return
    if importlib.util.find_spec("torchft") is None:
        pytest.skip("torchft is not installed: pip install torchft")
    lighthouse = launch.python(JOB, "lighthouse")
    address = lighthouse.wait_for(r"^LIGHTHOUSE (\S+)$").group(1)
    replicas = [launch.python(JOB, address, name, env=SAME_JOB) for name in ("a0", "b1", "c2")]
    for replica in replicas:
        wait_for_step(replica, 3)
    replicas[1].process.kill()
    survivors = [replicas[0], replicas[2]]
    later = max(wait_for_step(survivor, 2)[0] for survivor in survivors) + 3
    first, second = (wait_for_step(survivor, 2, str(later)) for survivor in survivors)
    assert first == second
