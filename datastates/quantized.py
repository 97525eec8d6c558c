"""Quantised tensors as plain ones: the integers, and what turns them back into numbers."""

from __future__ import annotations

import torch

_INTEGERS = {  # torch is going to remove these types
    getattr(torch, quantized): integers
    for quantized, integers in (("quint8", torch.uint8), ("qint8", torch.int8), ("qint32", torch.int32))
    if hasattr(torch, quantized)
}


def parts_of(tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], int | None]:
    """(parts, the dim that channels run along; ``None`` if there is one scale for all).

    ``int_repr``: [*tensor.shape] uint8, int8 or int32, the tensor's own memory.
    ``scale``, ``zero_point``: [] for the whole tensor, or [channels]; a value is ``(int_repr - zero_point) * scale``.

    Raises:
        TypeError: integers smaller than a byte, or an unknown scheme.
    """
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{tensor.dtype} packs several integers into a byte; dequantise it to store it")
    memory = torch.empty(0, dtype=_INTEGERS[tensor.dtype], device=tensor.device)
    memory.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = torch.tensor(tensor.q_scale(), dtype=torch.float64)
        return {"int_repr": memory, "scale": scale, "zero_point": torch.tensor(tensor.q_zero_point())}, None
    scales, zero_points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return {"int_repr": memory, "scale": scales, "zero_point": zero_points}, tensor.q_per_channel_axis()


def joined(parts: dict[str, torch.Tensor], axis: int | None) -> torch.Tensor:
    """The inverse of :func:`parts_of`, in new memory."""
    integers, scale, zero_point = parts["int_repr"], parts["scale"], parts["zero_point"]
    if axis is None:
        return torch._make_per_tensor_quantized_tensor(integers, scale.item(), int(zero_point))
    return torch._make_per_channel_quantized_tensor(integers, scale, zero_point, axis)


def same_form(a: torch.Tensor, b: object) -> bool:
    """Whether ``a.copy_(b)`` makes a quantised ``a`` equal to ``b``, scales included."""
    return (
        isinstance(b, torch.Tensor)
        and (a.is_quantized and b.is_quantized)
        and (a.dtype, a.shape, a.qscheme()) == (b.dtype, b.shape, b.qscheme())
    )
