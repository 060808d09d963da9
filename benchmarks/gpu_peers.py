"""Published implementations as peers for `matchrt bench --against benchmarks/gpu_peers.py:FUNCTION[:precision=…][:compile=…]`.

    lightglue   SuperPoint of transformers, LightGlue of kornia: 9 layers, early exits off
    eloftr      EfficientLoFTR of transformers, whole
    roma        romatch, without sampling; local correlation in PyTorch

Sizes and numbers of keypoints are the bundle's, weights are random: speed does not depend on them. `precision`: fp32 (TF32 off) or fp16
(autocast; RoMa as its authors set it). `compile`: none, or a mode of `torch.compile`, of the parts that it can take.
Needs transformers, kornia, romatch (with einops and loguru), none of which are matchrt's own dependencies.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matchrt.bench.inputs import peer_tensors
from matchrt.bundle import read_bundle
from matchrt.errors import UsageError
from matchrt.samples import sample_pairs

Bundle = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
Call = Callable[[], Any]
COMPILE = ("none", "default", "reduce-overhead", "max-autotune")


class Way:
    """How a peer runs: device, precision and compilation."""

    def __init__(self, device: str, precision: str, compile: str) -> None:
        if precision not in ("fp32", "fp16") or compile not in COMPILE:
            raise UsageError(
                f"precision is fp32 or fp16, compile one of {', '.join(COMPILE)}; got {precision}, {compile}"
            )
        self.device, self.precision, self.compile = torch.device(device), precision, compile
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around every call."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self.precision == "fp16":
                dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
                stack.enter_context(torch.autocast(self.device.type, dtype))
            if self.compile != "none" and self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            yield

    def part(self, module: Any) -> Any:
        """`module`, compiled if that is asked for."""
        if self.compile == "none":
            return module
        mode = None if self.compile == "default" else self.compile
        return torch.compile(module, mode=mode, dynamic=False)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """On the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def lightglue(bundle: Bundle, tensors: Tensors, device: str, precision: str = "fp32", compile: str = "none") -> Call:
    """Two images through SuperPoint, K keypoints each, then LightGlue. K is the bundle's."""
    import kornia.feature
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    _require(bundle, "superpoint-lightglue", ("full",))
    way, count = Way(device, precision, compile), int(bundle["settings"]["keypoints"])
    torch.manual_seed(0)
    config = SuperPointConfig(keypoint_threshold=0.0, max_keypoints=count)
    extractor = SuperPointForKeypointDetection(config).eval().to(way.device)
    extractor.encoder = way.part(extractor.encoder)
    matcher = kornia.feature.LightGlue(features=None, depth_confidence=-1, width_confidence=-1).eval().to(way.device)
    for number, layer in enumerate(matcher.transformers):
        matcher.transformers[number] = way.part(layer)
    images = [way.put(np.repeat(tensors[f"image{i}"], 3, axis=1)) for i in (0, 1)]
    together = [torch.cat(images)] if images[0].shape == images[1].shape else images
    sizes = [torch.tensor([[i.shape[3], i.shape[2]]] * len(i), device=way.device, dtype=torch.float32) for i in images]

    def features() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = [extractor(i) for i in together]
        rows = [(_fixed(f.keypoints, count), _fixed(f.descriptors, count)) for f in found]
        if len(rows) == 2:
            return rows
        points, descriptors = rows[0]
        return list(zip(points.chunk(2), descriptors.chunk(2), strict=True))

    def call() -> Any:
        with way.running():
            pair = features()
            return matcher(
                {
                    f"image{i}": {"keypoints": p * sizes[i][:, None], "descriptors": d, "image_size": sizes[i]}
                    for i, (p, d) in enumerate(pair)
                }
            )

    return call


def _fixed(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Exactly `count` rows an image, as the bundle has them."""
    missing = count - rows.shape[1]
    return rows[:, :count] if missing <= 0 else torch.nn.functional.pad(rows, (0, 0, 0, missing))


def eloftr(bundle: Bundle, tensors: Tensors, device: str, precision: str = "fp32", compile: str = "none") -> Call:
    """The whole network, fine matching included."""
    from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

    _require(bundle, ("eloftr", "matchanything-eloftr"), ())
    way = Way(device, precision, compile)
    torch.manual_seed(0)
    network = way.part(EfficientLoFTRForKeypointMatching(EfficientLoFTRConfig()).eval().to(way.device))
    pixels = torch.stack([way.put(tensors[f"image{i}"]) for i in (0, 1)], 1)

    def call() -> Any:
        with way.running():
            return network(pixels)

    return call


def roma(bundle: Bundle, tensors: Tensors, device: str, precision: str = "fp32", compile: str = "none") -> Call:
    """`RegressionMatcher.match` of two tensors, both passes: warp and certainty."""
    from romatch.models.matcher import RegressionMatcher
    from romatch.models.model_zoo.roma_models import roma_model
    from romatch.models.transformer import vit_large

    _require(bundle, ("roma", "matchanything-roma"), ("full",))
    way, settings = Way(device, precision, compile), bundle["settings"]
    high = settings.get("upsample_size")
    torch.manual_seed(0)
    vit = vit_large(img_size=518, patch_size=14, init_values=1.0, ffn_layer="mlp", block_chunks=0).state_dict()
    with _without_loading(RegressionMatcher):
        matcher = roma_model(
            resolution=tuple(settings["size"]),
            upsample_preds=high is not None,
            upsample_res=None if high is None else tuple(high),
            device=way.device,
            weights={},
            dinov2_weights=vit,
            amp_dtype=torch.float16 if precision == "fp16" else torch.float32,
            symmetric=bool(settings["symmetric"]),
            use_custom_corr=False,
        )
    matcher = matcher.eval().to(way.device)
    if way.device.type == "cpu" or precision == "fp32":
        _disable_autocast(matcher)
    _compile_roma(matcher, way)
    pair = [way.put(tensors["images"][:, i]) for i in (0, 1)]
    large = [way.put(tensors["images_high"][:, i]) for i in (0, 1)] if high is not None else [None, None]

    def call() -> Any:
        if way.compile != "none" and way.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return matcher.match(*pair, im_A_high_res=large[0], im_B_high_res=large[1])

    return call


def _compile_roma(matcher: Any, way: Way) -> None:
    """Encoder, decoder's transformer and refiners; the Gaussian process and the loop around them stay eager."""
    matcher.encoder.cnn = way.part(matcher.encoder.cnn)
    matcher.encoder.dinov2_vitl14[0].forward_features = way.part(matcher.encoder.dinov2_vitl14[0].forward_features)
    matcher.decoder.embedding_decoder.forward = way.part(matcher.decoder.embedding_decoder.forward)
    for refiner in matcher.decoder.conv_refiner.values():
        refiner.forward = way.part(refiner.forward)


def _disable_autocast(matcher: Any) -> None:
    """True float32: romatch's own switches, which it leaves on by default."""
    for module in itertools.chain(matcher.modules(), matcher.encoder.dinov2_vitl14[0].modules()):
        if hasattr(module, "amp"):
            module.amp = False
        if hasattr(module, "amp_dtype"):
            module.amp_dtype = torch.float32
    matcher.encoder.dinov2_vitl14[0].float()


@contextlib.contextmanager
def _without_loading(kind: Any) -> Iterator[None]:
    """Construct with random weights: the constructor insists on loading some."""
    real = kind.load_state_dict
    kind.load_state_dict = lambda *_, **__: None
    try:
        yield
    finally:
        kind.load_state_dict = real


def _require(bundle: Bundle, matchers: str | tuple[str, ...], variants: tuple[str, ...]) -> None:
    """Refuse a bundle whose work is not what the peer does."""
    identity = bundle["matcher"]
    names = (matchers,) if isinstance(matchers, str) else matchers
    if identity["id"] not in names or (variants and identity["variant"] not in variants):
        raise UsageError(
            f"this peer does the work of {' and '.join(names)} ({', '.join(variants) or 'any variant'}), "
            f"not of {identity['id']}:{identity['variant']}"
        )


def main(argv: Sequence[str]) -> int:
    """Compile once, so that torch's caches know it: `python gpu_peers.py BUNDLE FUNCTION [NAME=VALUE]…`."""
    folder, function, *options = argv
    bundle = read_bundle(Path(folder))
    pair = sample_pairs()[0]
    tensors = peer_tensors(bundle, [(pair.image0, pair.image1)], 1, {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    begin = time.perf_counter()
    call = globals()[function](
        bundle.manifest.model_dump(mode="json"), tensors, device, **dict(o.split("=", 1) for o in options)
    )
    for _ in range(3):
        call()
    print(json.dumps({"function": function, "options": options, "seconds": round(time.perf_counter() - begin, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
