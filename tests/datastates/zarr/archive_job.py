"""What the ranks of ``test_unarchive.py`` do: ``archive_job.py STORE ARCHIVE``."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_job import meet, own_rank, result, told

import datastates
from datastates.zarr.archive_reader import ArchiveReader


def fresh() -> dict[str, Any]:
    return {"w": torch.zeros(16, 10), "n": 0}


def main() -> None:
    store, path = sys.argv[1:]
    meet(store)
    state = fresh()
    step = datastates.restore_archive(path, state)
    result("restored", [step, state["n"], bool(state["w"].any())])

    load = ArchiveReader.load
    if own_rank() == 1:
        ArchiveReader.load = lambda self, targets: Path(path, "gone").read_bytes()  # type: ignore[assignment]
    result("damaged", told(lambda: datastates.restore_archive(path, fresh())))
    ArchiveReader.load = load  # type: ignore[method-assign]

    more = {"more": torch.zeros(1)} if own_rank() == 1 else {}
    result("misfit", told(lambda: datastates.restore_archive(path, fresh() | more)))
    result("absent", told(lambda: datastates.restore_archive(path if own_rank() == 0 else "nowhere", fresh())))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
