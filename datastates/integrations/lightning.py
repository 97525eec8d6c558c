"""Checkpoints of a Lightning ``Trainer``, as a callback.

trainer = Trainer(callbacks=[CheckpointCallback("runs/resnet", every_n_steps=50)])
trainer.fit(model, loader)         # continues from the newest whole checkpoint, if there is one

What Lightning's own checkpoint has is stored: the module, optimizers, schedulers, the loops' progress, precision,
callbacks, the data module, and what ``on_save_checkpoint`` hooks add. Data loaders with a ``state_dict`` (torchdata's
``StatefulDataLoader``) are part of the loops' progress; a plain ``DataLoader`` begins its epoch anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer import call

from datastates.checkpointer import Checkpointer
from datastates.providers import rng_state
from datastates.providers.rng import read_generators, write_generators


class CheckpointCallback(Callback):
    """Takes a checkpoint every few optimizer steps of ``fit``, and brings ``fit`` to the newest one when it begins.

    Args:
        directory: where checkpoints go; one directory that all ranks see.
        every_n_steps: optimizer steps (``trainer.global_step``) between two checkpoints.
        resume: continue from the newest whole checkpoint.
        allow_pickle: take back values that hooks had wrapped in ``datastates.pickled``.
        options: fields of :class:`datastates.CheckpointerConfig`.

    Attributes:
        checkpoints: the checkpointer, while ``fit`` goes on.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every_n_steps: int = 1,
        resume: bool = True,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}, expected at least 1")
        self.checkpoints: Checkpointer | None = None
        self._directory = Path(directory)
        self._every_n_steps = every_n_steps
        self._resume = resume
        self._allow_pickle = allow_pickle
        self._options = options
        self._last_step = 0
        self._is_due = False
        self._generators: dict[str, Any] = {}
        self._generators_due: str | None = None  # what has to begin first: the epoch, or a batch of it

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore: module and optimizers are where they will be trained, and no loop has begun."""
        self.checkpoints = Checkpointer(self._directory, **self._options)
        self._generators_due = None
        if self._resume and not trainer.ckpt_path:
            saved = _Saved({})
            if self.checkpoints.restore(_state(trainer, pl_module, saved), allow_pickle=self._allow_pickle):
                self._generators = read_generators()
                self._take_back(trainer, pl_module, saved.value)
        self._last_step = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Between two epochs the generators are restored here: the new iterator is going to draw from them."""
        if self._generators_due == "epoch":
            self._restore_generators()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """In the middle of an epoch the generators are restored here: the new iterator has drawn from them."""
        if self._generators_due == "batch":
            self._restore_generators()

    def _restore_generators(self) -> None:
        self._generators_due = None
        write_generators(self._generators)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a checkpoint, if the batch ended in an optimizer step and one is due."""
        before, self._last_step = self._last_step, trainer.global_step
        if before // self._every_n_steps != trainer.global_step // self._every_n_steps:
            if trainer.is_last_batch:
                self._is_due = True
            else:
                self._take(trainer, pl_module, in_epoch=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the one that was due with the last batch: now the loops know that the epoch is over."""
        if self._is_due:
            self._take(trainer, pl_module, in_epoch=False)

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule, in_epoch: bool) -> None:
        self._is_due = False
        saved = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        del saved["state_dict"], saved["optimizer_states"]  # ours are copied behind the next batch
        saved["in_epoch"] = in_epoch
        assert self.checkpoints is not None
        self.checkpoints.checkpoint(trainer.global_step - 1, _state(trainer, pl_module, _Saved(saved)))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until all checkpoints are durable."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """As at the end: what was taken before is whole."""
        self._close()

    def _close(self) -> None:
        checkpoints, self.checkpoints = self.checkpoints, None
        if checkpoints is not None:
            checkpoints.close()

    def _take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, saved: dict[str, Any]) -> None:
        """Give Lightning its part, in the order in which it would take it from a checkpoint of its own."""
        call._call_lightning_module_hook(trainer, "on_load_checkpoint", saved)
        if trainer.datamodule is not None and (name := type(trainer.datamodule).__qualname__) in saved:
            call._call_lightning_datamodule_hook(trainer, "load_state_dict", saved[name])
        call._call_callbacks_on_load_checkpoint(trainer, saved)
        call._call_callbacks_load_state_dict(trainer, saved)
        trainer.precision_plugin.on_load_checkpoint(saved)
        if (name := type(trainer.precision_plugin).__qualname__) in saved:
            trainer.precision_plugin.load_state_dict(saved[name])
        trainer.fit_loop.load_state_dict(saved["loops"]["fit_loop"])
        for config, scheduler in zip(trainer.lr_scheduler_configs, saved["lr_schedulers"], strict=True):
            config.scheduler.load_state_dict(scheduler)
        self._generators_due = "batch" if saved["in_epoch"] else "epoch"


class _Saved:
    """What Lightning itself would store: one value, whatever hooks put into it."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return self.value

    def load_state_dict(self, value: dict[str, Any]) -> None:
        self.value = value


def _state(trainer: pl.Trainer, pl_module: pl.LightningModule, saved: _Saved) -> dict[str, Any]:
    optimizers = {str(index): optimizer for index, optimizer in enumerate(trainer.optimizers)}
    return {"model": pl_module, "optimizers": optimizers, "rng": rng_state(), "lightning": saved}
