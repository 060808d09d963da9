"""What each registered matcher's network looks like, to tell which one a checkpoint fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from matchrt.errors import WeightsError
from matchrt.model import Variant
from matchrt.plugins import MatcherHooks, Plugins
from matchrt.settings import resolve
from matchrt.weights.account import network_state
from matchrt.weights.fit import Candidate


def candidates(plugins: Plugins, names: Sequence[str] = ()) -> list[Candidate]:
    """Names and shapes of every matcher and variant, built without memory, in the form that a file with these `names` wants."""
    found = []
    for spec in plugins.matchers.values():
        hooks = MatcherHooks(plugins, spec)
        for variant in spec.variants:
            decided = _decided(hooks, variant, names)
            settings = resolve(spec.settings, ("variant", variant.settings), ("weights", decided), environment={})
            with torch.device("meta"):
                network = hooks.build_network(variant, settings)
            shapes = {name: tuple(tensor.shape) for name, tensor in network_state(network).items()}
            found.append(Candidate(spec.id, variant.name, hooks.weight_rules(variant), shapes))
    return found


def _decided(hooks: MatcherHooks, variant: Variant, names: Sequence[str]) -> Mapping[str, object]:
    try:
        return hooks.settings_from_weights(variant, names)
    except WeightsError:
        return {}  # another network: its fit will say so in figures
