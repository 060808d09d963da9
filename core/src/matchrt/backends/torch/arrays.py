"""Torch tensors as matchrt's device arrays, and anything that callers hand over as torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.utils.dlpack

_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


class TorchArray:
    """A tensor that stays where it is; satisfies `matchrt.backends.DeviceArray`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy's type of its elements."""
        return np.dtype(_DTYPES[self.tensor.dtype])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.tensor.ndim

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface: dict[str, Any] = self.tensor.__cuda_array_interface__
        return interface

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.tensor.__dlpack_device__()
        return int(kind), int(number)

    def numpy(self) -> np.ndarray:
        """A copy on the host, after the work that wrote it; on the CPU, the tensor's own memory."""
        array: np.ndarray = self.tensor.detach().cpu().numpy()
        return array


def as_tensor(value: Any, device: torch.device) -> torch.Tensor:
    """`value` on `device`, copied only if it is elsewhere.

    It may be a numpy array, a torch tensor, or anything with `__dlpack__` or `__cuda_array_interface__`.
    """
    if isinstance(value, TorchArray):
        tensor = value.tensor
    elif isinstance(value, torch.Tensor):
        tensor = value
    elif isinstance(value, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(value))
    elif hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        tensor = torch.utils.dlpack.from_dlpack(value)
    else:
        tensor = torch.as_tensor(value, device=device)
    return tensor.to(device, non_blocking=False)
