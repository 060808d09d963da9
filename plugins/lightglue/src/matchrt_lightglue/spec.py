"""What SuperPoint + LightGlue is, for core: networks, wiring, settings, variants. No heavy import."""

from __future__ import annotations

from matchrt.model import Family, MatcherSpec, NetworkSpec, Setting, Step, TensorSpec, Variant, WeightsFile

RELEASE = "https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/"

EXTRACTOR = NetworkSpec(
    name="extractor",
    description="SuperPoint: an image to K keypoints with descriptors, best first",
    inputs=(
        TensorSpec(name="image", dtype="float32", axes=("batch", "grey", "height", "width"), meaning="grey, 0 to 1"),
        TensorSpec(
            name="scale",
            dtype="float32",
            axes=("batch", "yx"),
            meaning="(y, x): pixels of this input for each pixel of the original image",
        ),
        TensorSpec(
            name="valid_size",
            dtype="int32",
            axes=("batch", "size"),
            meaning="(height, width) of the content; what lies right of it and below it is padding",
        ),
    ),
    outputs=(
        TensorSpec(
            name="keypoints",
            dtype="float32",
            axes=("batch", "keypoint", "xy"),
            meaning="(x, y) in pixels of the original image; rows from `count` on are filler",
        ),
        TensorSpec(
            name="scores",
            dtype="float32",
            axes=("batch", "keypoint"),
            meaning="detection score, descending; filler has 0",
        ),
        TensorSpec(
            name="descriptors",
            dtype="float32",
            axes=("batch", "keypoint", "channel"),
            meaning="unit vectors; filler has 0",
        ),
        TensorSpec(name="count", dtype="int32", axes=("batch",), meaning="how many rows are keypoints"),
    ),
)


def _features(index: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(
            name=f"keypoints{index}",
            dtype="float32",
            axes=("batch", f"keypoint{index}", "xy"),
            meaning="(x, y) in pixels of the original image",
        ),
        TensorSpec(
            name=f"descriptors{index}",
            dtype="float32",
            axes=("batch", f"keypoint{index}", "channel"),
            meaning="the extractor's descriptors",
        ),
        TensorSpec(name=f"count{index}", dtype="int32", axes=("batch",), meaning="how many rows are keypoints"),
        TensorSpec(
            name=f"size{index}",
            dtype="float32",
            axes=("batch", "size"),
            meaning="(height, width) of the original image",
        ),
    )


MATCHER = NetworkSpec(
    name="matcher",
    description="LightGlue at fixed depth: two sets of keypoints to the mutual best match of each",
    inputs=(*_features(0), *_features(1)),
    outputs=(
        TensorSpec(
            name="matches0",
            dtype="int32",
            axes=("batch", "keypoint0"),
            meaning="row of image 1's keypoints that matches this row of image 0's, -1 for none; no threshold is applied",
        ),
        TensorSpec(name="scores0", dtype="float32", axes=("batch", "keypoint0"), meaning="score of that match, 0 to 1"),
    ),
)


def _extract(index: int) -> Step:
    return Step(
        network="extractor",
        inputs={"image": f"image{index}", "scale": f"scale{index}", "valid_size": f"valid_size{index}"},
        outputs={
            "keypoints": f"keypoints{index}",
            "scores": f"detection{index}",
            "descriptors": f"descriptors{index}",
            "count": f"count{index}",
        },
    )


_NAMES = tuple(t.name for t in MATCHER.inputs)
STEPS = (
    _extract(0),
    _extract(1),
    Step(network="matcher", inputs={n: n for n in _NAMES}, outputs={"matches0": "matches0", "scores0": "scores0"}),
)

SETTINGS = (
    Setting(
        name="keypoints",
        kind="int",
        default=1024,
        minimum=1,
        maximum=3840,
        stage="convert",
        help="keypoints for each image; TensorRT's TopK allows at most 3840",
    ),
    Setting(
        name="size",
        kind="size",
        default=None,
        optional=True,
        minimum=16,
        maximum=8192,
        multiple_of=8,
        stage="convert",
        help="fixed input size HxW: images are scaled to fit and padded; none accepts any size",
    ),
    Setting(
        name="detection_threshold",
        kind="float",
        default=0.0005,
        minimum=0,
        maximum=1,
        stage="convert",
        help="least detection score",
    ),
    Setting(
        name="nms_radius",
        kind="int",
        default=4,
        minimum=0,
        maximum=64,
        stage="convert",
        help="radius in pixels within which only the best keypoint stays",
    ),
    Setting(
        name="border", kind="int", default=4, minimum=0, stage="convert", help="pixels at every side without keypoints"
    ),
    Setting(
        name="long_side",
        kind="int",
        default=1024,
        minimum=16,
        maximum=4096,
        optional=True,
        stage="match",
        help="the longer side is scaled to this many pixels, up or down; none keeps the image's size",
    ),
    Setting(
        name="threshold", kind="float", default=0.1, minimum=0, maximum=1, stage="match", help="least score of a match"
    ),
)

FULL = Variant(
    name="full",
    description="the published networks: 256 channels, 9 layers",
    weights=(
        WeightsFile(
            role="",
            url=RELEASE + "superpoint_lightglue.pth",
            filename="superpoint_lightglue.pth",
            format="torch",
            licence="Apache-2.0",
            free_licence=True,
        ),
        WeightsFile(
            role="extractor",
            url=RELEASE + "superpoint_v1.pth",
            filename="superpoint_v1.pth",
            format="torch",
            licence="Magic Leap, non-commercial research only",
            free_licence=False,
        ),
    ),
)

MINI = Variant(
    name="mini",
    description="the same layers, smaller, with weights of the project's own (see MODEL_CARD.md)",
    settings={"long_side": 960},
    weights=(
        WeightsFile(
            role="",
            url="",
            package="matchrt_lightglue",
            filename="data/mini/lightglue_mini.safetensors",
            format="safetensors",
            licence="Apache-2.0",
            free_licence=True,
        ),
        WeightsFile(
            role="extractor",
            url="",
            package="matchrt_lightglue",
            filename="data/mini/superpoint_mini.safetensors",
            format="safetensors",
            licence="Apache-2.0",
            free_licence=True,
        ),
    ),
)

MATCHER_SPEC = MatcherSpec(
    id="superpoint-lightglue",
    title="SuperPoint + LightGlue",
    family=Family.SPARSE,
    licence="Apache-2.0",
    paper="arXiv:1712.07629, arXiv:2306.13643",
    variants=(FULL, MINI),
    networks=(EXTRACTOR, MATCHER),
    steps=STEPS,
    settings=SETTINGS,
    input_rules=(
        "grey = 0.299 R + 0.587 G + 0.114 B, 0 to 1; scaled so that the longer side is `long_side` (the shorter rounds down), "
        "bilinear with "
        "half-pixel centres after a Gaussian blur where it shrinks; with a fixed size: scaled to fit, zeros at the bottom and right"
    ),
    score_meaning="probability of the assignment (LightGlue, equation 8), 0 to 1",
    outputs=("keypoints0", "keypoints1", "count0", "count1", "matches0", "scores0"),
    url="https://github.com/cvg/LightGlue",
)
