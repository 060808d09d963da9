"""Every stage of our network against romatch with the same weights, at tiny size."""

from __future__ import annotations

import math

import pytest
import romatch.utils.utils as upstream_utils
import torch
from roma_oracle import TINY, Twins, images, make_twins
from torch import Tensor

from matchrt_roma.networks import Roma, part_names
from matchrt_roma.networks.anchors import classes_to_flow
from matchrt_roma.networks.grids import merge, pixel_centres
from matchrt_roma.networks.refiner import RefineStage
from matchrt_roma.settings import RomaSettings

SIZE, HIGH = 112, 128
TOLERANCE = 1e-5


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))


@pytest.fixture(scope="module", params=[8, 37], ids=["native-grid", "interpolated-grid"])
def twins(request: pytest.FixtureRequest) -> Twins:
    return make_twins(request.param, SIZE, HIGH)


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    return images(2, SIZE), images(2, HIGH)


@pytest.fixture(scope="module")
def ours(twins: Twins, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return twins.ours.run({"images": pair[0][None], "images_high": pair[1][None]})


def swapped(maps: Tensor) -> Tensor:
    return maps.flip(0)


def test_dinov2(twins: Twins, pair: tuple[Tensor, Tensor]) -> None:
    theirs = twins.vit.forward_features(pair[0])["x_norm_patchtokens"]
    part = twins.ours.vit
    result = twins.ours.dinov2(pair[0], part.first, part.position).flatten(2).transpose(1, 2)
    assert theirs.std() > 0.3
    assert difference(result, theirs) <= TOLERANCE


def test_dinov2_interpolates_by_scale_at_rectangles() -> None:
    twins = make_twins(37, SIZE, HIGH)
    image = torch.rand(1, 3, 14 * 6, 14 * 9)
    theirs = twins.vit.forward_features(image)["x_norm_patchtokens"]
    result = twins.ours.dinov2(image, *twins.ours.dinov2.token_bias(6, 9)).flatten(2).transpose(1, 2)
    assert difference(result, theirs) <= TOLERANCE


@pytest.mark.parametrize("scale", [8, 4, 2, 1])
def test_pyramid(twins: Twins, pair: tuple[Tensor, Tensor], ours: dict[str, Tensor], scale: int) -> None:
    theirs = twins.theirs.decoder.proj[str(scale)](twins.theirs.encoder.cnn(pair[0])[scale])
    assert difference(ours[f"f{scale}"][0], theirs) <= TOLERANCE


def test_gp_mean(twins: Twins, ours: dict[str, Tensor]) -> None:
    f16 = ours["f16"][0]
    theirs = twins.theirs.decoder.gps["16"](f16, swapped(f16))
    assert theirs.std() > 0.1
    # Both are float32 solves of a system of condition 1e2 to 1e3; the solver's own table is in test_roma_gp.py.
    assert difference(ours["mean"][0], theirs) <= 5 * TOLERANCE
    exact = _float64_mean(twins, f16)
    assert difference(ours["mean"][0].double(), exact) <= difference(theirs.double(), exact) + TOLERANCE


def _float64_mean(twins: Twins, f16: Tensor) -> Tensor:
    gp = twins.theirs.decoder.gps["16"]
    basis = gp.get_pos_enc(f16).flatten(2).transpose(1, 2).double()
    x, y = (maps.double().flatten(2).transpose(1, 2) for maps in (f16, swapped(f16)))
    noise = gp.sigma_noise * torch.eye(y.shape[1], dtype=torch.float64)
    mean = gp.K(x, y) @ torch.linalg.solve(gp.K(y, y) + noise, basis)
    return mean.transpose(1, 2).reshape(len(f16), -1, *f16.shape[-2:])


def test_decoder_logits_and_flow(twins: Twins, ours: dict[str, Tensor]) -> None:
    mean, f16 = ours["mean"][0], ours["f16"][0]
    cls, certainty, _ = twins.theirs.decoder.embedding_decoder(mean, f16, None, "16")
    logits, ours_certainty = twins.ours.match_decoder(mean, f16)
    assert difference(logits, cls.flatten(2).transpose(1, 2)) <= TOLERANCE
    assert difference(ours_certainty, certainty) <= TOLERANCE
    flow, _ = twins.ours.coarse.decode(mean, f16)
    assert difference(flow, upstream_utils.cls_to_flow_refine(cls).permute(0, 3, 1, 2)) <= TOLERANCE


def test_anchor_neighbours_wrap_and_clamp_as_upstream() -> None:
    side = 16
    logits = torch.randn(1, side * side, side * side)
    logits[0, torch.arange(side * side), torch.arange(side * side)] += 12.0  # every anchor is some token's best
    theirs = upstream_utils.cls_to_flow_refine(logits.transpose(1, 2).reshape(1, side * side, side, side))
    flow = classes_to_flow(logits, pixel_centres(side, side).reshape(-1, 2))
    assert difference(flow, theirs.reshape(1, -1, 2)) <= 1e-6


@pytest.mark.parametrize("scale", [16, 8, 4, 2, 1])
def test_refiner(twins: Twins, ours: dict[str, Tensor], scale: int) -> None:
    maps = ours[f"f{scale}"][0]
    size = (int(maps.shape[-2]), int(maps.shape[-1]))
    generator = torch.Generator().manual_seed(scale)
    # Some matches lie outside the frame, so that zero padding counts.
    flow = pixel_centres(*size).permute(2, 0, 1)[None] + 0.4 * torch.randn(2, 2, *size, generator=generator)
    refiner = twins.theirs.decoder.conv_refiner[str(scale)]
    delta, certainty = refiner(maps, swapped(maps), flow, scale_factor=1.3)
    stage = RefineStage(twins.ours.refiner(scale), scale, size, (SIZE, SIZE), 1.3)
    new_flow, new_certainty = stage(maps, swapped(maps), flow, torch.zeros(2, 1, *size))
    unit = scale / (4.0 * SIZE)
    assert certainty.std() > 0.02
    assert difference((new_flow - flow) / unit, delta) <= 1e-6 / unit
    assert difference(new_certainty, certainty) <= TOLERANCE


@pytest.mark.parametrize("scale", [16, 8, 4, 2, 1])
def test_coarse_pass_flow_and_certainty(
    twins: Twins, pair: tuple[Tensor, Tensor], ours: dict[str, Tensor], scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Upstream goes on from our mean: two float32 solves differ by the system's condition (see test_gp_mean), and
    # certainty logits would carry that difference into a comparison that is about everything after it.
    monkeypatch.setattr(twins.theirs.decoder.gps["16"], "forward", lambda x, y: ours["mean"][0])
    theirs = twins.theirs.forward_symmetric({"im_A": pair[0][:1], "im_B": pair[0][1:]}, scale_factor=SIZE / 560)
    flow, certainty = _coarse_state(twins.ours, ours, scale)
    assert difference(flow, theirs[scale]["flow"]) <= TOLERANCE
    assert difference(certainty, theirs[scale]["certainty"]) <= TOLERANCE


def _coarse_state(network: Roma, tensors: dict[str, Tensor], scale: int) -> tuple[Tensor, Tensor]:
    settings = network.settings
    query = merge(tensors["f16"])
    flow, certainty = network.coarse.decode(merge(tensors["mean"]), query)
    for step in (16, 8, 4, 2, 1):
        stage = RefineStage(network.refiner(step), step, settings.map_size(step), settings.size, settings.coarse_factor)
        maps = merge(tensors[f"f{step}"])
        flow, certainty = stage(maps, swapped(maps), flow, certainty)
        if step == scale:
            break
    return flow, certainty


def upstream_match(twins: Twins, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(2, H, W, 2) warp and (2, H, W) certainty of upstream's `match`."""
    kwargs = {"im_A_high_res": pair[1][:1], "im_B_high_res": pair[1][1:]} if twins.theirs.upsample_preds else {}
    warp, certainty = twins.theirs.match(pair[0][:1], pair[0][1:], **kwargs)
    width = warp.shape[2] // 2
    directions = torch.stack((warp[0, :, :width, 2:], warp[0, :, width:, :2]))
    return directions, torch.stack((certainty[0, :, :width], certainty[0, :, width:]))


def test_whole_match(twins: Twins, pair: tuple[Tensor, Tensor], ours: dict[str, Tensor]) -> None:
    warp, certainty = upstream_match(twins, pair)
    outside = float((certainty == 0).float().mean())
    assert 0.01 < outside < 0.9
    assert 0.1 < float(certainty.mean()) < 0.95
    assert difference(ours["warp"][0], warp) <= TOLERANCE
    assert difference(ours["certainty"][0], certainty) <= TOLERANCE


def test_without_upsampling(pair: tuple[Tensor, Tensor]) -> None:
    twins = make_twins(8, SIZE, None)
    warp, certainty = upstream_match(twins, pair)
    ours = twins.ours.run({"images": pair[0][None]})
    assert part_names(twins.ours.settings)[-1] == "refine_final"
    assert difference(ours["warp"][0], warp) <= TOLERANCE
    assert difference(ours["certainty"][0], certainty) <= TOLERANCE


def test_one_direction_is_the_first_of_two(pair: tuple[Tensor, Tensor]) -> None:
    twins = make_twins(8, SIZE, HIGH)
    twins.theirs.symmetric = False
    warp, certainty = twins.theirs.match(pair[0][:1], pair[0][1:], im_A_high_res=pair[1][:1], im_B_high_res=pair[1][1:])
    settings = RomaSettings(recipe="upstream", size=(SIZE, SIZE), upsample_size=(HIGH, HIGH), symmetric=False, leaf=40)
    network = Roma(settings, twins.ours.config)
    network.load_state_dict(twins.ours.state_dict())
    ours = network.run({"images": pair[0][None], "images_high": pair[1][None]})
    assert ours["warp"].shape == (1, 1, HIGH, HIGH, 2)
    assert difference(ours["warp"][0, 0], warp[0, ..., 2:]) <= TOLERANCE
    assert difference(ours["certainty"][0, 0], certainty[0]) <= TOLERANCE


def test_coarse_variant_ends_at_stride_8(
    twins: Twins, pair: tuple[Tensor, Tensor], ours: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in test_coarse_pass_flow_and_certainty: upstream goes on from our mean.
    monkeypatch.setattr(twins.theirs.decoder.gps["16"], "forward", lambda x, y: ours["mean"][0])
    theirs = twins.theirs.forward_symmetric({"im_A": pair[0][:1], "im_B": pair[0][1:]}, scale_factor=SIZE / 560)
    settings = RomaSettings(variant="coarse", recipe="upstream", size=(SIZE, SIZE), leaf=40)
    network = Roma(settings, twins.ours.config)
    network.load_state_dict(twins.ours.state_dict())
    coarse = network.run({"images": pair[0][None]})
    low = torch.nn.functional.interpolate(theirs[16]["certainty"], size=(14, 14), mode="bilinear", align_corners=False)
    logits = theirs[8]["certainty"] - 0.5 * low * (low < 0)
    flow = theirs[8]["flow"]
    certainty = torch.where((flow.abs() > 1).any(1, keepdim=True), 0.0, logits.sigmoid())[:, 0]
    assert difference(coarse["warp"][0], flow.clamp(-1, 1).permute(0, 2, 3, 1)) <= TOLERANCE
    assert difference(coarse["certainty"][0], certainty) <= TOLERANCE


def test_pairs_of_a_batch_do_not_mix(twins: Twins, pair: tuple[Tensor, Tensor]) -> None:
    other, other_high = images(2, SIZE, seed=9), images(2, HIGH, seed=9)
    both = twins.ours.run({"images": torch.stack((other, pair[0])), "images_high": torch.stack((other_high, pair[1]))})
    alone = twins.ours.run({"images": pair[0][None], "images_high": pair[1][None]})
    assert difference(both["warp"][1], alone["warp"][0]) <= TOLERANCE
    assert difference(both["certainty"][1], alone["certainty"][0]) <= TOLERANCE


def test_factors_of_both_recipes() -> None:
    published = RomaSettings(recipe="matchanything")
    assert published.coarse_factor == 1.0
    assert published.upsample_factor == pytest.approx(math.sqrt(864 * 864 / (560 * 560)))
    smaller = RomaSettings(recipe="matchanything", size=(448, 448), upsample_size=(672, 672))
    assert (smaller.coarse_factor, smaller.upsample_factor) == (1.0, pytest.approx(1.5))
    upstream = RomaSettings(recipe="upstream", size=(448, 448), upsample_size=(672, 672))
    assert (upstream.coarse_factor, upstream.upsample_factor) == (pytest.approx(0.8), pytest.approx(1.2))


def test_every_normalisation_has_upstreams_epsilon(twins: Twins) -> None:
    """1e-6 in DINOv2, 1e-5 elsewhere: too small a difference for the comparisons above to see."""

    def epsilons(module: torch.nn.Module, prefix: str) -> dict[str, float]:
        return {prefix + name: m.eps for name, m in module.named_modules() if hasattr(m, "eps")}

    theirs = epsilons(twins.theirs, "") | epsilons(twins.vit, "dinov2.")
    assert epsilons(twins.ours, "") == theirs
    assert set(theirs.values()) == {1e-6, 1e-5}


def test_every_parameter_has_one_owner() -> None:
    network = make_twins(8, SIZE, HIGH).ours
    names = list(network.state_dict())
    owned = {id(parameter) for parameter in network.parameters()}
    assert len(names) == len(set(names))
    assert len(owned) == len(list(network.parameters()))
    for name in part_names(network.settings):
        assert {id(parameter) for parameter in network.part(name).parameters()} <= owned
    assert all(name.startswith(("encoder.cnn.", "decoder.", "dinov2.")) for name in names)
    assert TINY["vit_depth"] == 2
