"""What RoMa and MatchAnything-RoMa are, for core: parts, wiring, settings, variants. No heavy import."""

from __future__ import annotations

from collections.abc import Sequence

from matchrt.model import Family, MatcherSpec, NetworkSpec, Setting, Step, TensorSpec, Variant, WeightsFile

_IMAGES = ("batch", "image", "rgb", "height", "width")
_MAPS = ("batch", "image", "channel", "height", "width")
_FLOW = ("batch", "direction", "xy", "height", "width")
_LOGITS = ("batch", "direction", "logit", "height", "width")

TENSORS = {
    t.name: t
    for t in (
        TensorSpec(
            name="images", dtype="float32", axes=_IMAGES, meaning="both images at the coarse size, by the recipe"
        ),
        TensorSpec(name="images_high", dtype="float32", axes=_IMAGES, meaning="both images at the upsampling size"),
        TensorSpec(name="f16", dtype="float32", axes=_MAPS, meaning="projected DINOv2 features, stride 14"),
        *(
            TensorSpec(name=f"f{s}", dtype="float32", axes=_MAPS, meaning=f"projected VGG features, stride {s}")
            for s in (8, 4, 2, 1)
        ),
        TensorSpec(
            name="mean",
            dtype="float32",
            axes=("batch", "direction", "embedding", "row", "column"),
            meaning="posterior mean of the Gaussian process, in its Fourier embedding",
        ),
        TensorSpec(
            name="flow8", dtype="float32", axes=_FLOW, meaning="(x, y) in the other image, -1 to 1 at its edges"
        ),
        TensorSpec(
            name="flow", dtype="float32", axes=_FLOW, meaning="the same, resized to the upsampling pass's stride 8"
        ),
        TensorSpec(name="certainty8", dtype="float32", axes=_LOGITS, meaning="logit of a match, after refiner 8"),
        TensorSpec(name="certainty16", dtype="float32", axes=_LOGITS, meaning="logit of a match, after refiner 16"),
        TensorSpec(name="certainty_low", dtype="float32", axes=_LOGITS, meaning="logit of a match, of the coarse pass"),
        TensorSpec(
            name="warp",
            dtype="float32",
            axes=("batch", "direction", "height", "width", "xy"),
            meaning="where each pixel lies in the other image: (x, y), -1 and 1 at its outer edges",
        ),
        TensorSpec(
            name="certainty",
            dtype="float32",
            axes=("batch", "direction", "height", "width"),
            meaning="0 to 1; 0 where the warp leaves the other image",
        ),
    )
}


def _network(name: str, inputs: Sequence[str], outputs: Sequence[str], description: str) -> NetworkSpec:
    return NetworkSpec(
        name=name,
        description=description,
        inputs=tuple(TENSORS[n] for n in inputs),
        outputs=tuple(TENSORS[n] for n in outputs),
    )


NETWORKS = (
    _network("vit", ("images",), ("f16",), "DINOv2 ViT-L/14 and the projection of scale 16"),
    _network("pyramid", ("images",), ("f8", "f4", "f2", "f1"), "VGG19 and the projections of scales 8, 4, 2, 1"),
    _network("pyramid8", ("images",), ("f8",), "VGG19 and the projection of scale 8"),
    _network("gp", ("f16",), ("mean",), "the Gaussian process, in strict float32"),
    _network("gp_readout", ("f16",), ("warp", "certainty"), "the Gaussian process, read out on the anchor grid"),
    _network(
        "coarse", ("mean", "f16", "f8"), ("flow8", "certainty8", "certainty16"), "match decoder, refiners 16 and 8"
    ),
    _network(
        "coarse_final", ("mean", "f16", "f8"), ("warp", "certainty"), "match decoder, refiners 16 and 8, finished"
    ),
    _network(
        "refine",
        ("flow8", "certainty8", "f4", "f2", "f1"),
        ("flow", "certainty_low"),
        "refiners 4, 2, 1 of the coarse pass",
    ),
    _network(
        "refine_final",
        ("flow8", "certainty8", "f4", "f2", "f1", "certainty16"),
        ("warp", "certainty"),
        "refiners 4, 2, 1 of the coarse pass, finished",
    ),
    _network(
        "upsample",
        ("images_high", "flow", "certainty_low", "certainty16"),
        ("warp", "certainty"),
        "the upsampling pass: VGG19 and refiners 8, 4, 2, 1 at the high resolution",
    ),
)


def _steps(*names: str) -> tuple[Step, ...]:
    networks = {n.name: n for n in NETWORKS}
    return tuple(
        Step(
            network=name,
            inputs={t.name: t.name for t in networks[name].inputs},
            outputs={t.name: t.name for t in networks[name].outputs},
        )
        for name in names
    )


FULL = _steps("vit", "pyramid", "gp", "coarse", "refine", "upsample")
WITHOUT_UPSAMPLING = _steps("vit", "pyramid", "gp", "coarse", "refine_final")

SETTINGS = (
    Setting(
        name="size",
        kind="size",
        default=(560, 560),
        minimum=28,
        maximum=2016,
        multiple_of=14,
        stage="convert",
        help="size HxW of the coarse pass, multiples of 14",
    ),
    Setting(
        name="upsample_size",
        kind="size",
        default=(864, 864),
        minimum=32,
        maximum=3072,
        multiple_of=8,
        stage="convert",
        help="size HxW of the upsampling pass (variant full), multiples of 8",
    ),
    Setting(
        name="upsample",
        kind="bool",
        default=True,
        stage="convert",
        help="refine again at upsample_size (variant full); false: the warp has the coarse pass's size",
    ),
    Setting(
        name="symmetric",
        kind="bool",
        default=True,
        stage="convert",
        help="also match from image 1 to image 0, in the same run",
    ),
    Setting(
        name="pairs",
        kind="int",
        default=1,
        minimum=1,
        maximum=64,
        stage="convert",
        help="most pairs that one run takes; 1 fixes the batch",
    ),
    Setting(
        name="leaf",
        kind="int",
        default=200,
        minimum=2,
        maximum=4096,
        stage="convert",
        help="largest block that the Gaussian process's solve inverts at once",
    ),
    Setting(
        name="sampling",
        kind="str",
        default="top",
        choices=("top", "balanced", "grid"),
        stage="match",
        help="how matches are chosen: most certain, upstream's density-balanced draw, or the best of each cell",
    ),
    Setting(name="top_k", kind="int", default=5000, minimum=1, stage="match", help="most matches that are returned"),
    Setting(
        name="confidence",
        kind="float",
        default=0.05,
        minimum=0,
        maximum=1,
        stage="match",
        help="least certainty of a match",
    ),
    Setting(
        name="mutual",
        kind="bool",
        default=False,
        stage="match",
        help="keep a match only if the other direction leads back (needs symmetric)",
    ),
    Setting(
        name="mutual_px",
        kind="float",
        default=2.0,
        minimum=0,
        stage="match",
        help="largest way off after going there and back, in warp pixels",
    ),
    Setting(
        name="cell",
        kind="int",
        default=8,
        minimum=1,
        stage="match",
        help="side of a cell in warp pixels, for sampling=grid",
    ),
    Setting(name="seed", kind="int", default=0, minimum=0, stage="match", help="seed of sampling=balanced"),
    Setting(
        name="parity",
        kind="bool",
        default=False,
        stage="match",
        help="squeeze images and place coordinates as MatchAnything's demo does, half-pixel bias included",
    ),
)

_DINOV2 = WeightsFile(
    role="dinov2",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    filename="dinov2_vitl14_pretrain.pth",
    format="torch",
    licence="Apache-2.0",
    free_licence=True,
    timm="vit_large_patch14_dinov2.lvd142m",
    note="A RoMa checkpoint (603 keys) holds no DINOv2 key: its ViT is frozen and comes from DINOv2's own file, 343 keys, of which "
    "mask_token is never read. The timm copy has the other 342, so a report of 342 of 603 counts another file's keys and none of "
    "this one's; one of 60 of 295 counts 55 match-decoder tensors that only look like DINOv2's first blocks, and 5 of timm's.",
)


def _variants(checkpoint: WeightsFile) -> tuple[Variant, ...]:
    weights = (checkpoint, _DINOV2)
    return (
        Variant(
            name="full",
            description="all scales and the upsampling pass",
            weights=weights,
            without={"upsample": WITHOUT_UPSAMPLING},
        ),
        Variant(
            name="coarse",
            description="up to stride 8, without upsampling: for tight budgets",
            weights=weights,
            settings={"upsample": False},
            steps=_steps("vit", "pyramid8", "gp", "coarse_final"),
        ),
        Variant(
            name="encoder-gp",
            description="encoder and Gaussian process, read out without the learned decoder",
            weights=weights,
            settings={"upsample": False},
            steps=_steps("vit", "gp_readout"),
        ),
    )


_SCORE = "certainty of the warp, 0 to 1 (sigmoid of a learned logit; variant encoder-gp: how far the posterior is from its prior)"
_OUTPUTS = ("warp", "certainty")

ROMA = MatcherSpec(
    id="roma",
    title="RoMa",
    family=Family.DENSE,
    licence="MIT",
    paper="arXiv:2305.15404",
    variants=_variants(
        WeightsFile(
            role="",
            url="https://github.com/Parskatt/storage/releases/download/roma/roma_outdoor.pth",
            filename="roma_outdoor.pth",
            format="torch",
            licence="MIT",
            free_licence=True,
        )
    ),
    networks=NETWORKS,
    steps=FULL,
    settings=SETTINGS,
    input_rules="RGB, 8 bit, bicubic with antialiasing to the coarse and to the upsampling size, then ImageNet's mean and deviation",
    score_meaning=_SCORE,
    outputs=_OUTPUTS,
    url="https://github.com/Parskatt/RoMa",
)

MATCHANYTHING = MatcherSpec(
    id="matchanything-roma",
    title="MatchAnything-RoMa",
    family=Family.DENSE,
    licence="Apache-2.0",
    paper="arXiv:2501.07556",
    variants=_variants(
        WeightsFile(
            role="",
            url="https://huggingface.co/vismatch/matchanything-roma/resolve/main/model.safetensors",
            filename="matchanything_roma.safetensors",
            format="safetensors",
            licence="Apache-2.0",
            free_licence=True,
        )
    ),
    networks=NETWORKS,
    steps=FULL,
    settings=SETTINGS,
    input_rules="RGB 0 to 1 without mean and deviation, stretched bilinearly without antialiasing to the coarse and to the upsampling size",
    score_meaning=_SCORE,
    outputs=_OUTPUTS,
    url="https://github.com/zju3dv/MatchAnything",
)
