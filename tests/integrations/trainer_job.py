"""A tiny GPT-2 under the Hugging Face Trainer: ``python trainer_job.py DIRECTORY`` trains until it kills itself.

Tests run it as a module, too. Evaluation falls on steps that are checkpointed, and dropout draws from the generators.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from datastates.integrations.transformers import CheckpointCallback


class Stop(TrainerCallback):
    """Ends the process, or raises, where the step after ``step`` begins."""

    def __init__(self, checkpoints: CheckpointCallback, step: int, kill: bool) -> None:
        self.checkpoints, self.step, self.kill = checkpoints, step, kill

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.checkpoints.checkpoints.wait()
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            self.checkpoints.close()
            raise KeyboardInterrupt


def make(
    directory: Path, *, steps: int = 6, every: int = 1, stop: int | None = None, kill: bool = False
) -> tuple[Trainer, CheckpointCallback]:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16, resid_pdrop=0.2)
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(0, 32, (8, 6))
    data = [{"input_ids": row, "labels": row} for row in tokens]  # four steps an epoch
    arguments = TrainingArguments(
        output_dir=str(directory / "output"),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        use_cpu=True,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=3,
        logging_steps=2,
        report_to=[],
        disable_tqdm=True,
    )
    checkpoints = CheckpointCallback(directory / "checkpoints", every_n_steps=every)
    callbacks = [checkpoints] if stop is None else [checkpoints, Stop(checkpoints, stop, kill)]
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data[:3], callbacks=callbacks), checkpoints


if __name__ == "__main__":
    trainer, checkpoints = make(Path(sys.argv[1]), stop=3, kill=True)
    checkpoints.resume(trainer)
