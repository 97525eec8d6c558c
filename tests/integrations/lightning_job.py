"""A small model under Lightning: ``python lightning_job.py DIRECTORY`` trains until it kills itself.

Tests run it as a module, too. Dropout draws from the generators, a hook adds a value to the checkpoint.
"""

import os
import signal
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

import datastates
from datastates.integrations.lightning import CheckpointCallback


class Model(pl.LightningModule):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        self.seen: list[int] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen.append(round(10 * float(batch[0][0, 0])))
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = list(self.seen)
        checkpoint["third"] = datastates.pickled(Fraction(1, 3))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = checkpoint["seen"]
        assert checkpoint["third"] == Fraction(1, 3)


class Stop(pl.Callback):
    def __init__(self, checkpoints: CheckpointCallback, step: int, kill: bool) -> None:
        self.checkpoints, self.step, self.kill = checkpoints, step, kill

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.checkpoints.checkpoints.wait()
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("stopped")


def fit(directory: Path, *, every: int = 1, stop: int | None = None, kill: bool = False) -> tuple[Model, pl.Trainer]:
    torch.manual_seed(0)
    model = Model()
    data = torch.utils.data.TensorDataset(torch.arange(8 * 6, dtype=torch.float32).reshape(8, 6) / 10)
    loader = StatefulDataLoader(data, batch_size=2, shuffle=True)  # four steps an epoch
    checkpoints = CheckpointCallback(directory / "checkpoints", every_n_steps=every, allow_pickle=True)
    callbacks = [checkpoints] if stop is None else [checkpoints, Stop(checkpoints, stop, kill)]
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=callbacks,
    )
    trainer.fit(model, loader)
    return model, trainer


if __name__ == "__main__":
    fit(Path(sys.argv[1]), stop=3, kill=True)
