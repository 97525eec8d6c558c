"""What the ranks of ``test_ranks.py`` do: ``ranks_job.py STORE ROOT``; results are printed as ``RESULT name json``."""

import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_job import meet, own_rank, result, told
from torch import nn

import datastates
from datastates.tiers import fetch, library, replicator

RANK = own_rank()


def state(value: float) -> dict[str, Any]:
    model = nn.Linear(300, 300)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return {"model": model, "own": datastates.per_rank(torch.full((3,), value + RANK))}


def values(of: dict[str, Any]) -> list[float]:
    return [of["model"].weight.min().item(), of["model"].weight.max().item(), *of["own"].value.tolist()]


def copies(root: Path) -> None:
    """The future resolves alike on all ranks: with the URL, with an error, and with nothing if the tier passes."""
    tier = datastates.Tier(root / "second", every=2)
    with datastates.Checkpointer(root / "run", replicate_to=tier) as checkpoints:
        urls = [checkpoints.checkpoint(step, state(step)).replicated.result(60) for step in (1, 2, 3)]
        result("urls", [url and Path(url).name for url in urls])
        upload = replicator.upload
        replicator.upload = lambda *_, **__: (_ for _ in ()).throw(PermissionError("no entry"))
        result("refused", told(lambda: checkpoints.checkpoint(5, state(5)).replicated.result(60)))
        replicator.upload = upload
        checkpoints.checkpoint(8, state(8))  # close() waits for its copy
    stats = checkpoints.stats()
    result("stats", [stats.num_replicated, stats.num_replications_failed, stats.num_replications_passed_over])


def comes_back(root: Path) -> None:
    """A directory without checkpoints: rank 0 fetches for longer than ranks wait for each other, all restore."""
    get_it = fetch.fetch

    def slowly(*args: Any, **options: Any) -> Any:
        threading.Event().wait(3.0)
        return get_it(*args, **options)

    library.fetch = slowly
    with datastates.Checkpointer(root / "new", replicate_to=root / "second", commit_timeout_s=2) as checkpoints:
        live = state(0)
        result("next", checkpoints.restore(live))
        result("values", values(live))


def nothing_to_come_back_to(root: Path) -> None:
    """Rank 0 cannot list the tier: every rank raises, and says so."""
    (root / "file").touch()
    silent = datastates.Tier("s3://bucket/run", retry_for_s=0, storage_options={"endpoint_url": "http://127.0.0.1:1"})
    with datastates.Checkpointer(root / "none", replicate_to=silent, commit_timeout_s=30) as checkpoints:
        result("silent", told(lambda: checkpoints.restore(state(0))))
        result("unusable", told(lambda: checkpoints.checkpoint(1, state(1))))


def main() -> None:
    store, root = sys.argv[1:]
    meet(store)
    for scenario in (copies, comes_back, nothing_to_come_back_to):
        scenario(Path(root))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
