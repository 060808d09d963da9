"""From the published namings of EfficientLoFTR weights to this plugin's names. No torch.

The names here are upstream's without a prefix (`matcher.` and other wrapping is taken off when the file is read). Files that
follow them: zju3dv/EfficientLoFTR and MatchAnything-ELoFTR (447 tensors) and the former after `reparameter` (147 tensors).
transformers' `EfficientLoFTRForKeypointMatching` has 447 tensors under names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from matchrt.errors import WeightsError
from matchrt.weights.rules import Rename, Rule, When

LAYER_PAIRS = 4
"""(self, cross) pairs of attention layers in every published checkpoint."""

_HF_BACKBONE = (
    Rename.pattern(r"backbone\.stages\.0\.blocks\.0\.(?P<rest>.+)", "backbone.layer0.{rest}"),
    Rename.pattern(
        r"backbone\.stages\.(?P<stage>[123])\.blocks\.(?P<block>\d+)\.(?P<rest>.+)",
        "backbone.layer{stage}.{block}.{rest}",
    ),
    *(
        Rename.pattern(rf"(?P<block>backbone\.layer.+)\.{old}\.(?P<rest>.+)", f"{{block}}.{new}.{{rest}}")
        for old, new in (
            (r"conv1\.conv", "rbr_dense.conv"),
            (r"conv1\.norm", "rbr_dense.bn"),
            (r"conv2\.conv", "rbr_1x1.conv"),
            (r"conv2\.norm", "rbr_1x1.bn"),
            ("identity", "rbr_identity"),
        )
    ),
)

_HF_LAYER = (
    (r"aggregation\.q_aggregation", "aggregate"),
    (r"aggregation\.norm", "norm1"),
    (r"mlp\.layer_norm", "norm2"),
    (r"attention\.q_proj", "q_proj"),
    (r"attention\.k_proj", "k_proj"),
    (r"attention\.v_proj", "v_proj"),
    (r"attention\.o_proj", "merge"),
    (r"mlp\.fc1", "mlp.0"),
    (r"mlp\.fc2", "mlp.2"),
)

_HF_TRANSFORMER = (
    *(
        Rename.prefix(f"local_feature_transformer.layers.{pair}.{kind}_attention.", f"loftr_coarse.layers.{index}.")
        for pair in range(LAYER_PAIRS)
        for kind, index in (("self", 2 * pair), ("cross", 2 * pair + 1))
    ),
    *(
        Rename.pattern(rf"(?P<layer>loftr_coarse\.layers\.\d+)\.{old}\.(?P<rest>.+)", f"{{layer}}.{new}.{{rest}}")
        for old, new in _HF_LAYER
    ),
)

_HF_PYRAMID = (
    Rename.exact("refinement_layer.out_conv.weight", "fine_preprocess.layer3_outconv.weight"),
    *(
        Rename.prefix(f"refinement_layer.out_conv_layers.{index}.{old}.", f"fine_preprocess.layer{level}_{new}.")
        for index, level in ((0, 2), (1, 1))
        for old, new in (
            ("out_conv1", "outconv"),
            ("out_conv2", "outconv2.0"),
            ("batch_norm", "outconv2.1"),
            ("out_conv3", "outconv2.3"),
        )
    ),
)


def rules() -> tuple[Rule, ...]:
    """The rules for every naming, in order; upstream's names pass unchanged.

    They serve the training and the deploy form alike; which of the two the network must have, `is_deploy` says.
    """
    renames: tuple[Rule, ...] = (
        Rename.prefix("efficientloftr.", ""),
        *_HF_BACKBONE,
        *_HF_TRANSFORMER,
        *_HF_PYRAMID,
    )
    return (
        Rename.prefix("matcher.", ""),
        When(r"(efficientloftr\.)?backbone\.stages\..+", renames),
    )


def is_deploy(names: Iterable[str]) -> bool:
    """Whether a file holds re-parameterised RepVGG blocks, by its names."""
    return any(re.search(r"\.rbr_reparam\.(weight|bias)$", name) for name in names)


_STRANGERS = (
    (
        r"(^|\.)loftr_fine\.|(^|\.)fine_preprocess\.(down_proj|merge_feat)\.",
        "the original LoFTR (CVPR 2021; its files are called outdoor_ds.ckpt, indoor_ds_new.ckpt and the like)",
    ),
    (
        r"(^|\.)(encoder\.dinov2|embedding_decoder|decoder\.conv_refiner|decoder\.gps)\.",
        "RoMa or MatchAnything-RoMa",
    ),
    (r"(^|\.)(self_attn|transformers)\.\d+\.(self_attn\.)?Wqkv\.", "LightGlue"),
)


def recognise_stranger(names: Iterable[str]) -> str | None:
    """What a file that is no EfficientLoFTR is, by its names; None if it is one, or unknown."""
    names = list(names)
    if any(re.search(r"rbr_(dense|reparam)\.|backbone\.stages\.", name) for name in names):
        return None
    return next((what for pattern, what in _STRANGERS if any(re.search(pattern, name) for name in names)), None)


def refuse_strangers(names: Iterable[str], where: str = "the file") -> None:
    """Raise `WeightsError` that says what `where` holds when it is a known other network."""
    what = recognise_stranger(names)
    if what is not None:
        raise WeightsError(
            f"{where} holds {what}, which is another network than EfficientLoFTR: its tensors do not fit",
            hint="use an EfficientLoFTR checkpoint (eloftr_outdoor.ckpt) or a MatchAnything-ELoFTR one",
        )
