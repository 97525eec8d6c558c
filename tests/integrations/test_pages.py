"""What the pages about other libraries show is run, page by page, in the order in which it stands there."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import datastates

HERE = Path(__file__).absolute().parent
DOCS = HERE.parents[1] / "docs"
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled, )?unavailable or uninitialized:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected an existing checkpoint:UserWarning"),
]


def blocks(page: str) -> list[str]:
    """The page's Python, but for what is marked as another library's."""
    text = (DOCS / page).read_text()
    found: list[tuple[str, str]] = re.findall(r"(<!-- not run: \w+ -->\n)?```python\n(.*?)```", text, re.DOTALL)
    return [code for mark, code in found if not mark]


def run(page: str, names: dict[str, Any]) -> dict[str, Any]:
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)
    return names


@pytest.fixture
def yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What every page calls yours."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batch = torch.randn(4, 6)
    model(batch).sum().backward()
    optimizer.step()
    return {"datastates": datastates, "torch": torch, "model": model, "optimizer": optimizer, "batch": batch}


def test_coming_from_dcp(yours: dict[str, Any]) -> None:
    import torch.distributed.checkpoint as dcp

    names = run("coming_from_dcp.md", yours | {"dcp": dcp})
    assert names["start"] == 0
    assert sorted(p.name for p in Path("runs/gpt").glob("step-*")) == ["step-00000100", "step-00000101"]
    assert torch.equal(names["weights"]["model.weight"], datastates.open_checkpoint("runs/gpt").read("model.weight"))


def test_coming_from_accelerate(yours: dict[str, Any]) -> None:
    import safetensors.torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    scheduler = torch.optim.lr_scheduler.ExponentialLR(yours["optimizer"], 0.9)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    mine = {"accelerator": accelerator, "scheduler": scheduler, "batches": [yours["batch"]] * 2}
    try:
        names = run("coming_from_accelerate.md", yours | mine | {"safetensors": safetensors})
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert names["checkpoints"].stats().num_durable == 4


def test_coming_from_torchsnapshot(yours: dict[str, Any]) -> None:
    names = run("coming_from_torchsnapshot.md", yours)
    assert torch.equal(names["weight"], yours["model"].weight)
    assert [path.name for path in Path("runs/converted").glob("step-*")] == ["step-00000100"]


def test_integrations(yours: dict[str, Any]) -> None:
    import runpy

    import lightning.pytorch as pl

    trainer_job = runpy.run_path(str(HERE / "trainer_job.py"))
    lightning_job = runpy.run_path(str(HERE / "lightning_job.py"))
    trainer, _ = trainer_job["make"](Path())
    data = torch.utils.data.TensorDataset(torch.randn(8, 6))
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    first, second, third = blocks("integrations.md")
    names = {"Trainer": type(trainer), "model": trainer.model, "arguments": replace(trainer.args, eval_strategy="no")}
    exec(first, names | {"dataset": trainer.train_dataset})
    names = {"Trainer": pl.Trainer, "options": {"max_steps": 4, "accelerator": "cpu", "logger": False, **quiet}}
    exec(
        second, names | {"module": lightning_job["Model"](), "loader": torch.utils.data.DataLoader(data, batch_size=2)}
    )
    exec(third, yours | {"dataset": torch.arange(16)})
    steps = {
        name: sorted(int(p.name[5:]) for p in Path("runs", name).glob("step-*"))
        for name in ("bert", "resnet", "loader")
    }
    assert steps == {"bert": [1, 3, 5], "resnet": [1, 3], "loader": [1, 2, 3]}
