"""Train the `mini` weights: extractor and matcher, from nothing to two safetensors files.

    uv run --with scikit-learn --with matplotlib python plugins/lightglue/training/train.py --out runs/mini
    uv run python plugins/lightglue/training/train.py --smoke --out /tmp/smoke

Stages, in order: corners (detector on synthetic scenes), features (detector on labels aggregated over homographies,
descriptors on known correspondences), matcher and matcher_large (LightGlue, extractor frozen). Each stage ends when
its seconds are spent, so a faster GPU takes more steps; the data is fixed by the seed. `--resume FOLDER` takes the
weights in it; `--stages` names what is left to do.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from canvases import Canvases, corner_pool, rich_pool, uniform
from export import write
from labels import adapt, cell_targets
from loop import Log, train
from losses import descriptor_loss, detector_loss, matcher_loss, true_matches
from settings import HERE, installed, load_config
from textures import texture_bank
from torch import Tensor
from views import see_pair, transform

import matchrt_lightglue.networks.attention as attention_module
from matchrt_lightglue.networks import LightGlue, SuperPoint

STAGES = ("corners", "features", "matcher", "matcher_large")


class Trainer:
    """The two networks, the data and the stages."""

    def __init__(self, config: dict[str, Any], out: Path, photographs: Path | None) -> None:
        self.config, self.out, self.photographs = config, out, photographs
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config["seed"])
        torch.backends.cudnn.benchmark = True
        self.extractor = SuperPoint(**config["network"]["superpoint"]).to(self.device)
        for module in self.extractor.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                # Ten layers of ReLU without normalisation start slowly from torch's default.
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                torch.nn.init.zeros_(module.bias)
        self.matcher = LightGlue(**config["network"]["lightglue"]).to(self.device)
        if self.device.type == "cuda":
            self.extractor = self.extractor.to(memory_format=torch.channels_last)
        self.temperature = torch.nn.Parameter(torch.tensor(config["features"]["temperature"], device=self.device))
        self.log = Log(out)
        self.rich: Canvases | None = None
        self.labeller: SuperPoint | None = None
        sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in self.networks().items()}
        self.log("start", device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu", **sizes)

    def networks(self) -> dict[str, torch.nn.Module]:
        """Both networks by name."""
        return {"superpoint": self.extractor, "lightglue": self.matcher}

    def generator(self, stream: int) -> torch.Generator:
        """Random numbers of one stage."""
        return torch.Generator(self.device).manual_seed(self.config["seed"] + stream)

    def save(self) -> None:
        """Write the float32 weights (`superpoint.pt`, `lightglue.pt`) and the half-precision safetensors."""
        for name, network in self.networks().items():
            torch.save(network.state_dict(), self.out / f"{name}.pt")
            write(network.state_dict(), self.out / f"{name}_mini.safetensors")

    def resume(self, folder: Path) -> None:
        """Take the weights that `folder` holds."""
        for name, network in self.networks().items():
            if (folder / f"{name}.pt").is_file():
                network.load_state_dict(torch.load(folder / f"{name}.pt", map_location=self.device, weights_only=True))
                self.log("resume", file=f"{name}.pt")

    def label_with(self, path: Path) -> None:
        """Let the extractor in `path` make the labels instead of the one in training."""
        self.labeller = SuperPoint(**self.config["network"]["superpoint"]).to(self.device)
        self.labeller.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))

    def autocast(self) -> torch.autocast:
        """Half-precision arithmetic (bfloat16)."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def corners(self) -> None:
        """Stage 1: the detector on flat scenes whose corners are known."""
        c, s, generator = self.config["canvases"], self.config["corners"], self.generator(1)
        pool = corner_pool(c["corner_count"], c["size"], c["batch"], c["layers"], 192, generator)
        self.log("corners", canvases=len(pool.images), points=float((pool.scores > 0).sum(1).float().mean()))

        def step() -> dict[str, Tensor]:
            index = torch.randint(len(pool.images), (s["batch"],), device=self.device, generator=generator)
            views, (targets, _, _) = self.labelled_pair(pool, index, s["view"], generator)
            with self.autocast():
                logits = self.extractor.forward_dense(torch.cat(views)).logits
            return {"loss": detector_loss(logits, torch.cat(targets)), **_detector_figures(logits, torch.cat(targets))}

        train("corners", list(self.extractor.parameters()), step, s, self.log, self.save)

    def labelled_pair(
        self, pool: Canvases, index: Tensor, view: list[int], generator: torch.Generator
    ) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Two views of each canvas; targets of the cells, what each sees, and the homographies."""
        images = pool.images[index].float() / 255
        views, inside, H = see_pair(images, (view[0], view[1]), self.config["views"], generator)
        scores = pool.scores[index]
        targets = [
            cell_targets(transform(h, pool.points[index]), scores, seen) for h, seen in zip(H, inside, strict=True)
        ]
        return views, (targets, inside, H)

    def rich_canvases(self) -> Canvases:
        """The pool that every stage after the first draws from, labelled by the detector as it is now."""
        c, generator = self.config["canvases"], self.generator(2)
        if self.rich is None:
            found = installed(self.config["photographs"]["training"], self.photographs)
            bank = texture_bank(found, c["crops"], c["procedural"], c["size"], self.config["seed"], generator)
            images = rich_pool(c["count"], c["size"], c["batch"], c["layers"], bank, generator)
            self.log("canvases", photographs=len(found), textures=len(bank), canvases=len(images))
            empty = torch.zeros(len(images), 0, 2, device=self.device)
            self.rich = Canvases(images, empty, empty[..., 0])
        return self.rich

    def features(self) -> None:
        """Stage 2: labels by homographic adaptation, then detector and descriptors together, in rounds."""
        s, generator = self.config["features"], self.generator(3)
        for seconds in s["rounds"]:
            pool = self.rich = adapt(
                self.labeller or self.extractor,
                self.rich_canvases().images,
                self.config["adaptation"],
                self.config["views"],
                generator,
            )
            self.log("adaptation", points=float((pool.scores > 0).sum(1).float().mean()))
            draw_labels(pool, self.out / "labels.jpg")
            parameters = [*self.extractor.parameters(), self.temperature]
            step = partial(self.feature_step, pool, s, generator)
            train("features", parameters, step, {**s, "seconds": seconds}, self.log, self.save)

    def feature_step(self, pool: Canvases, s: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch of pairs of views."""
        index = torch.randint(len(pool.images), (s["batch"],), device=self.device, generator=generator)
        views, (targets, inside, H) = self.labelled_pair(pool, index, s["view"], generator)
        points, valid = self.places(pool, index, H, inside, generator)
        with self.autocast():
            dense = self.extractor.forward_dense(torch.cat(views))
        first, second = dense.descriptors.float().chunk(2)
        size = torch.tensor([s["view"]], device=self.device).expand(len(index), -1)
        described = [self.extractor._describe(d, p, size) for d, p in ((first, points[0]), (second, points[1]))]
        likelihood, right = descriptor_loss(*described, points[1], valid, self.temperature.clamp(1, 50))
        both = torch.cat(targets)
        detection = detector_loss(dense.logits, both)
        figures = {"detector": detection, "descriptor": likelihood, "right": right, "temperature": self.temperature}
        loss = s["detector_weight"] * detection + s["descriptor_weight"] * likelihood
        return {"loss": loss, **figures, **_detector_figures(dense.logits, both)}

    def places(
        self, pool: Canvases, index: Tensor, H: list[Tensor], inside: list[Tensor], generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        """Corresponding places of both views (B, N, 2), half of them labels, a little off as detections are."""
        count, size, batch = self.config["features"]["points"], pool.images.shape[-1], len(index)
        random = uniform(generator, 0, size, batch, 2 * count, 2)
        canvas = torch.cat((pool.points[index], random), 1)
        usable = torch.cat((pool.scores[index] > 0, torch.ones_like(random[..., 0], dtype=torch.bool)), 1)
        chance = torch.rand(usable.shape, device=self.device, generator=generator)
        chance[:, pool.points.shape[1] :] *= 0.5
        places = []
        for h, seen in zip(H, inside, strict=True):
            xy = transform(h, canvas)
            limit = torch.tensor([seen.shape[-1] - 5, seen.shape[-2] - 5], device=self.device)
            usable = usable & ((xy > 4) & (xy < limit)).all(-1)
            places.append(xy)
        best, chosen = torch.where(usable, chance, -1.0).topk(min(count, usable.shape[1]), dim=1)
        chosen = chosen.unsqueeze(-1).expand(-1, -1, 2)
        noise = [torch.randn(chosen.shape, device=self.device, generator=generator) * 0.6 for _ in places]
        return [p.gather(1, chosen) + n for p, n in zip(places, noise, strict=True)], best > 0

    def match(self, name: str, stream: int) -> None:
        """Stages 3 and 4: LightGlue on pairs of views, extractor frozen."""
        s, generator = self.config[name], self.generator(stream)
        images = self.rich_canvases().images
        self.extractor.requires_grad_(False)
        self.extractor.max_keypoints = s["keypoints"]
        batch, view = s["batch"], (s["view"][0], s["view"][1])
        size = torch.tensor([view], device=self.device, dtype=torch.float32).expand(batch, -1)

        def step() -> dict[str, Tensor]:
            index = torch.randint(len(images), (batch,), device=self.device, generator=generator)
            views, _, H = see_pair(images[index].float() / 255, view, self.config["views"], generator)
            with torch.no_grad():
                found = [self.extractor(v, torch.ones_like(size), size.int()) for v in views]
                k0, k1 = (f.keypoints for f in found)
                truth = true_matches(k0, k1, found[0].counts, found[1].counts, H[0], H[1])
            inputs = [t for f in found for t in (f.keypoints, f.descriptors, f.counts, size)]
            with self.autocast():
                output = self.matcher.forward_training(*inputs)
            loss, last = matcher_loss(output, *truth)
            return {
                "loss": loss,
                "last": last,
                **_matcher_figures(output.log_assignments[-1], truth[0], found[0].counts),
            }

        train(name, list(self.matcher.parameters()), step, s, self.log, self.save)
        self.extractor.requires_grad_(True)


def draw_labels(pool: Canvases, path: Path) -> None:
    """Eight canvases with their labels, to look at before believing a number."""
    pictures = []
    for i in range(0, len(pool.images), max(1, len(pool.images) // 8)):
        picture = cv2.cvtColor(pool.images[i].cpu().numpy(), cv2.COLOR_GRAY2BGR)
        for xy in pool.points[i][pool.scores[i] > 0].round().int().tolist():
            cv2.circle(picture, xy, 3, (0, 0, 255), 1)
        pictures.append(picture)
    cv2.imwrite(str(path), np.vstack([np.hstack(pictures[:4]), np.hstack(pictures[4:8])]))


@torch.no_grad()
def _detector_figures(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Share of the labelled cells whose pixel is hit, and of the empty cells called empty."""
    answer, labelled = logits.argmax(1), (targets >= 0) & (targets < 64)
    return {
        "hit": ((answer == targets) & labelled).sum() / labelled.sum().clamp_min(1),
        "empty": ((answer == 64) & (targets == 64)).sum() / (targets == 64).sum().clamp_min(1),
    }


@torch.no_grad()
def _matcher_figures(scores: Tensor, positive: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Recall and precision of mutual best matches above 0.1, true matches and keypoints per pair."""
    inner = scores[:, :-1, :-1]
    mutual = (inner == inner.amax(2, keepdim=True)) & (inner == inner.amax(1, keepdim=True)) & (inner.exp() > 0.1)
    right = (mutual & positive).sum()
    return {
        "recall": right / positive.sum().clamp_min(1),
        "precision": right / mutual.sum().clamp_min(1),
        "true": positive.sum((1, 2)).float().mean(),
        "keypoints": count.float().mean(),
    }


def fast_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`matchrt_lightglue.networks.attention.attention` as one fused kernel, for training."""
    bias = bias.to(v.dtype).expand(-1, q.shape[1], q.shape[2], -1)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).flatten(2)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, a few steps, on the CPU within a minute")
    parser.add_argument("--resume", type=Path, help="folder with superpoint.pt and lightglue.pt")
    parser.add_argument("--labeller", type=Path, help="superpoint.pt that makes the labels, such as the corner stage's")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--photographs", type=Path, help="folder with photographs of packages that are not installed")
    parser.add_argument("--set", nargs="*", default=[], metavar="TABLE.KEY=VALUE", help="change a setting (JSON value)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = load_config(args.config, smoke=args.smoke)
    for change in args.set:
        name, value = change.split("=", 1)
        table, key = name.split(".")
        config[table][key] = json.loads(value)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    attention_module.attention = fast_attention
    trainer = Trainer(config, args.out, args.photographs)
    if args.resume:
        trainer.resume(args.resume)
    if args.labeller:
        trainer.label_with(args.labeller)
    for stage in args.stages:
        if stage in ("corners", "features"):
            getattr(trainer, stage)()
        else:
            trainer.match(stage, 4 + STAGES.index(stage))
    trainer.save()


if __name__ == "__main__":
    main()
