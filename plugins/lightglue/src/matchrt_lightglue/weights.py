"""How the known files of SuperPoint and LightGlue name their tensors, as rules. No torch.

Target names are those of our networks with the network in front: `extractor.conv1a.weight`,
`matcher.transformers.0.self_attn.Wqkv.weight`. Five namings lead there:

| naming | extractor | matcher |
|---|---|---|
| cvg/LightGlue module, kornia | `conv1a` … | `posenc`, `transformers.{i}`, `log_assignment.{i}`, … |
| release files of 2023 | `conv1a` … | `self_attn.{i}` and `cross_attn.{i}` in place of `transformers.{i}` |
| Lightning, glue-factory | `extractor.conv1a` … | `matcher.` in front of either of the above |
| transformers | `[keypoint_detector.]encoder…` | `transformer_layers.{i}`, separate query, key and value |
"""

from __future__ import annotations

import math
import re

from matchrt.weights.rules import Backfill, Concatenate, Constant, Interleave, Rename, Rule, Same
from matchrt_lightglue.variants import find_variant

EXTRACTOR_SOURCE = "extractor"
"""Name of the second file, when the extractor's weights lie apart from the matcher's."""

_HF_EXTRACTOR = {
    **{f"encoder.conv_blocks.{i}.conv_{ab}": f"conv{i + 1}{ab}" for i in range(4) for ab in "ab"},
    **{f"keypoint_decoder.conv_score_{ab}": f"convP{ab}" for ab in "ab"},
    **{f"descriptor_decoder.conv_descriptor_{ab}": f"convD{ab}" for ab in "ab"},
}
"""Modules of transformers' SuperPoint and ours."""

_HF_LAYER = {
    "self_attention.o_proj": "self_attn.out_proj",
    "self_mlp.fc1": "self_attn.ffn.0",
    "self_mlp.layer_norm": "self_attn.ffn.1",
    "self_mlp.fc2": "self_attn.ffn.3",
    "cross_attention.v_proj": "cross_attn.to_v",
    "cross_attention.o_proj": "cross_attn.to_out",
    "cross_mlp.fc1": "cross_attn.ffn.0",
    "cross_mlp.layer_norm": "cross_attn.ffn.1",
    "cross_mlp.fc2": "cross_attn.ffn.3",
}
"""Modules of one layer of transformers' LightGlue and ours, where one tensor is one tensor."""

_HF_HEADS = (
    (r"positional_encoder\.projector\.(?P<rest>.+)", "posenc.Wr.{rest}"),
    (r"input_projection\.(?P<rest>.+)", "input_proj.{rest}"),
    (r"match_assignment_layers\.(?P<i>\d+)\.matchability\.(?P<rest>.+)", "log_assignment.{i}.matchability.{rest}"),
    (r"match_assignment_layers\.(?P<i>\d+)\.final_projection\.(?P<rest>.+)", "log_assignment.{i}.final_proj.{rest}"),
    (r"token_confidence\.(?P<i>\d+)\.token\.(?P<rest>weight|bias)", "token_confidence.{i}.token.0.{rest}"),
)


def weight_rules(variant: str) -> tuple[Rule, ...]:
    """Rules for one file with both networks, or for the matcher's file with the extractor's as a second source."""
    sizes = find_variant(variant)
    return (
        *extractor_rules(),
        *matcher_rules(heads=sizes.heads, n_layers=sizes.n_layers),
        Backfill(r"extractor\..+", EXTRACTOR_SOURCE, extractor_rules()),
    )


def extractor_rules() -> tuple[Rule, ...]:
    """SuperPoint's namings to `extractor.conv1a.weight` and so on."""
    published = (Rename.prefix(f"{old}.", f"extractor.{new}.") for old, new in _HF_EXTRACTOR.items())
    flat = Rename.pattern(r"(?P<name>conv([1-4]|P|D)[ab]\..+)", "extractor.{name}")
    return (Rename.prefix("keypoint_detector.", ""), *published, flat)


def matcher_rules(*, heads: int, n_layers: int) -> tuple[Rule, ...]:
    """LightGlue's namings to `matcher.transformers.0.self_attn.Wqkv.weight` and so on."""
    layer = r"transformer_layers\.(?P<i>\d+)\."
    joined = Concatenate(
        tuple(layer + rf"self_attention\.{part}_proj\.(?P<rest>.+)" for part in "qkv"),
        "transformers.{i}.self_attn.Wqkv.{rest}",
        layout=Interleave(heads=heads),
    )
    shared = Same(
        tuple(layer + rf"cross_attention\.{part}_proj\.(?P<rest>.+)" for part in "qk"),
        "transformers.{i}.cross_attn.to_qk.{rest}",
    )
    released = Rename.pattern(
        r"(?P<kind>self|cross)_attn\.(?P<i>\d+)\.(?P<rest>.+)", "transformers.{i}.{kind}_attn.{rest}"
    )
    roots = "posenc|input_proj|transformers|log_assignment|token_confidence|confidence_thresholds"
    return (
        Rename.prefix("matcher.", ""),
        joined,
        shared,
        *(
            Rename.pattern(rf"{layer}{re.escape(old)}\.(?P<rest>.+)", f"transformers.{{i}}.{new}.{{rest}}")
            for old, new in _HF_LAYER.items()
        ),
        *(Rename.pattern(regex, template) for regex, template in _HF_HEADS),
        released,
        Rename.pattern(rf"(?P<name>({roots})(\..+)?)", "matcher.{name}"),
        Constant(
            r"matcher\.confidence_thresholds",
            tuple(0.8 + 0.1 * math.exp(-4.0 * i / n_layers) for i in range(n_layers)),
            "thresholds of the early exit, which a network of fixed depth has not",
            tolerance=5e-4,  # files in half precision round them
        ),
    )
