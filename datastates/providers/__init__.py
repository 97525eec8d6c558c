"""State providers: what a piece of training state consists of, one file per kind."""

from datastates.providers.base import (
    COPIED,
    Context,
    Saved,
    Section,
    SectionBuilder,
    StateProvider,
    Undo,
    provider_by_type,
    provider_for,
    register_provider,
)
from datastates.providers.chunked import ChunkedProvider, ChunkedState
from datastates.providers.composite import CompositeProvider, Parts
from datastates.providers.dali import DaliIterator, DaliPipeline, dali_iterator, dali_pipeline
from datastates.providers.generator import GeneratorProvider
from datastates.providers.module import ModuleProvider
from datastates.providers.optimizer import OptimizerProvider
from datastates.providers.per_rank import PerRank, PerRankProvider, per_rank
from datastates.providers.rng import RngProvider, RngState, rng_state
from datastates.providers.sampler import DistributedSamplerProvider
from datastates.providers.stateful import StatefulProvider
from datastates.providers.tensor import TensorProvider
from datastates.providers.tree import TreeProvider

__all__ = [
    "COPIED",
    "ChunkedState",
    "CompositeProvider",
    "Context",
    "DaliIterator",
    "DaliPipeline",
    "Parts",
    "PerRank",
    "RngState",
    "Saved",
    "Section",
    "SectionBuilder",
    "StateProvider",
    "TreeProvider",
    "Undo",
    "dali_iterator",
    "dali_pipeline",
    "per_rank",
    "provider_by_type",
    "provider_for",
    "register_provider",
    "rng_state",
]

for _provider in (
    StatefulProvider(),
    TreeProvider(),
    TensorProvider(),
    RngProvider(),
    GeneratorProvider(),
    DistributedSamplerProvider(),
    ChunkedProvider(),
    PerRankProvider(),
    OptimizerProvider(),
    ModuleProvider(),
):
    register_provider(_provider)
