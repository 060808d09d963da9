"""Findings about folders: the cache's rooms, the temporary folder, and the disks under them. Nothing is left behind in any."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from matchrt.doctor.findings import Finding, State
from matchrt.engines.trust import folder_distrust
from matchrt.weights.fetch import cache_place

ROOMS = ("weights", "bundles", "engines")
_LOW_DISK = 2 << 30
_ELSEWHERE = "export MATCHRT_CACHE=FOLDER, one that you can write to"


def place_findings() -> list[Finding]:
    """All folders."""
    try:
        cache = cache_place()
    except RuntimeError as error:
        findings = [Finding("places", "cache", State.BROKEN, str(error), _ELSEWHERE)]
    else:
        findings = [_room(cache / name, name) for name in ROOMS]
        findings += _disk(cache, "cache disk", f"matchrt engines prune --max-size 1GB, or {_ELSEWHERE}")
    return findings + _temporary()


def _room(folder: Path, room: str) -> Finding:
    """One room of the cache: rights, owner, what it holds."""
    name = f"{room} cache"
    try:
        problem, repair = _fault(folder, room)
        count, size = (0, 0) if problem else _content(folder)
        exists = folder.is_dir()
    except OSError as error:
        problem, repair = f"{error.filename or folder}: {error.strerror}", f"chmod -R u+rwX {folder}, or {_ELSEWHERE}"
        count, size, exists = 0, 0, False
    data = {"path": str(folder), "exists": exists, "files": count, "bytes": size, **_owner(folder)}
    if problem:
        return Finding("places", name, State.BROKEN, f"{folder}: {problem}", repair, data)
    text = f"{folder}: {count} files, {size / 1e6:.1f} MB" if exists else f"{folder}: made when it is needed"
    held = folder / "quarantine"
    kept = len(list(held.glob("*.reason"))) if held.is_dir() else 0
    if kept:
        repair = "matchrt engines prune (after a look at the .reason files)"
        return Finding("places", name, State.WARN, f"{text}; {kept} engines in quarantine", repair, data)
    return Finding("places", name, State.OK, text, data=data)


def _fault(folder: Path, room: str) -> tuple[str, str]:
    """Why the room cannot be used, and the repair; empty if it can."""
    nearest = _nearest(folder)
    if not nearest.is_dir():
        return f"{nearest} is not a folder", f"move {nearest} away, or {_ELSEWHERE}"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return f"{nearest} cannot be written to ({error.strerror})", f"chmod u+rwx {nearest}, or {_ELSEWHERE}"
    if nearest == folder and room == "engines":
        doubt = folder_distrust(folder)
        if doubt:
            return f"its engines would not be loaded: {doubt}", f"chmod 700 {folder}, or {_ELSEWHERE}"
    return "", ""


def _nearest(folder: Path) -> Path:
    """The folder itself or the first that exists above it. Raises OSError where that cannot be told."""
    place = folder.absolute()
    while True:
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent
        else:
            return place


def _content(folder: Path) -> tuple[int, int]:
    """Files and their bytes. Raises OSError for a folder in it that cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    count = size = 0
    for where, _, files in os.walk(folder, onerror=refuse if folder.exists() else None):
        for file in files:
            try:
                size += os.lstat(os.path.join(where, file)).st_size
            except FileNotFoundError:
                continue  # another process removed it meanwhile
            count += 1
    return count, size


def _owner(folder: Path) -> dict[str, object]:
    try:
        info = folder.stat()
    except OSError:
        return {"owner": None, "mode": None}
    return {"owner": info.st_uid, "mode": f"{stat.S_IMODE(info.st_mode):o}"}


def _disk(folder: Path, name: str, repair: str) -> list[Finding]:
    try:
        usage = shutil.disk_usage(_nearest(folder))
    except OSError:
        return []  # the room's own finding says why
    low = usage.free < _LOW_DISK
    text = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    data = {"free_bytes": usage.free, "total_bytes": usage.total}
    return [Finding("places", name, State.WARN if low else State.OK, text, repair if low else "", data)]


def _temporary() -> list[Finding]:
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        repair = "export TMPDIR=FOLDER, one that you can write to"
        return [Finding("places", "temporary folder", State.BROKEN, error.strerror or str(error), repair)]
    finding = Finding("places", "temporary folder", State.OK, str(folder), data={"path": str(folder)})
    return [finding, *_disk(folder, "temporary disk", "free some space, or export TMPDIR=FOLDER on a larger disk")]
