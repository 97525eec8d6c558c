"""State providers: what a piece of training state consists of, one file per kind."""

from datastates.providers.base import (
    COPIED,
    Context,
    Saved,
    Section,
    SectionBuilder,
    StateProvider,
    Undo,
    provider_for,
    register_provider,
)
from datastates.providers.module import ModuleProvider
from datastates.providers.optimizer import OptimizerProvider
from datastates.providers.per_rank import PerRank, PerRankProvider, per_rank
from datastates.providers.rng import RngProvider, RngState, rng_state
from datastates.providers.stateful import StatefulProvider
from datastates.providers.tensor import TensorProvider
from datastates.providers.tree import TreeProvider

__all__ = [
    "COPIED",
    "Context",
    "PerRank",
    "RngState",
    "Saved",
    "Section",
    "SectionBuilder",
    "StateProvider",
    "TreeProvider",
    "Undo",
    "per_rank",
    "provider_for",
    "register_provider",
    "rng_state",
]

for _provider in (
    StatefulProvider(),
    TreeProvider(),
    TensorProvider(),
    RngProvider(),
    PerRankProvider(),
    OptimizerProvider(),
    ModuleProvider(),
):
    register_provider(_provider)
