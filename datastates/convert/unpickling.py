"""Reading what ``torch.save`` wrote without running code of the file, unless the user trusts it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

_SAFE: list[Any] = [
    np.ndarray,
    np.dtype,
    np.zeros(0).__reduce__()[0],
    np.float64().__reduce__()[0],
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
"""NumPy arrays and scalars (a NumPy generator's state is one): their constructors only make arrays."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")


def torch_load(file: Path | IO[bytes], where: str, allow_pickle: bool, mmap: bool = False) -> Any:
    """``torch.load`` to the host.

    Args:
        file: a path, or an open file.
        where: what to call it in messages.
        allow_pickle: let pickle construct whatever the file asks for, which can run code.
        mmap: leave tensors in the file until they are wanted.

    Raises:
        ValueError: a value that only pickle can read, without ``allow_pickle``, or no file of ``torch.save``.
    """
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(file, map_location="cpu", mmap=mmap, weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f"a {found[1]}" if found else "more than tensors and plain values"
        raise ValueError(
            f"{where} holds {what}, which only pickle can read; pass --allow-pickle (allow_pickle=True) if you trust it"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{where} is no file of torch.save: {error}") from error
