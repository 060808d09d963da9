"""The image pairs that are compared: the shipped ones, or a list in a text file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matchrt.errors import UsageError
from matchrt.samples import SamplePair, sample_pairs


def read_pairs(path: Path | None, limit: int = 0) -> tuple[SamplePair, ...]:
    """The pairs of a list file, or the shipped ones for None; the first `limit` of those (0: all).

    A line is `A B`, or `A B h11 h12 … h33` with the known homography from A to B (row by row, pixel centres at integers); paths are
    relative to the file, `#` begins a comment. Raises `UsageError` with the line's number.
    """
    if path is None:
        pairs = sample_pairs()
        return pairs[:limit] if limit else pairs
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the list of pairs {path}: {error}") from None
    found = [
        _pair(path, number, words) for number, line in enumerate(lines, 1) if (words := line.split("#")[0].split())
    ]
    if not found:
        raise UsageError(f"{path} lists no pair", hint="one pair a line: A.jpg B.jpg [h11 … h33]")
    return tuple(found)


def _pair(path: Path, number: int, words: list[str]) -> SamplePair:
    if len(words) not in (2, 11):
        raise UsageError(
            f"{path}, line {number}: {len(words)} words; a pair is two files, or two files and the 9 numbers of a homography",
            hint="file names with spaces cannot be listed",
        )
    files = [path.parent / word for word in words[:2]]
    for file in files:
        if not file.is_file():
            raise UsageError(f"{path}, line {number}: no image at {file}")
    homography = None
    if len(words) == 11:
        try:
            homography = np.array([float(w) for w in words[2:]]).reshape(3, 3)
        except ValueError:
            raise UsageError(f"{path}, line {number}: a homography is 9 numbers, got {' '.join(words[2:])}") from None
        if not np.isfinite(homography).all() or abs(np.linalg.det(homography)) < 1e-12:
            raise UsageError(f"{path}, line {number}: the homography is not invertible")
    return SamplePair(f"{files[0].stem}-{files[1].stem}", files[0], files[1], homography)
