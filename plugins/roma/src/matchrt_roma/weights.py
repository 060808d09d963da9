"""How published weights become `Roma`'s: a checkpoint's 603 keys and DINOv2's 343, by explicit namespaces. Torch-free.

A RoMa checkpoint holds no DINOv2 (upstream keeps the frozen ViT outside its state dict), so DINOv2 is a second file,
known as `dinov2`. Its names come from one of four publications; each is brought to the official flat names and then
under `dinov2.`, a namespace that no rule for the checkpoint writes to: the match decoder's blocks have the shapes of
DINOv2's first five and must never land there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from matchrt.errors import WeightsError
from matchrt.weights.rules import Backfill, Concatenate, Drop, Refuse, Rename, Rule, When, block_chunks

DINOV2_SOURCE = "dinov2"
MASK_TOKEN_REASON = "replaces masked patches in DINOv2's training; no inference path reads it"

_WRAPPERS = r"(?:(?:module|_orig_mod|matcher|model)\.)+"
_HF_BLOCK = r"encoder\.layer\.(?P<i>\d+)\."


def checkpoint_rules() -> tuple[Rule, ...]:
    """Rules for the RoMa or MatchAnything checkpoint: any stack of wrapping prefixes, stripped at the start only."""
    return (Rename.pattern(_WRAPPERS + r"(?P<rest>(?:encoder\.cnn|decoder)\..+)", "{rest}"),)


def dinov2_rules() -> tuple[Rule, ...]:
    """Rules for a DINOv2 ViT file (official flat or chunked, timm, transformers), to names under `dinov2.`.

    timm's names are the official ones, without `mask_token`. Files with register tokens are refused by name.
    """
    return (
        Refuse(
            r"(?:.+\.)?(?:reg_token|register_tokens)",
            "is a DINOv2 with register tokens, whose features are not those that RoMa was trained on",
            "give the ViT-L/14 without registers: dinov2_vitl14_pretrain.pth",
        ),
        Refuse(
            r"(?:.+\.)?(?:encoder\.cnn|decoder\.(?:embedding_decoder|gps|proj|conv_refiner))\..+",
            "is a RoMa checkpoint, and those hold no DINOv2",
            "give dinov2_vitl14_pretrain.pth to --weights-dinov2, and the RoMa checkpoint to --weights",
        ),
        When(
            r"(?:.+\.)?embeddings\.cls_token",
            (
                Rename.pattern(r"(?:backbone|dinov2|model)\.(?P<rest>(?:embeddings|encoder|layernorm)\..+)", "{rest}"),
                *_transformers_rules(),
            ),
            otherwise=(Rename.pattern(r"(?:(?:module|_orig_mod|model)\.)+(?P<rest>.+)", "{rest}"), block_chunks("")),
        ),
        Drop("mask_token", MASK_TOKEN_REASON),
        Rename.prefix("", "dinov2."),
    )


def _transformers_rules() -> tuple[Rule, ...]:
    joined = tuple(
        Concatenate(
            tuple(_HF_BLOCK + path + r"\.(?P<leaf>weight|bias)" for path in paths), "blocks.{i}.attn.qkv.{leaf}"
        )
        for paths in (
            (r"attention\.attention\.query", r"attention\.attention\.key", r"attention\.attention\.value"),
            (r"attention\.q_proj", r"attention\.k_proj", r"attention\.v_proj"),
        )
    )
    return (
        Rename.exact("embeddings.cls_token", "cls_token"),
        Rename.exact("embeddings.mask_token", "mask_token"),
        Rename.exact("embeddings.position_embeddings", "pos_embed"),
        Rename.prefix("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        *joined,
        Rename.pattern(_HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(?P<leaf>.+)", "blocks.{i}.attn.proj.{leaf}"),
        Rename.pattern(_HF_BLOCK + r"layer_scale(?P<k>[12])\.lambda1", "blocks.{i}.ls{k}.gamma"),
        Rename.pattern(_HF_BLOCK + r"(?P<rest>(?:norm[12]|mlp\.fc[12])\..+)", "blocks.{i}.{rest}"),
        Rename.prefix("layernorm.", "norm."),
    )


def weight_rules() -> tuple[Rule, ...]:
    """All rules: the checkpoint's names, then DINOv2 from its own file (unless the checkpoint brings it)."""
    return (
        *checkpoint_rules(),
        Drop(r"dinov2\.mask_token", MASK_TOKEN_REASON),
        Backfill(r"dinov2\..+", DINOV2_SOURCE, dinov2_rules()),
    )


_STRANGERS = (
    (r"(^|\.)(loftr_coarse|fine_preprocess|loftr_fine)\.|(^|\.)rbr_(dense|1x1|reparam)\.", "LoFTR or EfficientLoFTR"),
    (r"(^|\.)(self_attn|transformers)\.\d+\.(self_attn\.)?Wqkv\.", "LightGlue"),
    (r"(^|\.)(fine_matcher|coarse_matcher)\.|(^|\.)xfeat", "Tiny RoMa"),
)
_OWN = r"(^|\.)(encoder\.cnn|decoder\.(embedding_decoder|gps|proj|conv_refiner))\."
_DINOV2 = r"(^|\.)(patch_embed\.proj|embeddings\.patch_embeddings\.projection)\.weight$"


def refuse_strangers(names: Iterable[str]) -> None:
    """Raise `WeightsError` that says what the main file holds when it is a known other network, or DINOv2 alone."""
    names = list(names)

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    if has(_OWN):
        return
    for pattern, what in _STRANGERS:
        if has(pattern):
            raise WeightsError(
                f"the file given to --weights holds {what}, which is another network than RoMa",
                hint="use matchanything_roma.ckpt or roma_outdoor.pth",
            )
    if has(_DINOV2):
        raise WeightsError(
            "the file given to --weights is a DINOv2, which is only a part of RoMa",
            hint="give it to --weights-dinov2, and the RoMa checkpoint to --weights",
        )
