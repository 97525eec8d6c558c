"""Small training states for tests, and the comparison that counts: bit for bit."""

import torch


def small_model(seed: int = 0) -> torch.nn.Module:
    """Two linear layers around a batch norm: parameters, buffers that forward changes, an integer buffer."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.ReLU(), torch.nn.Linear(5, 3))


def train_step(model: torch.nn.Module, *optimizers: torch.optim.Optimizer, seed: int = 1) -> float:
    """One forward, backward and step on data that depends on ``seed`` alone; returns the loss."""
    batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    loss = model(batch).square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of the values in row-major order; unlike ``==``, it tells -0.0 from 0.0 and sees equal NaNs."""
    host = tensor.detach().cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor, name: str = "tensor") -> None:
    """Fail unless shape, dtype and every bit agree."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
    assert bits(got) == bits(expected), f"{name}: {got} is not {expected}"
