"""Call stage hooks for one matcher: its owner first, then the plugins that own no matcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchrt.errors import MatchrtError, PluginError
from matchrt.model import ExampleInputs, GraphPass, MatcherSpec, Parity, PrecisionRule, Settings, Stage, Target, Variant
from matchrt.plugins.manager import Plugins

if TYPE_CHECKING:
    import numpy as np
    import torch

    from matchrt.geometry.transform import ImageGeometry
    from matchrt.images.image import Image
    from matchrt.matches import Matches
    from matchrt.patches import Patch
    from matchrt.weights.rules import Rule

Tensors = Mapping[str, "np.ndarray"]


class MatcherHooks:
    """The stage hooks as seen by one matcher. Every method raises `PluginError` naming hook and plugin if one fails."""

    def __init__(self, plugins: Plugins, matcher: MatcherSpec) -> None:
        self.matcher = matcher
        self.plugins = plugins
        owner = plugins.owner(matcher)
        self._others = [p.module for p in plugins.loaded if p.matchers and p is not owner]

    def sources(self) -> list[Path]:
        """Packages (folders) or single modules (files) of the plugins that answer for this matcher, core's own excepted."""
        modules = [p.module for p in self.plugins.loaded if p.module not in self._others]
        outside = [m for m in modules if m.__file__ and m.__name__ != "matchrt.builtin"]
        return sorted({Path(str(m.__file__)).parent if m.__package__ else Path(str(m.__file__)) for m in outside})

    def _call(self, hook: str, **arguments: Any) -> Any:
        caller = self.plugins.pluggy.subset_hook_caller(hook, self._others)
        try:
            return caller(matcher=self.matcher, **arguments)
        except MatchrtError:
            raise
        except Exception as error:
            culprit = self._culprit(error)
            raise PluginError(
                f"hook {hook} failed for matcher {self.matcher.id!r} in plugin {culprit}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _culprit(self, error: BaseException) -> str:
        names = []
        trace = error.__traceback__
        while trace is not None:
            names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
            trace = trace.tb_next
        for plugin in self.plugins.loaded:
            package = plugin.module.__name__.rpartition(".")[0] or plugin.module.__name__
            if package != "matchrt" and any(n == package or n.startswith(package + ".") for n in names):
                return f"{plugin.found.name} ({plugin.found.distribution} {plugin.found.version})"
        return "unknown"

    def _first(self, hook: str, **arguments: Any) -> Any:
        answer = self._call(hook, **arguments)
        if answer is None:
            owner = self.plugins.owner(self.matcher).found
            raise PluginError(f"no plugin answers hook {hook} for matcher {self.matcher.id!r} (owner: {owner.name})")
        return answer

    def _joined(self, hook: str, **arguments: Any) -> list[Any]:
        return [item for answer in self._call(hook, **arguments) if answer for item in answer]

    def weight_rules(self, variant: Variant) -> Sequence[Rule]:
        """All rules, the owner's first."""
        return self._joined("weight_rules", variant=variant)

    def settings_from_weights(self, variant: Variant, names: Sequence[str]) -> Mapping[str, object]:
        """What the checkpoint decides; nothing where no plugin answers."""
        return self._call("settings_from_weights", variant=variant, names=list(names)) or {}

    def build_network(self, variant: Variant, settings: Settings) -> torch.nn.Module:
        """The PyTorch network in eval mode."""
        network: torch.nn.Module = self._first("build_network", variant=variant, settings=settings)
        return network.eval()

    def random_weights(self, variant: Variant, settings: Settings, network: torch.nn.Module) -> None:
        """Random weights into `network`; its initial values stay where no plugin answers."""
        self._call("random_weights", variant=variant, settings=settings, network=network)

    def onnx_patches(self, network: torch.nn.Module, target: Target) -> Sequence[Patch]:
        """All patches, the owner's first."""
        return self._joined("onnx_patches", network=network, target=target)

    def example_inputs(self, variant: Variant, settings: Settings) -> Mapping[str, ExampleInputs]:
        """Example inputs by network; each network of the variant must have them."""
        answer: Mapping[str, ExampleInputs] = self._first("example_inputs", variant=variant, settings=settings)
        lacking = [n.name for n in self.matcher.networks_of(variant) if n.name not in answer]
        if lacking:
            raise PluginError(f"example_inputs of {self.matcher.id!r} lacks the networks {', '.join(lacking)}")
        return answer

    def graph_passes(self, target: Target, stage: Stage, network: str) -> Sequence[GraphPass]:
        """The passes of one stage that apply to `network`, the owner's first."""
        passes: list[GraphPass] = self._joined("graph_passes", target=target)
        return [p for p in passes if p.stage is stage and (p.networks is None or network in p.networks)]

    def precision_rules(self, target: Target) -> Sequence[PrecisionRule]:
        """All precision rules, the owner's first."""
        return self._joined("precision_rules", target=target)

    def engine_options(self, target: Target) -> Mapping[str, Any]:
        """Options of all plugins merged. Two different values for one name raise `PluginError`."""
        merged: dict[str, Any] = {}
        for answer in self._call("engine_options", target=target):
            for name, value in (answer or {}).items():
                if name in merged and merged[name] != value:
                    raise PluginError(
                        f"engine option {name!r} of matcher {self.matcher.id!r} is set to both {merged[name]!r} and {value!r}"
                    )
                merged[name] = value
        return merged

    def parity(self, variant: Variant) -> Parity:
        """Tolerances; the defaults of `Parity` where no plugin answers."""
        return self._call("parity", variant=variant) or Parity()

    def preprocess(
        self, images: tuple[Image, Image], settings: Settings
    ) -> tuple[Tensors, tuple[ImageGeometry, ImageGeometry]]:
        """Tensors and geometry of one pair."""
        answer: tuple[Tensors, tuple[ImageGeometry, ImageGeometry]]
        answer = self._first("preprocess", images=images, settings=settings)
        return answer

    def postprocess(
        self, tensors: Tensors, geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
    ) -> Matches:
        """Matches in pixels of the original images."""
        answer: Matches = self._first("postprocess", tensors=tensors, geometry=geometry, settings=settings)
        return answer
