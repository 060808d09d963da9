"""The backends `tensorrt` and `tensorrt_rtx`: what each can do here, and the way to builder and runtime."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchrt.backends import BackendInfo
from matchrt.backends.building import BuildJob, BuildOutput, Identity, IoTensor
from matchrt.backends.cuda_probe import probe
from matchrt.backends.tensorrt._api import TrtApi, load_api
from matchrt.backends.tensorrt.options import resolve_options
from matchrt.errors import BackendError, EnvironmentLackError, MatchrtError, UsageError
from matchrt.model import Target
from matchrt.progress import Progress

if TYPE_CHECKING:
    from matchrt.backends import Engine


class TensorRtBackend:
    """TensorRT 8.6, 10 and 11. It builds for the GPU that it runs on, and needs it."""

    name = "tensorrt"
    needs_gpu_to_build = True
    runs_as_is: frozenset[str] = frozenset()
    isolates = True
    """Releases without progress can only be stopped with their process, and after a cancelled build TensorRT-RTX's own threads
    crash the process that ends while they are at work."""

    def info(self) -> BackendInfo:
        """Version, and whether it can build and run here. No `Runtime` is made: without a GPU that would crash."""
        gpu = probe()
        try:
            api = self._api()
        except MatchrtError as error:
            return BackendInfo(version="", can_build=False, can_run=False, reason=error.message)
        found = {"gpu": ", ".join(g.name for g in gpu.gpus) or "none", "driver": gpu.driver}
        can_build = gpu.usable or not self.needs_gpu_to_build
        details = {**found, "capabilities": ", ".join(sorted(api.caps))}
        return BackendInfo(
            version=api.version, can_build=can_build, can_run=gpu.usable, reason=gpu.reason, details=details
        )

    def identity(self, targets: Sequence[str]) -> Identity:
        """Version and GPU. Raises `UsageError` for targets, `EnvironmentLackError` without TensorRT or GPU."""
        api = self._api()
        if targets:
            raise UsageError("tensorrt builds for the GPU it runs on; it takes no --target", hint="use tensorrt_rtx")
        gpus = probe()
        if not gpus.usable:
            raise EnvironmentLackError(
                f"{self.name} {api.version} needs a GPU here: {gpus.reason}",
                hint="run this on the machine with the GPU; tensorrt_rtx builds without one",
            )
        gpu = gpus.gpus[0]
        return Identity(
            version=api.version,
            compute_capability=gpu.compute_capability,
            gpu=gpu.name,
            platform=_platform(),
            driver=gpus.driver,
        )

    def target(self, precision: str) -> Target:
        """What graphs are prepared for: this backend, its version and `precision`."""
        return Target(backend=self.name, version=self._api().version, precision=precision)

    def options(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `matchrt.backends.tensorrt.options`."""
        return resolve_options(chosen)

    def build(self, job: BuildJob, progress: Progress) -> BuildOutput:
        """Build one network. Raises as `builder.build`."""
        from matchrt.backends.tensorrt.builder import build

        if self.needs_gpu_to_build and not probe().usable:
            raise EnvironmentLackError(f"{self.name} needs a GPU to build: {probe().reason}")
        return build(self._api(), job, progress)

    def merge_timing(self, theirs: bytes, fresh: bytes) -> bytes:
        """Both kernel timings in one; `fresh` alone where TensorRT refuses to combine them."""
        from matchrt.backends.tensorrt.builder import merge_timing

        return merge_timing(self._api(), theirs, fresh)

    def load(self, network: str, payload: bytes, io: Sequence[IoTensor], options: Mapping[str, Any]) -> Engine:
        """Deserialise an engine of checked origin. Raises `EnvironmentLackError` without a GPU, before any `Runtime` is made."""
        gpu = probe()
        if not gpu.usable:
            raise EnvironmentLackError(
                f"{self.name} cannot run network {network!r}: {gpu.reason}",
                hint="run it on a machine with a GPU, or choose --backend onnxruntime",
            )
        from matchrt.backends.tensorrt.runtime import TensorRtEngine

        return TensorRtEngine.deserialize(self._api(), network, payload, options)

    def open(self, network: str, graph: Path, options: Mapping[str, Any]) -> Engine:
        """Engines come from the cache (`load`), never straight from a graph. Raises `BackendError`."""
        raise BackendError(f"{self.name} does not run {graph.name} as it is", hint="`matchrt build` makes its engine")

    def _api(self) -> TrtApi:
        return load_api(self.name)


class TensorRtRtxBackend(TensorRtBackend):
    """TensorRT-RTX. It builds without a GPU, for the architectures named by targets (by default its own portable set)."""

    name = "tensorrt_rtx"
    needs_gpu_to_build = False

    def identity(self, targets: Sequence[str]) -> Identity:
        """Version and platform; what it is built for are the targets. Raises `UsageError` for one that it does not know."""
        api = self._api()
        for target in targets:
            try:
                api.enum("ComputeCapability", target.upper())
            except BackendError as error:
                raise UsageError(f"{self.name} {api.version} has no target {target!r}", hint=error.hint) from None
        return Identity(version=api.version, platform=_platform(), driver=probe().driver)


def _platform() -> str:
    return f"{sys.platform}-{platform.machine().lower()}"
