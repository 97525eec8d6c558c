"""Where other libraries meet ours: one file for each, which alone imports it.

``datastates.dcp_writer`` and ``datastates.dcp_reader`` for ``torch.distributed.checkpoint``; for the others import
``datastates.integrations.transformers`` or ``datastates.integrations.lightning``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datastates.integrations.dcp_read import DcpReader
    from datastates.integrations.dcp_write import DcpWriter

__all__ = ["dcp_reader", "dcp_writer"]


def dcp_writer(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> DcpWriter:
    """A ``storage_writer`` for ``torch.distributed.checkpoint.save`` and ``async_save`` that writes our checkpoints.

    What is written is checksummed, synced, complete, and visible only when whole; nothing is ever overwritten.

    Args:
        path: a directory of checkpoints (``"runs/gpt"``), or one step of it (``"runs/gpt/step-12"``).
        step: which step it becomes; by default the one that ``path`` names, else the one after the newest.
        metadata: JSON values to keep in the manifest.
        options: fields of :class:`datastates.CheckpointerConfig`; ``keep_last`` is ``None`` here, which keeps all.

    Raises:
        ValueError, TypeError: a bad option, or two different steps.
    """
    from datastates.integrations.dcp_write import DcpWriter

    return DcpWriter(path, step=step, metadata=metadata, **options)


def dcp_reader(path: str | os.PathLike[str], *, allow_pickle: bool = False, **options: Any) -> DcpReader:
    """A ``storage_reader`` for ``torch.distributed.checkpoint.load`` that verifies every byte it reads.

    Args:
        path: one step (``"runs/gpt/step-12"``), which is read or refused; or a directory of checkpoints, of which the
            newest whole one is read, all ranks falling back together if it turns out to be damaged.
        allow_pickle: decode values that were stored with ``datastates.pickled``.
        options: ``read_threads``, ``direct_io`` and ``commit_timeout_s`` of :class:`datastates.CheckpointerConfig`.

    Raises:
        ValueError, TypeError: a bad option.
    """
    from datastates.integrations.dcp_read import DcpReader

    return DcpReader(path, allow_pickle=allow_pickle, **options)
