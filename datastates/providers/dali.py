"""NVIDIA DALI: pipelines give their position away as bytes, and take it back only when they are built.

Holders with ``state_dict()`` and ``load_state_dict()``; nothing of DALI is imported here. DALI resumes its readers,
their shuffling and its random operators; a stateful Python source (``external_source`` with an iterator) begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class DaliPipeline:
    """See :func:`dali_pipeline`.

    Attributes:
        pipeline: the pipeline; another one after a restore, so ask for it anew and keep no reference of your own.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self.pipeline = _built(make())

    def run(self) -> Any:
        """The next batch, as the pipeline's ``run()`` gives it."""
        return self.pipeline.run()

    def state_dict(self) -> dict[str, Any]:
        """The pipeline's position and the state of its random operators."""
        return {"checkpoint": self.pipeline.checkpoint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Build the pipeline again, at the position of ``state``."""
        self.pipeline = _built(self._make(checkpoint=state["checkpoint"]))


class DaliIterator:
    """See :func:`dali_iterator`.

    Attributes:
        iterator: the iterator; another one after a restore, so ask for it anew and keep no reference of your own.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self.iterator = make()

    def __iter__(self) -> Iterator[Any]:
        """The batches of one epoch; after a restore, those that are left of it."""
        return iter(self.iterator)

    def state_dict(self) -> dict[str, Any]:
        """The positions of its pipelines."""
        return {"checkpoints": self.iterator.checkpoints()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make pipelines and iterator again, at the positions of ``state``."""
        self.iterator = self._make(checkpoints=state["checkpoints"])


def dali_pipeline(make: Callable[..., Any]) -> DaliPipeline:
    """Hold a DALI pipeline so that its position can be checkpointed; every rank has its own.

    Args:
        make: makes the pipeline, with ``enable_checkpointing=True``; called without arguments now, and with
            ``checkpoint=bytes`` by every restore. A function made by ``pipeline_def`` will do.
    """
    return DaliPipeline(make)


def dali_iterator(make: Callable[..., Any]) -> DaliIterator:
    """Hold a DALI iterator (``DALIGenericIterator`` and its kin) so that its position can be checkpointed.

    Args:
        make: makes the pipelines, with ``enable_checkpointing=True``, and the iterator over them; called without
            arguments now, and with ``checkpoints=[bytes of each pipeline]`` by every restore.
    """
    return DaliIterator(make)


def _built(pipeline: Any) -> Any:
    pipeline.build()
    return pipeline
