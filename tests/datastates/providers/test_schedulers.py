"""Learning-rate schedulers of torch: each resumes where it was, and goes on alike."""

from typing import Any, ClassVar

import pytest
import torch
from conformance import ProviderConformance
from torch.optim import lr_scheduler as lrs

pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")


class Decay:
    """A callable with state of its own, which LambdaLR keeps."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 0.9**epoch


class SchedulerConformance(ProviderConformance):
    """A scheduler and its optimizer."""

    scheduler: ClassVar[Any]

    def make(self, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        weights = [torch.nn.Parameter(torch.randn(2)), torch.nn.Parameter(torch.randn(2))]
        groups = [{"params": [weights[0]], "lr": 0.1 * seed}, {"params": [weights[1]], "lr": 0.5}]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        return {"optimizer": optimizer, "scheduler": type(self).scheduler(optimizer)}

    def change(self, state: dict[str, Any]) -> None:
        for _ in range(3):
            state["optimizer"].step()
            self.step(state["scheduler"])

    def step(self, scheduler: Any) -> None:
        scheduler.step()

    def content(self, state: dict[str, Any]) -> Any:
        rates = [group["lr"] for group in state["optimizer"].param_groups]
        return [rates, state["scheduler"].state_dict(), state["scheduler"].get_last_lr()]


class TestPlateau(SchedulerConformance):
    scheduler = staticmethod(lambda o: lrs.ReduceLROnPlateau(o, patience=1, cooldown=1))

    def step(self, scheduler: Any) -> None:
        scheduler.step(1.0 + scheduler.last_epoch)  # always worse


MAKERS: dict[str, Any] = {
    "Lambda": lambda o: lrs.LambdaLR(o, [lambda epoch: 0.95**epoch, Decay()]),
    "Multiplicative": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.9),
    "Step": lambda o: lrs.StepLR(o, 2),
    "MultiStep": lambda o: lrs.MultiStepLR(o, [2, 4], gamma=0.3),
    "Constant": lambda o: lrs.ConstantLR(o, 0.5, total_iters=4),
    "Linear": lambda o: lrs.LinearLR(o, total_iters=7),
    "Exponential": lambda o: lrs.ExponentialLR(o, 0.8),
    "Polynomial": lambda o: lrs.PolynomialLR(o, 9, power=2),
    "Cosine": lambda o: lrs.CosineAnnealingLR(o, 10),
    "WarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "Cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycle": lambda o: lrs.OneCycleLR(o, 0.3, total_steps=40),
    "Chained": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 3), lrs.ExponentialLR(o, 0.9)]),
    "Sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1, 2), lrs.CosineAnnealingLR(o, 8)], [2]),
    "Swa": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=5),
}
for _name, _maker in MAKERS.items():
    globals()[f"Test{_name}"] = type(f"Test{_name}", (SchedulerConformance,), {"scheduler": staticmethod(_maker)})
