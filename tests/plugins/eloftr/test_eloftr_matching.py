"""The fixed-shape network against the plain rules, for every recipe, and faults that the comparison must catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from matchrt.errors import UsageError
from matchrt.patches import apply_patches
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings, prepare_for_export
from matchrt_eloftr.networks import fine as fine_module
from matchrt_eloftr.networks.network import fuse_backbone
from matchrt_eloftr.patches import export_patches

SIZE = (192, 256)
SETTINGS = GraphSettings(SIZE, SIZE, top_k=512)
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def pair(pairs: Callable[..., Pair]) -> Pair:
    return pairs(*SIZE, (16, 8))


@pytest.fixture(scope="module")
def network(make_network: Callable[..., EfficientLoFTR], pair: Pair) -> EfficientLoFTR:
    return make_network(SETTINGS, pair)


def run(network: EfficientLoFTR, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return network(*inputs)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"similarity_elements": 1 << 17}, id="pieces-kept"),
        pytest.param({"similarity_elements": 1 << 17, "keep_elements": 0}, id="pieces-computed-again"),
        pytest.param({"top_k": None}, id="every-row"),
        pytest.param({"top_k": 3840}, id="more-slots-than-rows"),
    ],
)
@pytest.mark.parametrize("prepared", [False, True], ids=["published", "prepared"])
def test_mutual_matches_follow_the_rules(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, resettle: Any, changes: dict[str, Any], prepared: bool
) -> None:
    changed = resettle(network, **changes)
    outputs = run(prepare_for_export(changed) if prepared else changed, *pair)
    expected = plain(network).match(*pair, 0.05)
    differ(expected, outputs, 0.05).require(at_least=60)
    assert outputs[0].shape == (1, changed.settings.slots, 2)
    every = plain(network).match(*pair, 0.0)
    assert int(outputs[5][0]) == len(every.cells)
    assert int(outputs[4][0]) == min(len(every.cells), changed.settings.slots)


def test_keypoints_move_below_the_pixel(network: EfficientLoFTR, pair: Pair, plain: Any) -> None:
    """The comparison of keypoints1 means something: the second stage moves them off the half-pixel grid."""
    expected = plain(network).match(*pair, 0.05)
    assert abs((expected.keypoints1 * 2) % 1).max() > 0.05
    assert (expected.keypoints0 * 2 % 1 == 0).all()


def test_raw_similarity_follows_the_rules(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, resettle: Any
) -> None:
    outputs = run(prepare_for_export(resettle(network, score="similarity", similarity_elements=1 << 17)), *pair)
    expected = plain(network).match(*pair, 25.0, raw=True)
    differ(expected, outputs, 25.0).require(at_least=30, score=1e-3)
    dual = plain(network).match(*pair, 0.0)
    raw = plain(network).match(*pair, 0.0, raw=True)
    assert set(raw.cells) != set(dual.cells), "opt is another match set than full"


@pytest.mark.parametrize("per_row", [1, 2, 24])
def test_one_to_many_truncates_each_row_and_counts_all(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, resettle: Any, per_row: int
) -> None:
    changed = resettle(
        network,
        mutual=False,
        per_row=per_row,
        top_k=2048 if per_row == 24 else None,
        score_floor=0.001,
        similarity_elements=1 << 17,
    )
    outputs = run(prepare_for_export(changed), *pair)
    expected = plain(network).match(*pair, 0.001, mutual=False)
    found = differ(expected, outputs, 0.001)
    per_cell: dict[int, list[float]] = {}
    for (i, _), score in zip(expected.cells, expected.scores.tolist(), strict=True):
        per_cell.setdefault(i, []).append(score)
    assert max(len(scores) for scores in per_cell.values()) > 2, "the pair has rows with several matches"
    kept = sum(min(len(scores), per_row) for scores in per_cell.values())
    assert not found.extra
    assert found.keypoints0 == 0.0
    assert found.keypoints1 <= 2e-5
    assert found.matches - len(found.missing) == kept
    assert int(outputs[5][0]) == len(expected.cells)
    if per_row == 24:
        found.require(at_least=250)


def test_slots_hold_the_best_of_all_rows(network: EfficientLoFTR, pair: Pair, plain: Any, resettle: Any) -> None:
    outputs = run(prepare_for_export(resettle(network, top_k=40)), *pair)
    expected = sorted(plain(network).match(*pair, 0.0).scores.tolist(), reverse=True)[:40]
    assert torch.allclose(outputs[2][0], torch.tensor(expected), atol=1e-4)
    assert int(outputs[4][0]) == 40 < int(outputs[5][0])


VALID = ((160, 256), (192, 224))


@pytest.mark.parametrize("valid", [VALID, ((96, 256), (192, 128)), (SIZE, SIZE)], ids=["near", "far", "full"])
def test_valid_rectangles_frozen_and_as_input(
    make_network: Any, pair: Pair, plain: Any, differ: Any, resettle: Any, valid: Any
) -> None:
    masked = [p.clone() for p in pair]
    for image, (height, width) in zip(masked, valid, strict=True):
        image[..., height:, :] = 0.0
        image[..., width:] = 0.0
    network = make_network(SETTINGS, (masked[0], masked[1]))
    expected = plain(network).match(*masked, 0.002, valid=valid)
    frozen = prepare_for_export(resettle(network, valid=valid, similarity_elements=1 << 17))
    differ(expected, run(frozen, *masked), 0.002).require(at_least=20)
    given = [torch.tensor([v], dtype=torch.int32) for v in valid]
    for build in (lambda n: n, prepare_for_export):
        free = build(resettle(network, valid="input", similarity_elements=1 << 17))
        differ(expected, run(free, *masked, *given), 0.002).require(at_least=20)


def test_padding_is_not_neutral(network: EfficientLoFTR, pair: Pair, plain: Any) -> None:
    """The valid rectangle changes the matches: the masked tests above would notice a mask that is ignored."""
    ignored = plain(network).match(*pair, 0.02)
    masked = plain(network).match(*pair, 0.02, valid=VALID)
    assert set(ignored.cells) != set(masked.cells)


def test_images_of_unequal_sizes(make_network: Any, pairs: Any, plain: Any, differ: Any, resettle: Any) -> None:
    settings = GraphSettings((192, 256), (224, 192), top_k=512)
    first, second = pairs(224, 256, (8, 0))
    images = first[..., :192, :].contiguous(), second[..., :192].contiguous()
    network = make_network(settings, images)
    expected = plain(network).match(*images, 0.05)
    differ(expected, run(network, *images), 0.05).require(at_least=30)
    differ(expected, run(prepare_for_export(network), *images), 0.05).require(at_least=30)


def test_pairing_survives_swapped_halves(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, swapped: Any
) -> None:
    images = pair[0], swapped(pair[1])
    expected = plain(network).match(*images, 0.05)
    assert any(a[1] > b[1] for a, b in zip(expected.cells, expected.cells[1:], strict=False)), (
        "columns must not only grow"
    )
    differ(expected, run(prepare_for_export(network), *images), 0.05).require(at_least=30)


def test_no_match_is_an_empty_result(network: EfficientLoFTR) -> None:
    flat = torch.full((1, 1, *SIZE), 0.5)
    outputs = run(prepare_for_export(network), flat, 1.0 - flat)
    assert int((outputs[2] > 0.2).sum()) == 0
    assert all(torch.isfinite(o.float()).all() for o in outputs)


def test_every_inner_cell_can_match(network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any) -> None:
    """An image against itself: nearly every cell off the border matches, and all slots agree with the rules."""
    expected = plain(network).match(pair[0], pair[0], 0.0)
    assert len(expected.cells) > 0.9 * (24 - 4) * (32 - 4)
    outputs = run(prepare_for_export(network), pair[0], pair[0])
    assert int(outputs[4][0]) == min(512, len(expected.cells))
    assert not differ(expected, outputs, 0.0).extra


@pytest.mark.parametrize("valid", ["full", "input"])
def test_a_batch_equals_its_pairs(
    network: EfficientLoFTR, pair: Pair, pairs: Any, swapped: Any, plain: Any, differ: Any, resettle: Any, valid: str
) -> None:
    other = pairs(*SIZE, (0, 16), seed=5)
    together = [torch.cat((a, b)) for a, b in zip(pair, (other[0], swapped(other[1])), strict=True)]
    prepared = prepare_for_export(resettle(network, valid=valid, similarity_elements=1 << 17))
    rectangles: list[Any] = [None, None]
    if valid == "input":
        rectangles = [((160, 256), (192, 224)), ((192, 192), (128, 256))]
        together += [torch.tensor([r[n] for r in rectangles], dtype=torch.int32) for n in (0, 1)]
    outputs = run(prepared, *together)
    counts = []
    for entry, rectangle in enumerate(rectangles):
        images = [t[entry : entry + 1] for t in together[:2]]
        expected = plain(network).match(*images, 0.01, valid=rectangle)
        differ(expected, outputs, 0.01, entry).require(at_least=10)
        counts.append(len(expected.cells))
    assert counts[0] != counts[1], "the entries need different match counts to be told apart"


def test_deploy_form_has_147_tensors_and_the_same_values(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any
) -> None:
    deploy = fuse_backbone(network)
    again = EfficientLoFTR(SETTINGS, network.architecture, deploy=True).eval()
    again.load_state_dict(deploy.state_dict())
    differ(plain(network).match(*pair, 0.05), run(again, *pair), 0.05).require(at_least=60)


@pytest.mark.parametrize("valid", ["full", "input"])
def test_patches_equal_the_prepared_copy_and_are_taken_back(
    network: EfficientLoFTR, pair: Pair, resettle: Any, valid: str
) -> None:
    changed = resettle(network, valid=valid)
    inputs = pair if valid == "full" else (*pair, *(torch.tensor([v], dtype=torch.int32) for v in VALID))
    before, names = run(changed, *inputs), list(changed.state_dict())
    with apply_patches(torch.nn.ModuleDict({"matcher": changed}), export_patches()):
        patched = run(changed, *inputs)
        assert len(list(changed.state_dict())) < len(names)
    assert all(torch.equal(a, b) for a, b in zip(patched, run(prepare_for_export(changed), *inputs), strict=True))
    assert list(changed.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(before, run(changed, *inputs), strict=True))


# Faults that have been made elsewhere. Each must be visible in the comparison.


def plus_one_centre() -> Tensor:
    around = torch.tensor([0, 1, 2])
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    rows, columns = row[:, None] + around, column[:, None] + around
    return (rows[:, :, None] * 10 + columns[:, None, :]).flatten(1)


def clamped_window() -> Tensor:
    around = torch.tensor([-1, 0, 1])
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    rows, columns = (row[:, None] + around).clamp(0), (column[:, None] + around).clamp(0)
    return (rows[:, :, None] * 10 + columns[:, None, :]).flatten(1)


@pytest.mark.parametrize("window", [plus_one_centre, clamped_window])
def test_fault_another_second_window(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, monkeypatch: Any, resettle: Any, window: Any
) -> None:
    monkeypatch.setattr(fine_module, "neighbour_pixels", window)
    found = differ(plain(network).match(*pair, 0.05), run(resettle(network), *pair), 0.05)
    assert not found.missing
    assert found.keypoints1 > 1e-3


def test_fault_scale_by_the_channels_used(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, resettle: Any
) -> None:
    wrong = resettle(network)
    wrong.fine_matching.scale = 4.0 / (network.architecture.dims[0] - network.architecture.regress_channels)
    assert differ(plain(network).match(*pair, 0.02), run(wrong, *pair), 0.02).keypoints0 > 0


def test_fault_softmax_over_the_inner_window(
    network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, resettle: Any
) -> None:
    wrong = resettle(network)
    wrong.fine_matching.window_twice = wrong.fine_matching.window_twice[:, :64]
    assert differ(plain(network).match(*pair, 0.0), run(wrong, *pair), 0.0).keypoints1 > 0.4


def test_fault_swapped_cells(network: EfficientLoFTR, pair: Pair, plain: Any, differ: Any, swapped: Any) -> None:
    images = pair[0], swapped(pair[1])
    points0, points1, scores, cells, *rest = run(network, *images)
    wrong = (points0, points1, scores, cells.flip(-1), *rest)
    assert differ(plain(network).match(*images, 0.05), wrong, 0.05).missing


def test_fault_border_cells_do_not_compete(network: EfficientLoFTR, pair: Pair, plain: Any, resettle: Any) -> None:
    """Leaving border columns out before the best of a row is taken adds matches; the rules must not."""
    coarse0, coarse1, _, _ = plain(network).dense(*pair)
    similarity = plain(network).similarity(coarse0, coarse1, None)
    inside = network.get_buffer("inside0")[0]
    cut = similarity.masked_fill(~(inside[:, None] & inside[None]), -1e9)
    conf, conf_cut = (s.softmax(0) * s.softmax(1) for s in (similarity, cut))

    def mutual(values: Tensor) -> int:
        keep = (values == values.max(1, keepdim=True)[0]) & (values == values.max(0, keepdim=True)[0])
        return int((keep & inside[:, None] & inside[None] & (values > 1e-4)).sum())

    assert mutual(conf_cut) > mutual(conf)


def test_fault_crop_in_place_of_padding(network: EfficientLoFTR, pair: Pair, plain: Any, resettle: Any) -> None:
    padded = [p.clone() for p in pair]
    for image in padded:
        image[..., 160:, :] = 0.0
    cropped = [p[..., :160, :] for p in pair]
    rectangle = ((160, 256), (160, 256))
    first = plain(network).match(*padded, 0.02, valid=rectangle)
    second = plain(resettle(network, size0=(160, 256), size1=(160, 256))).match(*cropped, 0.02)
    assert set(first.cells) != set(second.cells)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size0": (190, 256)}, "size0 is 190x256, not divisible by 32"),
        ({"size1": (16, 256)}, "size1 is 16x256; the smallest side is 32 pixels"),
        ({"top_k": 3841}, "top_k 3841 is not between 1 and 3840"),
        ({"top_k": 0}, "top_k 0"),
        ({"valid": ((192, 256), (100, 256))}, "valid of image 1 is 100x256, not divisible by 32"),
        ({"valid": ((224, 256), (192, 256))}, "valid rectangle 224x256 of image 0 is larger than 192x256"),
        ({"per_row": 2}, "a mutual match is one per row"),
        ({"mutual": False}, "positive score_floor"),
        ({"mutual": False, "score_floor": 1.0, "score": "similarity"}, "no one-to-many mode"),
        ({"border": 0}, "border 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"size0": SIZE, "size1": SIZE, **changes}
    with pytest.raises(UsageError) as caught:
        GraphSettings(**given)
    assert words in caught.value.message
