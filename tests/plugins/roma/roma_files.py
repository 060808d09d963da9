"""Published files at tiny sizes: the true names and counts, narrow tensors; test-only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from roma_oracle import TINY, Twins, twins_of

from matchrt_roma.settings import RomaConfig, RomaSettings

Cli = Callable[..., str]
DATA = Path(__file__).parent / "data"
SIZE, HIGH = 112, 128
SIZES = ["--set", f"size={SIZE}x{SIZE}", "--set", f"upsample_size={HIGH}x{HIGH}"]
DEEP: dict[str, Any] = {
    **TINY,
    "vit_dim": 32,
    "vit_depth": 24,
    "widths": (4, 6, 8, 10),
    "decoder_depth": 5,
    "hidden_blocks": 8,
    "anchors": 8,
}


def deep_config() -> RomaConfig:
    """As deep as the published network, so that its files have 603 and 343 keys."""
    return RomaConfig(**DEEP, vit_grid=37)


@dataclass(frozen=True)
class Files:
    """A folder with published files and the networks they were made from.

    `canonical` and `stacked` are one checkpoint under two prefixes; `flat` and `chunked` one DINOv2 in two namings.
    """

    folder: Path
    twins: Twins

    @property
    def canonical(self) -> Path:
        return self.folder / "matchanything_roma.ckpt"

    @property
    def stacked(self) -> Path:
        return self.folder / "stacked.pth"

    @property
    def flat(self) -> Path:
        return self.folder / "dinov2_vitl14_pretrain.pth"

    @property
    def chunked(self) -> Path:
        return self.folder / "dinov2_chunked.pth"

    @property
    def weights(self) -> list[object]:
        return ["--weights", self.canonical, "--weights-dinov2", self.flat]


def write_files(folder: Path, config: RomaConfig) -> Files:
    settings = RomaSettings(recipe="upstream", size=(SIZE, SIZE), upsample_size=(HIGH, HIGH))
    files = Files(folder, twins_of(config, settings))
    own = {name: tensor.clone() for name, tensor in files.twins.theirs.state_dict().items()}
    vit = {name: tensor.clone() for name, tensor in files.twins.vit.state_dict().items()}
    torch.save({"state_dict": {f"matcher.model.{name}": t for name, t in own.items()}, "epoch": 3}, files.canonical)
    torch.save({f"_orig_mod.module.matcher.model.{name}": t for name, t in own.items()}, files.stacked)
    torch.save(vit, files.flat)
    torch.save({chunked(name, config.vit_depth): t for name, t in vit.items()}, files.chunked)
    return files


def chunked(name: str, depth: int) -> str:
    """DINOv2's FSDP naming, in 4 chunks (2 of a shallow network): the block's own index stays global."""
    first, _, rest = name.partition(".")
    if first != "blocks":
        return name
    per_chunk = max(1, depth // 4)
    return f"blocks.{int(rest.split('.')[0]) // per_chunk}.{rest}"


def published_names(name: str) -> set[str]:
    return set(json.loads((DATA / f"{name}.json").read_text()))
