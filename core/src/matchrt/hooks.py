"""The hooks of matchrt: the one page that a plugin author reads.

A plugin is a module (named by an entry point of group `matchrt`) that declares `MATCHRT_API_VERSION = 1` and
implements any of the hooks below, each marked with `@hookimpl`:

    from matchrt.hooks import hookimpl
    MATCHRT_API_VERSION = 1

    @hookimpl
    def register_matchers():
        return [MY_MATCHER]

The module must import fast: neither torch, onnx, onnxruntime, cv2 nor tensorrt at its top. Import them inside the hooks.
An implementation may take any subset of a hook's arguments.

*Ownership.* The plugin that registers a matcher owns it. Stage hooks (all below the registration hooks) are called for one matcher
and reach its owner and the plugins that own no matcher, never another matcher's owner. So no plugin asks "is this mine?".

*Kinds.* "all": every implementation is called, the owner first, and the answers are joined. "first": the owner's answer wins;
the first that is not None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    import numpy as np
    import torch

    from matchrt.backends import BackendSpec
    from matchrt.files.writers import Writer
    from matchrt.geometry.transform import ImageGeometry
    from matchrt.images.image import Image
    from matchrt.matches import Matches
    from matchrt.model import (
        ExampleInputs,
        GraphPass,
        MatcherSpec,
        Parity,
        PrecisionRule,
        Settings,
        Target,
        Variant,
    )
    from matchrt.patches import Patch
    from matchrt.weights.rules import Rule

PROJECT = "matchrt"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# ── Registration ────────────────────────────────────────────────────────────────────────────────────────────────────


@hookspec
def register_matchers() -> Iterable[MatcherSpec]:
    """Matchers that this plugin owns. Kind: all. Called once; no heavy import."""
    raise NotImplementedError


@hookspec
def register_backends() -> Iterable[BackendSpec]:
    """Backends that this plugin brings. Kind: all. The library itself is imported only when the backend is used."""
    raise NotImplementedError


@hookspec
def register_writers() -> Iterable[Writer]:
    """Output formats for `--save`, each with its suffix. Kind: all."""
    raise NotImplementedError


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add verbs to the command line with `cli.add_command`. Kind: all. A taken verb is refused."""


# ── Stages: checkpoint to bundle (torch may be imported) ────────────────────────────────────────────────────────────


@hookspec
def weight_rules(matcher: MatcherSpec, variant: Variant) -> Sequence[Rule]:
    """Rules that bring any published naming of the checkpoint to the network's own names. Kind: all, owner first.

    They are applied in order. No rule guesses by suffix or shape; what no rule and no name accounts for is an error.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def settings_from_weights(matcher: MatcherSpec, variant: Variant, names: Sequence[str]) -> Mapping[str, object] | None:
    """Settings that the checkpoint itself decides, from the names of its tensors: a re-parameterised form, say. Kind: first.

    None or an empty mapping decides nothing. Raise `WeightsError` for a file that is known to be another network, and say which.
    """


@hookspec(firstresult=True)
def build_network(matcher: MatcherSpec, variant: Variant, settings: Settings) -> torch.nn.Module | None:
    """The PyTorch network in eval mode, with any weights, on the default device (core builds it under `meta` to compare names).

    Every parameter appears once in its `state_dict()`; the parts that are exported are found at `NetworkSpec.module_path`.
    Must not download, nor touch global state. Kind: first.
    """


@hookspec(firstresult=True)
def random_weights(matcher: MatcherSpec, variant: Variant, settings: Settings, network: torch.nn.Module) -> bool | None:
    """Fill `network` in place with random weights on which it behaves as with trained ones, and return True. Kind: first.

    For `--random-weights`; values come from torch's global generator, which core seeds. Initial values seldom do: features are
    nearly constant, and what is chosen by them is chosen by rounding errors. None keeps them.
    """


@hookspec
def onnx_patches(matcher: MatcherSpec, network: torch.nn.Module, target: Target) -> Sequence[Patch]:
    """Reversible replacements that make `network` exportable for `target`. Kind: all, owner first."""
    raise NotImplementedError


@hookspec(firstresult=True)
def example_inputs(matcher: MatcherSpec, variant: Variant, settings: Settings) -> Mapping[str, ExampleInputs] | None:
    """For each network of the variant: arrays to trace it with and its dynamic axes. Kind: first."""


@hookspec
def graph_passes(matcher: MatcherSpec, target: Target) -> Sequence[GraphPass]:
    """Graph-to-graph steps, each naming the stage it runs in. Kind: all, owner first."""
    raise NotImplementedError


@hookspec
def precision_rules(matcher: MatcherSpec, target: Target) -> Sequence[PrecisionRule]:
    """What stays in float32 when `target.precision` is lower, and why. Kind: all, owner first."""
    raise NotImplementedError


@hookspec
def engine_options(matcher: MatcherSpec, target: Target) -> Mapping[str, Any]:
    """Options for the builder (profiles, workspace, flags). Kind: all; merged, and two different values for one name are an error."""
    raise NotImplementedError


@hookspec(firstresult=True)
def parity(matcher: MatcherSpec, variant: Variant) -> Parity | None:
    """How close the converted matcher must be to its network. Kind: first."""


# ── Stages: images to matches (numpy only; torch must not be imported) ──────────────────────────────────────────────


@hookspec(firstresult=True)
def preprocess(
    matcher: MatcherSpec, images: tuple[Image, Image], settings: Settings
) -> tuple[Mapping[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]] | None:
    """Tensors by name for one pair (each with a leading batch axis of 1), and the geometry of both images. Kind: first.

    It may run in threads, and in a process of its own (`match_many(processes=True)`): keep to the arguments, and let the answer be
    data that pickles, as arrays and dataclasses do.
    """


@hookspec(firstresult=True)
def postprocess(
    matcher: MatcherSpec,
    tensors: Mapping[str, np.ndarray],
    geometry: tuple[ImageGeometry, ImageGeometry],
    settings: Settings,
) -> Matches | None:
    """Matches in pixels of the original images, from all tensors of one pair (preprocessed and computed). Kind: first."""


REGISTRATION_HOOKS = ("register_matchers", "register_backends", "register_writers", "register_commands")
STAGE_HOOKS = (
    "weight_rules",
    "settings_from_weights",
    "build_network",
    "random_weights",
    "onnx_patches",
    "example_inputs",
    "graph_passes",
    "precision_rules",
    "engine_options",
    "parity",
    "preprocess",
    "postprocess",
)
