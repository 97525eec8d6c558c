"""One tensor of every element type and of every odd shape, with bits that a conversion through floats would lose."""

import warnings

import torch

from datastates.dtypes import SAFETENSORS_NAMES

DTYPES = [
    *SAFETENSORS_NAMES,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.complex64,
    torch.complex128,
    torch.complex32,
]


def values_of(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Random bits: NaNs with payloads, negative zeros and subnormals among them."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def every_kind() -> dict[str, torch.Tensor]:
    """Names to tensors, all small."""
    with warnings.catch_warnings():  # torch says so once
        warnings.filterwarnings("ignore", "ComplexHalf support is experimental")
        torch.empty(1, dtype=torch.complex32)
    found = {f"kinds.{str(dtype).removeprefix('torch.')}": values_of(dtype, (12, 5)) for dtype in DTYPES}
    for name, shape in {
        "scalar": (),
        "empty": (0, 3),
        "hollow": (4, 0, 2),
        "line": (17,),
        "deep": (5, 4, 3, 2),
    }.items():
        found[f"shapes.{name}"] = values_of(torch.float32, shape)
    return found
