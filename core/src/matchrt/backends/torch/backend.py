"""The `torch` backend: runs the PyTorch network of the checkpoint that a bundle was made from. torch is imported at first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchrt.backends import BackendInfo, Engine
from matchrt.backends.torch.options import PRECISIONS, parse_options
from matchrt.errors import EnvironmentLackError, UsageError

if TYPE_CHECKING:
    from matchrt.bundle import Bundle
    from matchrt.plugins import MatcherHooks

HINT = "install the extra: pip install 'matchrt[convert]'"


class TorchBackend:
    """The reference. It opens whole bundles, because it needs their weights and settings, not their graphs."""

    name = "torch"
    precisions = PRECISIONS

    def info(self) -> BackendInfo:
        """torch's version and the devices that it sees."""
        if find_spec("torch") is None:
            return BackendInfo(version="", can_build=False, can_run=False, reason=f"torch is not installed; {HINT}")
        try:
            import torch
        except (ImportError, OSError) as error:
            return BackendInfo(
                version=_version(), can_build=False, can_run=False, reason=f"torch cannot be imported: {error}"
            )
        devices = ["cpu"]
        if torch.cuda.is_available():
            devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        return BackendInfo(
            version=torch.__version__, can_build=False, can_run=True, details={"devices": ", ".join(devices)}
        )

    def open(self, network: str, graph: Path, options: Mapping[str, Any]) -> Engine:
        """Always raises `UsageError`: a graph alone does not tell which checkpoint it was made from."""
        raise UsageError(f"backend 'torch' runs whole bundles, not the graph {graph.name} alone")

    def open_bundle(
        self, bundle: Bundle, hooks: MatcherHooks, precision: str, options: Mapping[str, Any]
    ) -> dict[str, Engine]:
        """An engine for every network of `bundle`, which share one PyTorch network with the bundle's own weights.

        `options` are those of `TorchOptions`. Raises `UsageError`, `WeightsError` where the bundle's checkpoint is not at hand, and
        `EnvironmentLackError` without torch or without the device.
        """
        chosen = parse_options(precision, options)
        try:
            from matchrt.backends.torch.engines import open_network
            from matchrt.backends.torch.reference import reference_network
        except ModuleNotFoundError as error:
            raise EnvironmentLackError(
                f"backend 'torch' needs {error.name}, which is not installed", hint=HINT
            ) from None
        network = reference_network(bundle.manifest, hooks, chosen.checkpoint, foreign=chosen.foreign)
        return dict(open_network(bundle.manifest, hooks, network, chosen))


def _version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
