"""What EfficientLoFTR and MatchAnything-ELoFTR are, for core: network, settings, variants. No heavy import."""

from __future__ import annotations

from typing import Any

from matchrt.model import Family, MatcherSpec, NetworkSpec, Setting, Step, TensorSpec, Variant, WeightsFile

SMALLEST, LARGEST = 416, 1664
"""Pixels a side that a bundle with dynamic sizes takes."""

PADDED = "pixels of the padded input, with upstream's constant offset of -3.5"
_IMAGES = tuple(
    TensorSpec(
        name=f"image{i}",
        dtype="float32",
        axes=("batch", "grey", "height", "width"),
        meaning="grey, 0 to 1, padded with 0",
    )
    for i in (0, 1)
)
_VALID = tuple(
    TensorSpec(
        name=f"valid{i}",
        dtype="int32",
        axes=("batch", "size"),
        meaning="(height, width) of the content, multiples of 32; what lies right of it and below it is padding",
    )
    for i in (0, 1)
)
_OUTPUTS = (
    TensorSpec(name="keypoints0", dtype="float32", axes=("batch", "slot", "xy"), meaning=f"(x, y) in {PADDED}"),
    TensorSpec(name="keypoints1", dtype="float32", axes=("batch", "slot", "xy"), meaning=f"(x, y) in {PADDED}"),
    TensorSpec(
        name="scores",
        dtype="float32",
        axes=("batch", "slot"),
        meaning="confidence of the coarse match; 0: the slot is empty",
    ),
    TensorSpec(
        name="cells", dtype="int32", axes=("batch", "slot", "image"), meaning="cell of image 0 and of image 1, by rows"
    ),
    TensorSpec(name="count", dtype="int32", axes=("batch",), meaning="slots in use; they come first, best score first"),
    TensorSpec(
        name="candidates",
        dtype="int32",
        axes=("batch",),
        meaning="pairs above the score floor before the graph truncated them; more than `count`: some were left out",
    ),
)

NETWORK = NetworkSpec(
    name="network",
    module=".",
    description="two padded images and their valid rectangles to keypoint pairs",
    inputs=(*_IMAGES, *_VALID),
    outputs=_OUTPUTS,
)


def _steps(network: NetworkSpec) -> tuple[Step, ...]:
    outputs = {t.name: t.name for t in network.outputs}
    return (Step(network=network.name, inputs={t.name: t.name for t in network.inputs}, outputs=outputs),)


def _settings(**defaults: Any) -> tuple[Setting, ...]:
    return (
        Setting(
            name="recipe",
            kind="str",
            default=defaults["recipe"],
            choices=defaults["recipes"],
            stage="convert",
            help="how images are scaled and padded; see the plugin's preprocess.py",
        ),
        Setting(
            name="size",
            kind="size",
            default=defaults["size"],
            minimum=32,
            maximum=4096,
            multiple_of=32,
            stage="convert",
            help="input size HxW, multiples of 32",
        ),
        Setting(
            name="dynamic",
            kind="bool",
            default=False,
            stage="convert",
            help="take every input size from 416 to 1664 a side in multiples of 32; input_size chooses it",
        ),
        Setting(
            name="slots",
            kind="int",
            default=2048,
            minimum=1,
            maximum=3840,
            optional=True,
            stage="convert",
            help="most matches that the graph returns, best first; none: every row, without TopK",
        ),
        Setting(
            name="pairs",
            kind="int",
            default=8,
            minimum=1,
            maximum=64,
            stage="convert",
            help="most pairs that one run takes; 1 fixes the batch",
        ),
        Setting(
            name="mutual",
            kind="bool",
            default=defaults["mutual"],
            stage="convert",
            help="keep a pair only if it is the best of its row and of its column",
        ),
        Setting(
            name="per_row",
            kind="int",
            default=defaults["per_row"],
            minimum=1,
            maximum=64,
            stage="convert",
            help="partners kept for each cell of image 0, where matches need not be mutual",
        ),
        Setting(
            name="score_floor",
            kind="float",
            default=defaults["threshold"] if not defaults["mutual"] else 0.0,
            minimum=0,
            stage="convert",
            help="scores at or below it are no candidates; the threshold cannot be lower",
        ),
        Setting(
            name="form",
            kind="str",
            default="training",
            choices=("training", "deploy"),
            stage="convert",
            help="of the checkpoint: three branches a block, or fused ones; told by the file itself",
        ),
        Setting(
            name="input_size",
            kind="size",
            default=None,
            optional=True,
            minimum=SMALLEST,
            maximum=LARGEST,
            multiple_of=32,
            stage="match",
            help="input size HxW of a bundle converted with dynamic=true; none: its size",
        ),
        Setting(
            name="threshold",
            kind="float",
            default=defaults["threshold"],
            minimum=0,
            stage="match",
            help="least score of a match",
        ),
    )


_RULES = (
    "grey 0 to 1; recipe long-side: longer side to the input's, floored to multiples of 32, bilinear, "
    "zeros at the bottom and right; stretch: to the input's size; "
    "squeeze and aspect: MatchAnything's area and Lanczos chain, exact to the bit"
)

_OUTDOOR = WeightsFile(
    role="",
    url="https://huggingface.co/vismatch/eloftr/resolve/main/eloftr_outdoors.safetensors",
    filename="eloftr_outdoors.safetensors",
    format="safetensors",
    licence="Apache-2.0",
    free_licence=True,
)

ELOFTR = MatcherSpec(
    id="eloftr",
    title="EfficientLoFTR",
    family=Family.SEMI_DENSE,
    licence="Apache-2.0",
    paper="arXiv:2403.04765",
    variants=(
        Variant(
            name="full",
            description="dual softmax and mutual check, threshold 0.2",
            weights=(_OUTDOOR,),
        ),
        Variant(
            name="opt",
            description="raw similarity without softmax, threshold 25",
            settings={"threshold": 25.0},
            weights=(_OUTDOOR,),
        ),
    ),
    networks=(NETWORK,),
    steps=_steps(NETWORK),
    settings=_settings(
        recipe="long-side", recipes=("long-side", "stretch"), size=(832, 832), mutual=True, per_row=1, threshold=0.2
    ),
    input_rules=_RULES,
    score_meaning="product of both softmaxes, 0 to 1 (variant full); similarity of the coarse features (variant opt)",
    outputs=("keypoints0", "keypoints1", "scores", "cells", "count", "candidates"),
    url="https://github.com/zju3dv/EfficientLoFTR",
)

MATCHANYTHING = MatcherSpec(
    id="matchanything-eloftr",
    title="MatchAnything-ELoFTR",
    family=Family.SEMI_DENSE,
    licence="Apache-2.0",
    paper="arXiv:2501.07556",
    variants=(
        Variant(
            name="full",
            description="one-to-many coarse matches above 0.001, across modalities",
            weights=(
                WeightsFile(
                    role="",
                    url="https://huggingface.co/vismatch/matchanything-eloftr/resolve/main/model.safetensors",
                    filename="matchanything_eloftr.safetensors",
                    format="safetensors",
                    licence="Apache-2.0",
                    free_licence=True,
                ),
            ),
        ),
    ),
    networks=(NETWORK,),
    steps=_steps(NETWORK),
    settings=_settings(
        recipe="squeeze",
        recipes=("squeeze", "aspect"),
        size=(640, 640),
        mutual=False,
        per_row=4,
        threshold=0.001,
    ),
    input_rules=_RULES,
    score_meaning="product of both softmaxes, 0 to 1",
    outputs=ELOFTR.outputs,
    url="https://github.com/zju3dv/MatchAnything",
)
