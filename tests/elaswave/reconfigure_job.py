"""What the ranks of ``test_backend_reconfigure.py`` do: torch's fault tolerance contract, with the backend named.

Rank 2 dies on the way; handles are exchanged through the store, as a launcher or torchft's quorum would.
"""

import json
import os
import signal
import sys
from typing import Any

import torch
import torch.distributed as dist

import elaswave  # noqa: F401  (registers the backend)

RANK, NUM_RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def handles(stage: str, ranks: list[int]) -> list[str]:
    """The ranks' present handles, in this order."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"{stage}/{RANK}", dist._get_reconfigure_handle())
    return [store.get(f"{stage}/{rank}").decode() for rank in ranks]


def total(value: float) -> float:
    tensor = torch.full((20_000,), value)
    dist.all_reduce(tensor)
    return tensor[-1].item()


def failure(attempt: Any) -> str:
    try:
        attempt()
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return ""


def main() -> None:
    dist.init_process_group("elastic", enable_reconfigure=True)
    group = dist.group.WORLD
    seen: dict[str, Any] = {"supported": dist._supports_reconfigure(), "told": [group.rank(), group.size()]}
    seen["too early"] = failure(lambda: total(1.0))

    everybody = handles("first", [2, 1, 0])
    assert dist._reconfigure(uuid=7, handles=everybody).wait()
    seen["listed"] = [dist.get_rank(), dist.get_world_size(), total(RANK)]
    seen["reused"] = failure(lambda: dist._reconfigure(uuid=7, handles=everybody))
    seen["stranger"] = failure(
        lambda: dist._reconfigure(uuid=8, handles=[h for h in everybody if h != everybody[2 - RANK]])
    )

    if RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    seen["lost"] = "lost rank 0 " in failure(lambda: total(1.0))
    group.abort()
    seen["aborted"] = failure(lambda: total(1.0)) != ""
    dist._reconfigure(uuid=9, handles=set(handles("second", [0, 1]))).wait()
    seen["unordered"] = [dist.get_world_size(), total(RANK)]
    seen["ranks"] = dist.get_rank()
    print("RESULT", RANK, json.dumps(seen), flush=True)


if __name__ == "__main__":
    sys.exit(main())
