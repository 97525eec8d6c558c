"""Sinks that outlive no test, and a run to look at."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from datastates import sight
from datastates.sight.bus import sinks


@pytest.fixture(autouse=True)
def nobody_listens_afterwards() -> Iterator[None]:
    """Sinks are global: the next test must not be seen by this one's."""
    yield
    sight.flush()
    sinks.clear()


@pytest.fixture
def events() -> list[sight.Event]:
    """Every event from now on, once ``sight.flush()`` has returned."""
    found: list[sight.Event] = []
    sight.add_sink(found.append)
    return found


@pytest.fixture
def state() -> dict[str, Any]:
    """A small model after one step of its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "epoch": 3}
