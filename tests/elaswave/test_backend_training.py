"""Stock DDP, FSDP2, DTensor and functional programs: backend "elastic" gives what gloo gives."""

import json
import re
from pathlib import Path

from launching import Launcher

JOB = Path(__file__).parent / "backend_training_job.py"


def test_stock_programs_give_what_they_give_with_gloo(launch: Launcher, free_port: int) -> None:
    ranks = launch.ranks(JOB, num_ranks=4, port=free_port)
    for rank in ranks:
        rank.wait(timeout_s=110)
    for rank in ranks:
        (line,) = re.findall(r"^RESULT \d+ (.*)$", rank.output, re.MULTILINE)
        assert set(json.loads(line)) == {"ddp", "ddp_with_hook", "fsdp", "hybrid_fsdp", "dtensors", "functional"}
