from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SuperPointConfig, SuperPointForKeypointDetection

from matchrt.errors import UsageError
from matchrt_lightglue.networks import SuperPoint, selection, superpoint

Build = Callable[..., SuperPoint]
Photo = Callable[..., Tensor]
MODULES = {
    **{f"encoder.conv_blocks.{i}.conv_{ab}": f"conv{i + 1}{ab}" for i in range(4) for ab in "ab"},
    **{f"keypoint_decoder.conv_score_{ab}": f"convP{ab}" for ab in "ab"},
    **{f"descriptor_decoder.conv_descriptor_{ab}": f"convD{ab}" for ab in "ab"},
}


def in_transformers(network: SuperPoint, image: Tensor, threshold: float = 0.0005) -> tuple[Tensor, Tensor, Tensor]:
    """All keypoints (x, y), scores and descriptors of transformers' SuperPoint with the same weights.

    It checks the right and bottom border against a map eight times too large and so keeps their points: drop them.
    """
    oracle = SuperPointForKeypointDetection(SuperPointConfig(keypoint_threshold=threshold)).eval()
    own = network.state_dict()
    oracle.load_state_dict(
        {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for theirs, ours in MODULES.items() for kind in ("weight", "bias")},
        strict=True,
    )
    height, width = image.shape[2:]
    with torch.inference_mode():
        out = oracle(image.expand(-1, 3, -1, -1))
    keypoints = (out.keypoints[0] * torch.tensor([width, height])).round()
    inside = (keypoints[:, 0] < width // 8 * 8 - 4) & (keypoints[:, 1] < height // 8 * 8 - 4)
    assert not inside.all(), "the border fault of the oracle is gone: stop working around it"
    return keypoints[inside], out.scores[0][inside], out.descriptors[0][inside]


def run(network: SuperPoint, image: Tensor, scale: object = 1.0, valid: tuple[int, int] | None = None) -> tuple:  # type: ignore[type-arg]
    batch, _, height, width = image.shape
    scale = torch.as_tensor(scale, dtype=torch.float32).expand(batch, 2)
    with torch.inference_mode():
        return network(image, scale, torch.tensor([valid or (height, width)] * batch, dtype=torch.int32))


def by_position(keypoints: Tensor) -> dict[tuple[float, float], int]:
    return {(x, y): i for i, (x, y) in enumerate(keypoints.tolist())}


@pytest.mark.parametrize(
    ("name", "height", "width"), [("camera", 240, 344), ("coffee", 203, 317), ("rocket", 318, 167)]
)
def test_keypoints_are_those_of_transformers(
    extractor: Build, photo: Photo, name: str, height: int, width: int
) -> None:
    network, image = extractor(max_keypoints=3840), photo(name, height, width)
    keypoints, scores, descriptors = in_transformers(network, image)
    got = run(network, image)
    count = int(got.counts[0])
    assert 200 < count == len(keypoints) < 3840
    theirs, ours = by_position(keypoints), by_position(got.keypoints[0, :count])
    assert theirs.keys() == ours.keys()
    order = torch.tensor([theirs[position] for position in ours])
    assert (got.scores[0, :count] - scores[order]).abs().max() < 1e-6
    assert (got.descriptors[0, :count] - descriptors[order]).abs().max() < 1e-5
    assert (got.scores[0, 1:] <= got.scores[0, :-1]).all()
    assert scores.max() - scores.min() > 0.5  # the detector does discriminate


def test_fewer_keypoints_are_the_best_ones(extractor: Build, photo: Photo) -> None:
    image = photo("camera", 240, 344)
    few, all_ = run(extractor(max_keypoints=100), image), run(extractor(max_keypoints=3840), image)
    assert few.counts.tolist() == [100]
    assert torch.equal(few.scores, all_.scores[:, :100])
    assert by_position(few.keypoints[0]).keys() == by_position(all_.keypoints[0, :100]).keys()


def dustbin_trimmed(self: SuperPoint, image: Tensor, valid_size: Tensor | None = None) -> superpoint.DenseFeatures:
    dense = DENSE(self, image, valid_size)
    cells = dense.logits[:, :64].softmax(1)
    return dense._replace(scores=F.pixel_shuffle(cells, 8).squeeze(1))


DENSE = SuperPoint.forward_dense


@pytest.mark.parametrize(
    ("owner", "name", "fault"),
    [
        (SuperPoint, "forward_dense", dustbin_trimmed),
        (superpoint, "local_maxima", lambda s, inside, r: (s == selection._window_max(s, r)) & inside),
        (selection, "_window_max", lambda x, r: F.max_pool2d(x[:, None], 2 * r - 1, 1, r - 1)[:, 0]),
    ],
    ids=["dustbin", "nms-rounds", "nms-window"],
)
def test_a_planted_fault_shows(
    extractor: Build, photo: Photo, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, fault: object
) -> None:
    network, image = extractor(max_keypoints=3840), photo("camera", 240, 344)
    keypoints, _, _ = in_transformers(network, image)
    monkeypatch.setattr(owner, name, fault)
    got = run(network, image)
    assert by_position(keypoints).keys() != by_position(got.keypoints[0, : int(got.counts[0])]).keys()


def test_keypoints_go_back_to_the_original_image(extractor: Build, photo: Photo) -> None:
    network, image = extractor(max_keypoints=64), photo("camera", 120, 160)
    here, there = run(network, image), run(network, image, scale=(0.5, 1.25))
    expected = (here.keypoints.double() + 0.5) / torch.tensor([1.25, 0.5]) - 0.5
    count = int(here.counts[0])
    torch.testing.assert_close(there.keypoints[:, :count].double(), expected[:, :count], atol=1e-4, rtol=0)
    assert torch.equal(here.descriptors, there.descriptors)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (131, 101), (64, 77)])
@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_a_padded_image_gives_what_the_image_gives(
    extractor: Build, photo: Photo, height: int, width: int, fill: float
) -> None:
    network, image = extractor(max_keypoints=2000), photo("coffee", height, width)
    alone = run(network, image)
    padded = F.pad(image, (0, 187 - width, 0, 150 - height), value=fill)
    got = run(network, padded, valid=(height, width))
    assert torch.equal(got.counts, alone.counts)
    assert int(got.counts[0]) > 30
    assert torch.equal(got.keypoints, alone.keypoints)
    assert (got.scores - alone.scores).abs().max() < 1e-5
    assert (got.descriptors - alone.descriptors).abs().max() < 5e-5


def test_without_masking_a_padded_image_differs(extractor: Build, photo: Photo) -> None:
    image = photo("coffee", 120, 160)
    padded = F.pad(image, (0, 24, 0, 32), value=0.7)
    alone = run(extractor(max_keypoints=2000), image)
    got = run(extractor(max_keypoints=2000, mask_padding=False), padded, valid=(120, 160))
    assert by_position(got.keypoints[0]).keys() != by_position(alone.keypoints[0]).keys()
    x, y = got.keypoints[0, : int(got.counts[0])].unbind(-1)
    assert x.max() < 156  # detections are masked in any case
    assert y.max() < 116


def test_a_batch_is_its_images(extractor: Build, photo: Photo) -> None:
    network = extractor(max_keypoints=300)
    images = torch.cat([photo("camera", 96, 128), photo("coffee", 96, 128), torch.zeros(1, 1, 96, 128)])
    together = run(network, images)
    for i in range(3):
        for batched, single in zip(together, run(network, images[i : i + 1]), strict=True):
            torch.testing.assert_close(batched[i], single[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (15, 9), (8, 40), (24, 24)])
@pytest.mark.parametrize("border", [0, 4])
def test_images_with_fewer_pixels_than_keypoints_end_in_filler(
    extractor: Build, photo: Photo, height: int, width: int, border: int
) -> None:
    network = extractor(max_keypoints=1024, border=border)
    got = run(network, photo("camera", height, width))
    count = int(got.counts[0])
    assert got.keypoints.shape == (1, 1024, 2)
    assert got.descriptors.shape == (1, 1024, 256)
    assert 0 < count < 200 if border == 0 else count < 20
    assert (got.scores[0, :count] > 0.0005).all()
    assert all(torch.isfinite(t).all() for t in got)
    assert all((t[0, count:] == 0).all() for t in got[:3])
    torch.testing.assert_close(got.descriptors[0, :count].norm(dim=-1), torch.ones(count))


def test_the_threshold_is_strict(extractor: Build, photo: Photo) -> None:
    image = photo("camera", 96, 128)
    scores = run(extractor(max_keypoints=50), image).scores[0]
    threshold = scores[20].item()
    got = run(extractor(max_keypoints=50, detection_threshold=threshold), image)
    assert int(got.counts[0]) == int((scores > threshold).sum())


def test_a_flat_image_gives_finite_descriptors(extractor: Build) -> None:
    got = run(extractor(max_keypoints=64), torch.full((1, 1, 64, 64), 0.5))
    assert torch.isfinite(got.descriptors).all()


@pytest.mark.parametrize("count", [1, 50, 3000, 3840])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_choosing_by_blocks_is_choosing_among_all_pixels(count: int, share: float) -> None:
    """Against one sort of every pixel, with few maxima and with many in a block, and with fewer blocks than keypoints."""
    generator = torch.Generator().manual_seed(count)
    scores = torch.rand(2, 48, 64, generator=generator)
    scores = torch.where(torch.rand(scores.shape, generator=generator) < share, scores, torch.zeros(()))
    expected, order = F.pad(scores.flatten(1), (0, 4000)).sort(dim=1, descending=True, stable=True)
    found, index = selection.best_pixels(scores, count, radius=0)
    assert torch.equal(found, expected[:, :count])
    valid = found > 0
    assert torch.equal(index[valid].long(), order[:, :count][valid])


@pytest.mark.parametrize("count", [1, 50, 200, 3840])
@pytest.mark.parametrize("levels", [3, 40, 1000000])
def test_choosing_suppressed_pixels_by_counting_is_choosing_among_all(count: int, levels: int) -> None:
    """Few levels make plateaus, which suppression keeps whole: pixels of one score come in any order, but none is lost or doubled."""
    generator = torch.Generator().manual_seed(count + levels)
    scores = torch.randint(0, levels, (2, 48, 64), generator=generator).to(torch.float32) / levels
    maxima = selection.local_maxima(scores, torch.ones_like(scores, dtype=torch.bool), 3)
    scores = torch.where(maxima, scores, torch.zeros(()))
    expected = F.pad(scores.flatten(1), (0, 4000)).sort(dim=1, descending=True).values[:, :count]
    found, index = selection.best_pixels(scores, count, radius=3)
    assert torch.equal(found, expected)
    for picture, row, places in zip(scores, found, index, strict=True):
        valid = row > 0
        assert torch.equal(picture.flatten()[places[valid].long()], row[valid])
        assert len(set(places[valid].tolist())) == int(valid.sum())


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_running_sums_are_cumulative_sums(count: int) -> None:
    numbers = torch.randint(0, 17, (2, count), generator=torch.Generator().manual_seed(count), dtype=torch.int32)
    lanes = selection.running_sum(numbers).flatten(1)
    assert torch.equal(lanes[:, :count], numbers.cumsum(1).to(torch.int32))
    assert (lanes[:, count:] == numbers.sum(1, keepdim=True)).all()


@pytest.mark.parametrize("radius", [0, 4])
def test_a_plateau_is_kept_whole_as_published(radius: int) -> None:
    """Equal neighbours all survive suppression, and choosing by blocks must not lose any of them."""
    scores = torch.zeros(1, 32, 32)
    scores[0, 10:15, 9:16] = 0.25
    scores[0, 2, 30] = 0.5
    maxima = selection.local_maxima(scores, torch.ones_like(scores, dtype=torch.bool), 4) & (scores > 0)
    assert int(maxima.sum()) == 5 * 7 + 1
    found, index = selection.best_pixels(scores * maxima, 100, radius)
    assert int((found > 0).sum()) == 36
    assert set(index[found > 0].tolist()) == set(maxima.flatten().nonzero()[:, 0].tolist())
    assert int(index[0, 0]) == 2 * 32 + 30


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_keypoints": 3841}, "3840.*TensorRT"),
        ({"max_keypoints": 0}, "at least 1"),
        ({"detection_threshold": -0.1}, "between 0 and 1"),
        ({"border": -1}, "negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SuperPoint(**settings)  # type: ignore[arg-type]


def test_the_parameters_are_the_published_ones(published_keys: dict[str, dict[str, list[int]]]) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in SuperPoint().state_dict().items()}
    assert shapes == published_keys["superpoint_flat"]
