"""Text as bytes, and the rows of every step."""

import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt.config import Config


def text_files(data: str) -> list[Path]:
    """List the files to train on, in an order that depends on nothing but their names."""
    root = Path(data or sysconfig.get_paths()["stdlib"])
    if root.is_file():
        return [root]
    files: list[Path] = []
    for directory, children, names in os.walk(root):
        if not data:  # what pip installed is not the standard library
            children[:] = [name for name in children if name not in ("site-packages", "dist-packages")]
        files += [Path(directory, name) for name in names if data or name.endswith(".py")]
    if not files:
        raise FileNotFoundError(f"no text to train on: {root} is neither a file nor a directory with files in it")
    return sorted(files)


def token_cache(config: Config) -> Path:
    """Write the text as one .npy of bytes unless that is done already; returns its path, which names the content."""
    files = text_files(config.data)
    listing = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    name = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]
    cache = Path(config.cache_dir) / f"{Path(config.data).name or 'stdlib'}-{name}.npy"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f".{cache.name}.{os.getpid()}")
        with open(unfinished, "wb") as file:
            np.save(file, np.frombuffer(b"\n".join(path.read_bytes() for path in files), np.uint8))
        os.replace(unfinished, cache)  # a reader sees all of it or nothing, also when two jobs start together
    return cache


class Rows:
    """Rows of T + 1 bytes in a shuffled order; every row comes once per epoch.

    exact: the order is a function of (seed, epoch), and `rows_served`, the whole position, is the same on every rank
    and in the checkpoint. So a resumed job neither skips nor repeats a row, on whatever number of ranks.
    """

    def __init__(self, tokens: np.ndarray, config: Config, rank: int, num_ranks: int) -> None:
        self.tokens, self.config, self.rank, self.num_ranks = tokens, config, rank, num_ranks
        num_rows = (len(tokens) - 1) // config.context
        self.num_train = int(num_rows * (1 - config.eval_fraction))
        self.num_eval = num_rows - self.num_train
        if self.num_train < 1 or (config.eval_every and self.num_eval < config.eval_rows):
            has = f"{len(tokens)} bytes of text make {self.num_train} rows to train and {self.num_eval} to evaluate on"
            raise ValueError(f"{has}; needed: 1 and {config.eval_rows} rows of {config.context} bytes")
        self.rows_served = 0
        self.identity = {"text_crc32": zlib.crc32(tokens.data), "seed": config.seed, "context": config.context}
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def slots(self) -> range:
        """The micro-batches of every step that are this rank's; they belong to the step and are dealt to the ranks."""
        return range(self.rank, self.config.num_slots, self.num_ranks)

    def next_step(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's micro-batches of one optimizer step, each an input and a target of [B, T]."""
        first, size = self.rows_served, self.config.micro_batch
        self.rows_served += self.config.global_batch
        for slot in self.slots():
            yield self._rows([self._shuffled(row) for row in range(first + slot * size, first + (slot + 1) * size)])

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's share of the evaluation rows, one by one; they are spread over the held-out text."""
        stride = self.num_eval // self.config.eval_rows
        for row in range(self.rank, self.config.eval_rows, self.num_ranks):
            yield self._rows([self.num_train + row * stride])

    def state_dict(self) -> dict[str, int]:
        return {"rows_served": self.rows_served} | self.identity

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name, value in self.identity.items():
            if state[name] != value:
                raise ValueError(
                    f"cannot go on with other data: {name} is {state[name]} in the checkpoint, {value} now"
                )
        self.rows_served = state["rows_served"]

    def _shuffled(self, row: int) -> int:
        epoch, index = divmod(row, self.num_train)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox([self.config.seed, epoch]))
            self._epoch, self._order = epoch, random.permutation(self.num_train)
        return int(self._order[index])

    def _rows(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        length = self.config.context
        batch = torch.from_numpy(np.stack([self.tokens[row * length : (row + 1) * length + 1] for row in rows])).long()
        return batch[:, :-1], batch[:, 1:]
