"""The nouns that plugins and core exchange: frozen, validated, and free of torch, onnx and cv2.

A matcher consists of one or several *networks*. Its *steps* say how they are wired: every step runs one network, reads
named tensors and writes named tensors, so the tensors that `preprocess` makes, the networks exchange and `postprocess`
reads all live in one namespace per pair of images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from matchrt.errors import PluginError, UsageError
from matchrt.settings import Setting, Settings

if TYPE_CHECKING:
    import numpy as np

Size = tuple[int, int]
"""(height, width) in pixels."""

API_VERSION = 1
"""The version of the hook contract. A plugin declares the one it was written for as `MATCHRT_API_VERSION`."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Family(str, Enum):
    """What a matcher returns: matches of detected keypoints, of grid cells, or a dense warp."""

    SPARSE = "sparse"
    SEMI_DENSE = "semi-dense"
    DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A named dynamic axis: the sizes a graph accepts (`min`..`max`, multiples of `divisor`) and the one to tune for."""

    name: str
    min: int
    opt: int
    max: int
    divisor: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max or self.divisor < 1:
            raise PluginError(f"axis {self.name!r}: need 0 <= min <= opt <= max and divisor >= 1, got {self}")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a network: its name, dtype (numpy's name), named axes and meaning with units."""

    name: str
    dtype: str
    axes: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One exported network. `module` is the dotted path to it inside what `build_network` returns; "." is the whole of it."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str = ""
    module: str = ""

    @property
    def module_path(self) -> str:
        """Path of the `torch.nn.Module` that is exported, for `get_submodule`; by default the network's own name."""
        return "" if self.module == "." else self.module or self.name


@dataclass(frozen=True, kw_only=True)
class Step:
    """Run `network`: `inputs` maps the network's input names to tensor names, `outputs` its output names to tensor names."""

    network: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A published weights file. `role` is the name that `--weights-ROLE` takes; the main file's role is "".

    `sha256` is None where it is not known yet: then the first fetch records it and later ones enforce it.
    `free_licence` is False where use is restricted (non-commercial, research only): fetching then needs consent.
    """

    role: str
    url: str
    filename: str
    format: Literal["torch", "safetensors"]
    licence: str
    free_licence: bool
    sha256: str | None = None
    size: int | None = None
    package: str = ""
    """An importable package that ships the file beside its code, instead of `url`."""
    timm: str = ""
    """The name under which the timm library publishes the same weights, where it does: a second source, used only when asked for."""
    note: str = ""
    """Why the file is needed, in a sentence or two: `matchrt inspect` prints it for a checkpoint that lacks what it provides."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A named choice of settings, weights and wiring of a matcher."""

    name: str
    description: str
    weights: tuple[WeightsFile, ...]
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    steps: tuple[Step, ...] | None = None
    """Wiring of this variant; None means the matcher's own."""
    without: Mapping[str, tuple[Step, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Wiring in place of `steps` where a switch is off, by the name of that setting."""

    def wired(self, settings: Settings) -> Variant:
        """This variant with the wiring that `settings` choose: the first of `without` that is off, else its own."""
        off = next((steps for name, steps in self.without.items() if not settings.flag(name)), None)
        return self if off is None else replace(self, steps=off)


@dataclass(frozen=True, kw_only=True)
class MatcherSpec:
    """All that core needs to know of a matcher without importing its network."""

    id: str
    title: str
    family: Family
    licence: str
    paper: str
    variants: tuple[Variant, ...]
    networks: tuple[NetworkSpec, ...]
    steps: tuple[Step, ...]
    settings: tuple[Setting, ...]
    input_rules: str
    """How an image becomes a tensor, in one line for people."""
    score_meaning: str
    outputs: tuple[str, ...] = ()
    """Tensor names that `postprocess` reads; a runtime keeps others on the device."""
    url: str = ""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise PluginError(f"matcher {self.id!r} is not valid: " + "; ".join(problems))

    @property
    def default_variant(self) -> Variant:
        """The first variant."""
        return self.variants[0]

    def variant(self, name: str | None) -> Variant:
        """The variant called `name` (None: the default one). Raises `UsageError` naming the known ones."""
        if name is None:
            return self.default_variant
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(v.name for v in self.variants)
        raise UsageError(f"matcher {self.id!r} has no variant {name!r}; it has: {known}")

    def network(self, name: str) -> NetworkSpec:
        """The network called `name`. Raises KeyError."""
        return next(n for n in self.networks if n.name == name)

    def steps_of(self, variant: Variant) -> tuple[Step, ...]:
        """The wiring of `variant`."""
        return self.steps if variant.steps is None else variant.steps

    def networks_of(self, variant: Variant) -> tuple[NetworkSpec, ...]:
        """The networks that `variant` runs, each once, in the order of their first step."""
        return tuple(self.network(name) for name in dict.fromkeys(s.network for s in self.steps_of(variant)))


def _problems(spec: MatcherSpec) -> Sequence[str]:
    problems: list[str] = []
    if not _NAME.fullmatch(spec.id):
        problems.append("id must be lower-case words joined by '-'")
    if not spec.variants:
        problems.append("it has no variant")
    for variant in spec.variants:
        if not _NAME.fullmatch(variant.name):
            problems.append(f"variant name {variant.name!r} must be lower-case words joined by '-'")
        known = {s.name for s in spec.settings}
        chosen = [*variant.settings, *variant.without]
        problems += [f"variant {variant.name!r} sets unknown {n!r}" for n in chosen if n not in known]
        for steps in (spec.steps_of(variant), *variant.without.values()):
            problems += _wiring_problems(spec, steps)
    for kind, names in (
        ("variant", [v.name for v in spec.variants]),
        ("network", [n.name for n in spec.networks]),
        ("setting", [s.name for s in spec.settings]),
    ):
        problems += [f"two {kind}s are called {n!r}" for n in dict.fromkeys(names) if names.count(n) > 1]
    return problems


def _wiring_problems(spec: MatcherSpec, steps: tuple[Step, ...]) -> list[str]:
    networks = {n.name: n for n in spec.networks}
    problems = []
    for step in steps:
        network = networks.get(step.network)
        if network is None:
            problems.append(f"a step runs unknown network {step.network!r}")
            continue
        wanted = {t.name for t in network.inputs}
        if set(step.inputs) != wanted:
            problems.append(f"a step of {step.network!r} wires inputs {sorted(step.inputs)}, not {sorted(wanted)}")
        unknown = set(step.outputs) - {t.name for t in network.outputs}
        if unknown:
            problems.append(f"a step of {step.network!r} reads unknown outputs {sorted(unknown)}")
    return problems


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a graph is prepared for: a backend, its version and a precision; `opset` is the ONNX opset to write."""

    backend: str = "onnxruntime"
    version: str = ""
    precision: str = "fp32"
    opset: int = 18


@dataclass(frozen=True, kw_only=True)
class ExampleInputs:
    """Inputs to trace a network with, and which of their axes stay dynamic (`dynamic[input][axis index]`).

    Axes that share a name share their size.
    """

    tensors: Mapping[str, np.ndarray]
    dynamic: Mapping[str, Mapping[int, Axis]] = field(default_factory=lambda: MappingProxyType({}))


class Stage(str, Enum):
    """When a graph pass runs: on the graph as exported, or when a bundle's graph is prepared for a backend."""

    EXPORT = "export"
    PREPARE = "prepare"


@dataclass(frozen=True, kw_only=True)
class GraphPass:
    """A graph-to-graph step. `run` takes and returns an `onnx.ModelProto`; running it twice equals running it once."""

    name: str
    reason: str
    run: Any
    stage: Stage = Stage.EXPORT
    networks: tuple[str, ...] | None = None
    """Names of the networks it applies to; None means all."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRule:
    """What stays in float32 under a lower precision, and why. `pattern` is a regular expression over node names;
    `op_types` restricts it to those operators (empty: any)."""

    pattern: str
    reason: str
    op_types: tuple[str, ...] = ()
    networks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """|a - b| <= atol + rtol * |b| for all but the share `outliers` of the elements (integers: equal).

    `spare` elements may be beyond it whatever their share: in a short list one tie that rounding decides is more than a small share.
    """

    atol: float = 1e-4
    rtol: float = 1e-4
    outliers: float = 0.0
    spare: int = 0


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Outputs of a network that are lists in no essential order: compare row by row after pairing equal points.

    `points` names the output (B, K, 2) that identifies a row, `count` the output (B,) that says how many rows are valid ("": all).
    A row without partner counts as an outlier in every output that has the axis, except for `spare` rows a list: the last
    ones of a list are chosen among ties, which rounding decides.
    """

    points: str
    count: str = ""
    radius: float = 1e-2
    spare: int = 2


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How close a converted matcher must be to its network, on equal inputs.

    `tensors` overrides `default` for outputs by name; `align` says which networks (by name) return lists. `choices` maps an output to
    the one of whole numbers, of the same shape, that chooses what each of its elements is about (negative: none): the error of half
    precision is taken where both chose alike, and choices that differ are counted by themselves, since near ties turn over.
    `shared_matches` is the least share of matches that both ways must find, each within `coordinate_px` pixels of the original image;
    `spare_matches` may differ however few there are. `pairs` limits the check to so many sample pairs (0: all), for a network that is slow.
    """

    default: Tolerance = Tolerance()
    tensors: Mapping[str, Tolerance] = field(default_factory=lambda: MappingProxyType({}))
    align: Mapping[str, Alignment] = field(default_factory=lambda: MappingProxyType({}))
    choices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    coordinate_px: float = 0.05
    shared_matches: float = 0.99
    spare_matches: int = 1
    pairs: int = 0


__all__ = [
    "API_VERSION",
    "Alignment",
    "Axis",
    "ExampleInputs",
    "Family",
    "GraphPass",
    "MatcherSpec",
    "NetworkSpec",
    "Parity",
    "PrecisionRule",
    "Setting",
    "Settings",
    "Size",
    "Stage",
    "Step",
    "Target",
    "TensorSpec",
    "Tolerance",
    "Variant",
    "WeightsFile",
]
