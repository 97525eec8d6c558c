"""Checkpoints of a Hugging Face ``Trainer``, as a callback.

checkpoints = CheckpointCallback("runs/bert", every_n_steps=50)
trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[checkpoints])
checkpoints.resume(trainer)        # trainer.train(), from the newest whole checkpoint if there is one

A checkpoint is taken where the next step begins, behind logging and evaluation: these draw from the global generators
(every new iterator of a data loader does), and the next step's batches have been fetched, as they will have been when a
resumed ``Trainer`` takes the generators back. Where an epoch ends, that is before the next one begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from datastates.checkpointer import Checkpointer
from datastates.providers import rng_state
from datastates.providers.rng import read_generators, write_generators


class CheckpointCallback(TrainerCallback):
    """Takes a checkpoint of model, optimizer, scheduler, generators and ``TrainerState`` every few steps.

    Args:
        directory: where checkpoints go; one directory that all ranks see.
        every_n_steps: optimizer steps between two checkpoints.
        options: fields of :class:`datastates.CheckpointerConfig`.

    Attributes:
        checkpoints: the checkpointer, while training goes on.
    """

    def __init__(self, directory: str | os.PathLike[str], *, every_n_steps: int = 1, **options: Any) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}, expected at least 1")
        self.checkpoints: Checkpointer | None = None
        self._directory = Path(directory)
        self._every_n_steps = every_n_steps
        self._options = options
        self._trainer: Trainer | None = None
        self._resumed: int | None = None
        self._is_due = False
        self._generators: dict[str, Any] = {}

    def resume(self, trainer: Trainer, **arguments: Any) -> TrainOutput:
        """``trainer.train()``, which continues from the newest whole checkpoint, or begins if there is none.

        Args:
            trainer: has this callback among its own.
            arguments: of ``trainer.train``, without ``resume_from_checkpoint``.

        Raises:
            RestoreError: checkpoints exist and none could be restored.
            ValueError: the checkpoint does not fit the model.
        """
        if self not in trainer.callback_handler.callbacks:
            raise ValueError("this callback is not one of the trainer's; pass it as Trainer(..., callbacks=[...])")
        self._trainer = trainer
        progress: dict[str, Any] = {}
        start = self._open().restore({"trainer": progress}, only="trainer")
        while start:
            self._resumed = start
            try:
                with self._stand_in(trainer, progress) as folder:
                    return trainer.train(resume_from_checkpoint=folder, **arguments)
            except _OlderCheckpoint as older:
                start, progress = older.start, older.progress
        return trainer.train(**arguments)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore, where :meth:`resume` asked for it: model, optimizer and scheduler exist now."""
        checkpoints, self._is_due = self._open(), False
        if self._resumed is not None:
            restored = self._state(state, kwargs)
            start = checkpoints.restore(restored)
            if start != self._resumed:  # that one is damaged, as every rank has found: begin at another step
                raise _OlderCheckpoint(start, restored["trainer"])
            self._generators = read_generators()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that a checkpoint is due."""
        self._is_due = state.global_step % self._every_n_steps == 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the checkpoint that is due; it is copied behind this step's forward and backward."""
        self._take(state, kwargs)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the checkpoint that is due before the new epoch's shuffling draws from the generators."""
        self._take(state, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the last one if it is due, and wait until all are durable."""
        self._take(state, kwargs)
        self.close()

    def close(self) -> None:
        """Wait until all checkpoints are durable and let go of the directory, as happens when training ends.

        Raises:
            CheckpointError: a failure that is due.
        """
        checkpoints, self.checkpoints = self.checkpoints, None
        if checkpoints is not None:
            checkpoints.close()

    def _open(self) -> Checkpointer:
        if self.checkpoints is None:
            self.checkpoints = Checkpointer(self._directory, **self._options)
        return self.checkpoints

    def _take(self, state: TrainerState, kwargs: dict[str, Any]) -> None:
        if self._is_due:
            self._is_due = False
            self._open().checkpoint(state.global_step - 1, self._state(state, kwargs))

    def _state(self, trainer_state: TrainerState, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What is stored; accelerate's wrapper of the optimizer is looked through."""
        optimizer = kwargs["optimizer"]
        inner = getattr(optimizer, "optimizer", optimizer)
        scaler = self._trainer.accelerator.scaler if self._trainer is not None else None
        found = {
            "model": kwargs["model"],
            "optimizer": inner,
            "scheduler": kwargs["lr_scheduler"],
            "scaler": scaler,
            "rng": rng_state(),
            "trainer": self._exported(trainer_state),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _exported(self, state: TrainerState) -> dict[str, Any]:
        """``TrainerState`` as the Trainer would save it, with what stateful callbacks say of themselves now."""
        exported = dataclasses.asdict(state)
        if self._trainer is not None:
            known: dict[str, Any] = {}
            for callback in [*self._trainer.callback_handler.callbacks, self._trainer.control]:
                if isinstance(callback, ExportableState):
                    known.setdefault(type(callback).__name__, []).append(callback.state())
            exported["stateful_callbacks"] = {name: s[0] if len(s) == 1 else s for name, s in known.items()}
        return exported

    @contextlib.contextmanager
    def _stand_in(self, trainer: Trainer, progress: dict[str, Any]) -> Iterator[str]:
        """A folder that the Trainer takes for a checkpoint of its own: its progress is real, the rest comes from us."""
        with tempfile.TemporaryDirectory() as folder:
            TrainerState(**progress).save_to_json(os.path.join(folder, TRAINER_STATE_NAME))
            trainer._load_from_checkpoint = lambda *args, **kwargs: None
            trainer._load_rng_state = self._restore_generators
            try:
                yield folder
            finally:
                self._resumed = None
                del trainer._load_from_checkpoint, trainer._load_rng_state  # the methods of its class again

    def _restore_generators(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            write_generators(self._generators)


class _OlderCheckpoint(Exception):
    """The checkpoint that the Trainer was told of is damaged; the one that leads to step ``start`` was restored."""

    def __init__(self, start: int, progress: dict[str, Any]) -> None:
        super().__init__(f"fell back to the checkpoint before step {start}")
        self.start = start
        self.progress = progress
