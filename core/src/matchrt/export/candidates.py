"""What each registered matcher's network looks like, to tell which one a checkpoint fits."""

from __future__ import annotations

import torch

from matchrt.plugins import MatcherHooks, Plugins
from matchrt.settings import resolve
from matchrt.weights.account import network_state
from matchrt.weights.fit import Candidate


def candidates(plugins: Plugins) -> list[Candidate]:
    """Names and shapes of every matcher and variant, built without memory."""
    found = []
    for spec in plugins.matchers.values():
        hooks = MatcherHooks(plugins, spec)
        for variant in spec.variants:
            settings = resolve(spec.settings, ("variant", variant.settings), environment={})
            with torch.device("meta"):
                network = hooks.build_network(variant, settings)
            shapes = {name: tuple(tensor.shape) for name, tensor in network_state(network).items()}
            found.append(Candidate(spec.id, variant.name, hooks.weight_rules(variant), shapes))
    return found
