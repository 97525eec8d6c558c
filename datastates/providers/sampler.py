"""``torch.utils.data.DistributedSampler``: the epoch, and the seed, that its order is a function of."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler

from datastates.providers.base import Context, Saved, SectionBuilder, StateProvider


class DistributedSamplerProvider(StateProvider):
    """Has no position within the epoch: that is the data loader's to keep, as ``StatefulDataLoader`` does."""

    handles = (DistributedSampler,)
    exact = True  # one with a state_dict() of its own, such as torchdata's, keeps more

    def collect(self, value: DistributedSampler[Any], out: SectionBuilder) -> None:
        out.section.python = lambda: {"epoch": value.epoch, "seed": value.seed}
        out.section.guard = lambda: True

    def apply(
        self, value: DistributedSampler[Any], name: str, context: Context, saved: Saved
    ) -> DistributedSampler[Any]:
        stored = saved.python(name)
        if stored is not None:
            value.seed = stored["seed"]
            value.set_epoch(stored["epoch"])
        return value
