"""Photographs that ship with matchrt, for checks and demonstrations. Sources and licences: SOURCES.md beside this file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class SamplePair:
    """Two image files and, where it is known, the homography (3, 3) from the first to the second, pixel centres at integers."""

    name: str
    image0: Path
    image1: Path
    homography: np.ndarray | None


def sample_pairs() -> tuple[SamplePair, ...]:
    """The shipped pairs, in order."""
    data = json.loads((FOLDER / "samples.json").read_text("utf-8"))
    return tuple(
        SamplePair(
            p["name"],
            FOLDER / p["image0"],
            FOLDER / p["image1"],
            None if p["homography"] is None else np.array(p["homography"], np.float64),
        )
        for p in data["pairs"]
    )
