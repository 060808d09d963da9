"""Lists of image pairs in text files."""

from __future__ import annotations

from pathlib import Path

from matchrt.errors import UsageError


def read_pairs(path: Path) -> list[tuple[Path, Path]]:
    """Pairs of image files: one pair a line, two paths (relative to the list's folder) parted by a comma or by blanks; `#` comments.

    Raises `UsageError` naming the line, for another form, a missing image, or an empty list.
    """
    if not path.is_file():
        raise UsageError(f"no list of pairs at {path}")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        words = [w.strip() for w in (text.split(",") if "," in text else text.split())]
        if len(words) != 2 or not all(words):
            raise UsageError(f"{path}, line {number}: need two image files, got {line.strip()!r}")
        images = [path.parent / w for w in words]
        for image in images:
            if not image.is_file():
                raise UsageError(f"{path}, line {number}: no image at {image}")
        pairs.append((images[0], images[1]))
    if not pairs:
        raise UsageError(f"{path} lists no pairs")
    return pairs
