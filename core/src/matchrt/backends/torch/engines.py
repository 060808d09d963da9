"""Engines and sessions of the `torch` backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from matchrt.backends.clock import Clock, TorchClock
from matchrt.backends.torch.arrays import TorchArray, as_tensor
from matchrt.backends.torch.options import TorchOptions
from matchrt.bundle import BundleManifest
from matchrt.bundle.manifest import NetworkContract
from matchrt.errors import BackendError, EnvironmentLackError
from matchrt.export.onnx_export import named_outputs
from matchrt.plugins import MatcherHooks

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of `torch.compile` that record CUDA graphs: a later call overwrites the outputs of an earlier one."""


def open_network(
    manifest: BundleManifest, hooks: MatcherHooks, network: torch.nn.Module, options: TorchOptions
) -> dict[str, TorchEngine]:
    """An engine for each network of `manifest`, all of them parts of `network`, which is moved to the device and type of `options`."""
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = _HALF.get(options.precision) if options.half == "network" else None
    whole = network.eval().requires_grad_(False)
    # A part may compute constants when it is asked for: on the CPU and in float32, as conversion does; then it is moved.
    parts = {n.name: whole.get_submodule(hooks.matcher.network(n.name).module_path) for n in manifest.networks}
    return {
        contract.name: TorchEngine(contract, parts[contract.name].to(device=device, dtype=dtype), device, options)
        for contract in manifest.networks
    }


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one. Raises `EnvironmentLackError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLackError(
            f"torch {torch.__version__} sees no CUDA device", hint="choose device cpu, or run on a machine with a GPU"
        )
    return device


class TorchEngine:
    """A part of the PyTorch network, shared by threads."""

    def __init__(
        self, contract: NetworkContract, module: torch.nn.Module, device: torch.device, options: TorchOptions
    ) -> None:
        self.contract, self.device, self.options = contract, device, options
        self.module: torch.nn.Module | None = module
        self.call: Any = module
        if options.compile != "none":
            mode = None if options.compile == "default" else options.compile
            self.call = torch.compile(module, mode=mode, dynamic=False)

    def session(self) -> TorchSession:
        """A session; on a GPU it takes and returns tensors on the device too."""
        if self.module is None:
            raise BackendError(f"network {self.contract.name!r} is closed")
        return TorchSession(self) if self.device.type == "cpu" else DeviceSession(self)

    def close(self) -> None:
        """Let go of the network."""
        self.module = self.call = None


class TorchSession:
    """Runs one part of the network with numpy arrays."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine: TorchEngine | None = engine
        self._network = engine.contract.name

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, in the contract's types. Raises `BackendError`."""
        return {n: TorchArray(t).numpy() for n, t in self.run_tensors(inputs).items()}

    def run_tensors(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Outputs on the device, in the contract's types. Raises `BackendError`."""
        engine = self._engine
        if engine is None or engine.module is None:
            raise BackendError(f"the session of network {self._network!r} is closed")
        options, contract = engine.options, engine.contract
        dtype = _HALF.get(options.precision)
        tensors = [as_tensor(inputs[t.name], engine.device) for t in contract.inputs]
        if dtype is not None and options.half == "network":
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        try:
            with torch.inference_mode(), arithmetic(engine.device, options):
                if options.compile in _GRAPH_MODES and engine.device.type == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                answer = named_outputs(engine.call(*tensors), [t.name for t in contract.outputs])
                return {t.name: self._settled(answer[t.name], t.dtype) for t in contract.outputs}
        except Exception as error:
            shapes = ", ".join(f"{t.name} {inputs[t.name].dtype}{list(inputs[t.name].shape)}" for t in contract.inputs)
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BackendError(f"torch failed in network {self._network!r} on {shapes}: {first}") from error

    def _settled(self, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
        """In the type of the contract, and in memory that no later call overwrites."""
        assert self._engine is not None
        wanted: torch.dtype = getattr(torch, dtype)
        if tensor.dtype != wanted:
            return tensor.to(wanted)
        options = self._engine.options
        return tensor.clone() if options.compile in _GRAPH_MODES and tensor.device.type == "cuda" else tensor

    def close(self) -> None:
        """Let go of the engine."""
        self._engine = None


class DeviceSession(TorchSession):
    """Also hands tensors from network to network on the device."""

    def clock(self) -> Clock:
        """For work on torch's current stream."""
        assert self._engine is not None
        return TorchClock(self._engine.device)

    def to_device(self, array: np.ndarray) -> TorchArray:
        """A copy of `array` on the device, finished."""
        assert self._engine is not None
        return TorchArray(as_tensor(array, self._engine.device))

    def run_on_device(self, inputs: Mapping[str, Any], stream: int | None = None) -> dict[str, TorchArray]:
        """Outputs as device arrays, for work on `stream` (a CUDA stream's handle; None: torch's current one). Raises `BackendError`."""
        with ExitStack() as stack:
            if stream is not None and self._engine is not None:
                stack.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._engine.device)))
            return {n: TorchArray(t) for n, t in self.run_tensors(inputs).items()}


@contextmanager
def arithmetic(device: torch.device, options: TorchOptions) -> Iterator[None]:
    """The precision of `options` while the block runs: TF32 on or off, autocast, and cuDNN's choice of algorithms."""
    tf32 = options.precision != "fp32"
    before = torch.get_float32_matmul_precision()
    dtype = _HALF.get(options.precision)
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags(
                enabled=True, benchmark=options.benchmark, deterministic=not options.benchmark, allow_tf32=tf32
            )
            stack.enter_context(flags)
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield
