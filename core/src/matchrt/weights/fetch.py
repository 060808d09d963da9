"""Download published weights whole or not at all, and hold them to a sha256 from then on. No torch.

The final name appears only by renaming a complete, checked, synced file. Until then there is `.NAME.part`, which a
later call continues with an HTTP range request, and `.NAME.part.json`, which says what it is part of. `.NAME.lock`
lets one process download while others wait. `NAME.fetch.json` records the sha256 at the first fetch, and later
content is held to it, unless the caller pins one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from matchrt.errors import DownloadError
from matchrt.weights.hashing import file_sha256
from matchrt.weights.locks import exclusive
from matchrt.weights.transfer import (
    CutOffError,
    Request,
    UnreachableError,
    Wanted,
    shown_url,
    transfer,
)

Progress = Callable[[int, "int | None"], None]
"""Called with (bytes present, bytes in all or None) as the download goes."""

ATTEMPTS = 4
"""How often in a row a download may be cut off without getting any further."""
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Fetched:
    """A file that is there and holds what it should.

    `trust` says what its sha256 was held to: `pinned` by the caller, `recorded` at an earlier fetch, or `first` when
    it was recorded just now. `downloaded` is False when the file was there already.
    """

    path: Path
    sha256: str
    size_bytes: int
    trust: Literal["pinned", "recorded", "first"]
    downloaded: bool


def cache_place() -> Path:
    """Where this user's cache is, or would be; nothing is made.

    `MATCHRT_CACHE` names the cache; else it is `matchrt` in `XDG_CACHE_HOME` (if that is an absolute path) or in
    `~/.cache`. Raises `RuntimeError` where there is no home folder.
    """
    configured, xdg = os.environ.get("MATCHRT_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if configured:
        return Path(configured).expanduser()
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "matchrt"


def cache_folder(room: str = "weights") -> Path:
    """Return the folder for `room` in this user's cache (`cache_place`), made if need be, readable by nobody else (mode 0700).

    Raises `DownloadError` when it cannot be made.
    """
    folder = cache_place() / room
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name != "nt" and folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise DownloadError(
            f"the cache folder {folder} cannot be used: {error.strerror or error}",
            hint="Name another one with MATCHRT_CACHE.",
        ) from error
    return folder


def is_offline() -> bool:
    """Whether `MATCHRT_OFFLINE` asks for no network access (1, true, yes or on)."""
    return os.environ.get("MATCHRT_OFFLINE", "").strip().lower() in _TRUE


def fetch(
    url: str,
    destination: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    offline: bool = False,
) -> Fetched:
    """Make `destination` the file behind `url` (https, http or file), downloading only if it is not there yet.

    `sha256` (hexadecimal) and `size` (bytes) are what was published. Raises `DownloadError`, with nothing under the
    final name, when the content is not that, when it was cut off (calling again continues), when the server answers
    with an error, or when there is no network.
    """
    destination = Path(destination)
    wanted = Wanted(sha256.lower() if sha256 else None, size)
    if urlsplit(url).scheme not in ("https", "http", "file"):
        raise DownloadError(f"{shown_url(url)} cannot be downloaded: only https, http and file addresses can")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(_beside(destination, ".lock")):
            if destination.exists():
                return _check_present(url, destination, wanted)
            return _download(url, destination, wanted, progress, offline or is_offline())
    except OSError as error:
        raise _disk_error(destination, error) from error


def keep(origin: str, destination: Path, write: Callable[[Path], None]) -> Fetched:
    """Make `destination` what `write(path)` writes, unless it is there: under the lock, recorded and held to its sha256 as `fetch` does.

    `origin` names the source. Raises `DownloadError`, and whatever `write` raises; then nothing is left.
    """
    part = _beside(destination, ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(_beside(destination, ".lock")):
            if destination.exists():
                return _check_present(origin, destination, Wanted(None, None))
            recorded = _recorded_sha256(destination)
            try:
                write(part)
                found = file_sha256(part)
                if recorded not in (None, found):
                    raise _wrong_content(origin, destination, str(recorded), found, pinned=False)
                return _finish(origin, part, destination, found, known=recorded is not None)
            finally:
                _discard(part)
    except OSError as error:
        raise _disk_error(destination, error) from error


def _finish(origin: str, part: Path, destination: Path, sha256: str, *, known: bool) -> Fetched:
    """Record the sha256 if it is not `known`, and give the checked `part` its final name."""
    size = part.stat().st_size
    if not known:
        _write_record(origin, destination, sha256)
    os.replace(part, destination)
    _sync_folder(destination.parent)
    return Fetched(destination, sha256, size, "recorded" if known else "first", downloaded=True)


def _beside(destination: Path, suffix: str) -> Path:
    return destination.with_name(f".{destination.name}{suffix}")


def _record_path(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.fetch.json")


def _recorded_sha256(destination: Path) -> str | None:
    path = _record_path(destination)
    try:
        value = json.loads(path.read_text("utf-8"))["sha256"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{path} is damaged, so the recorded sha256 is unknown", hint="Delete it to record the content anew."
        ) from error
    return str(value)


def _check_present(url: str, destination: Path, wanted: Wanted) -> Fetched:
    if destination.is_dir():
        raise DownloadError(f"{destination} is a folder, and the download needs that name")
    recorded = None if wanted.sha256 else _recorded_sha256(destination)
    found = file_sha256(destination)
    expected = wanted.sha256 or recorded
    if expected is not None and found != expected:
        origin = "published" if wanted.sha256 else "recorded at the first fetch"
        raise DownloadError(
            f"{destination} is not what was {origin}: its sha256 is {found}, not {expected}",
            hint=f"Move it away to download it again from {shown_url(url)}.",
        )
    if expected is None:
        _write_record(url, destination, found)
    trust: Literal["pinned", "recorded", "first"] = "pinned" if wanted.sha256 else "recorded" if recorded else "first"
    return Fetched(destination, found, destination.stat().st_size, trust, downloaded=False)


def _download(url: str, destination: Path, wanted: Wanted, progress: Progress | None, offline: bool) -> Fetched:
    if offline and urlsplit(url).scheme != "file":
        raise _no_network(url, destination, wanted, "network access is off (MATCHRT_OFFLINE or --offline)")
    recorded = None if wanted.sha256 else _recorded_sha256(destination)
    expected = Wanted(wanted.sha256 or recorded, wanted.size)
    part = _beside(destination, ".part")
    request = Request(url, part, expected, progress)
    try:
        resumed = _transfer_with_retries(request)
        found = file_sha256(part)
        if expected.sha256 not in (None, found) and resumed:
            _discard(part)  # the earlier part may have been of other content: once more, from the start
            _transfer_with_retries(request)
            found = file_sha256(part)
    except UnreachableError as error:
        raise _no_network(url, destination, wanted, str(error)) from error
    if expected.sha256 not in (None, found):
        _discard(part)
        raise _wrong_content(url, destination, str(expected.sha256), found, pinned=wanted.sha256 is not None)
    fetched = _finish(url, part, destination, found, known=bool(wanted.sha256 or recorded))
    _discard(part)
    return replace(fetched, trust="pinned") if wanted.sha256 else fetched


def _transfer_with_retries(request: Request) -> bool:
    """Download to the part file, continuing after interruptions; return whether any earlier bytes were kept."""
    resumed, tries, furthest = False, 0, 0
    while True:
        try:
            return transfer(request) or resumed
        except CutOffError as error:
            present = request.part.stat().st_size if request.part.exists() else 0
            tries = 1 if present > furthest else tries + 1
            furthest = max(furthest, present)
            if tries == ATTEMPTS:
                raise DownloadError(
                    f"the download of {shown_url(request.url)} was cut off: {error}",
                    hint="Run the same command again: it continues where it stopped.",
                ) from error
            resumed = True
            time.sleep(0.2 * tries)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _write_record(url: str, destination: Path, sha256: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"url": shown_url(url), "sha256": sha256, "recorded": now}
    temporary = _beside(destination, ".fetch.json.part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, _record_path(destination))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # pragma: no cover - folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _no_network(url: str, destination: Path, wanted: Wanted, why: str) -> DownloadError:
    pinned = f" (sha256 {wanted.sha256})" if wanted.sha256 else ""
    return DownloadError(
        f"{why}: download {shown_url(url)}{pinned} on another machine and put it at {destination.absolute()}"
    )


def _wrong_content(url: str, destination: Path, expected: str, found: str, *, pinned: bool) -> DownloadError:
    if pinned:
        return DownloadError(
            f"{shown_url(url)} is not what was published: its sha256 is {found}, not {expected}; it was not kept",
            hint="The file was replaced or altered on the way. Do not use it; ask where the pin came from.",
        )
    return DownloadError(
        f"{shown_url(url)} has changed since its first fetch: its sha256 is {found}, not {expected}; it was not kept",
        hint=f"If the change is expected, delete {_record_path(destination)} and fetch again.",
    )


def _disk_error(destination: Path, error: OSError) -> DownloadError:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(destination.parent).free
        return DownloadError(
            f"the disk of {destination.parent} is full ({free} bytes free)",
            hint="Make room, or move the cache with MATCHRT_CACHE; the download then continues.",
        )
    return DownloadError(f"{destination} cannot be written: {error.strerror or error}")
