"""Checkpoints that tests of views and archives share."""

from pathlib import Path

import pytest
import torch
from kinds import every_kind
from rank_files import Cut, even, write_ranks


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Every element type and odd shape, sharded over 4 ranks along one dim or another, unevenly, or replicated."""
    values = every_kind()
    cuts: dict[str, Cut] = {}
    for number, (name, value) in enumerate(values.items()):
        if value.dim() and number % 3:
            cuts[name] = even(value.shape, number % value.dim(), 4)
    cuts["shapes.line"] = (0, [0, 3, 3, 16])
    directory = tmp_path_factory.mktemp("runs")
    python = [{"epoch": rank, "pair": {"$": "tuple", "v": [1, 2]}} for rank in range(4)]
    write_ranks(directory, values, cuts, python, aliases={"kinds.tied": "kinds.float32"}, chunk_bytes=256)
    return directory, values
