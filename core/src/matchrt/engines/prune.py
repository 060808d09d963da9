"""Make room in the engine cache: by age, by total size, and whatever interrupted builds left behind."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass

from matchrt.engines.cache import EngineCache

_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Pruned:
    """What was removed (or would be): engine keys, other files, and bytes."""

    engines: tuple[str, ...]
    leftovers: tuple[str, ...]
    freed: int


def prune(
    cache: EngineCache,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
    now: float | None = None,
) -> Pruned:
    """Remove engines not used for `older_than_days`, then the longest unused until the rest fits into `max_bytes`.

    Without either only leftovers go: quarantine, engines without a sidecar, and files of builds that ended a day ago.
    """
    now = time.time() if now is None else now
    ages = {k: now - cache.sidecar_path(k).lstat().st_mtime for k in cache.committed()}
    sizes = {k: _size(cache, k) for k in ages}
    doomed = [k for k, age in ages.items() if older_than_days is not None and age > older_than_days * 86400]
    if max_bytes is not None:
        rest = sum(size for k, size in sizes.items() if k not in doomed)
        for key in sorted((k for k in ages if k not in doomed), key=lambda k: -ages[k]):
            if rest <= max_bytes:
                break
            doomed.append(key)
            rest -= sizes[key]
    freed = sum(sizes[k] for k in doomed)
    if not dry_run:
        for key in doomed:
            cache.remove(key)
    leftovers, more = _leftovers(cache, now, dry_run)
    return Pruned(tuple(doomed), tuple(leftovers), freed + more)


def _size(cache: EngineCache, key: str) -> int:
    total = 0
    for path in (cache.engine_path(key), cache.sidecar_path(key)):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


def _leftovers(cache: EngineCache, now: float, dry_run: bool) -> tuple[list[str], int]:
    keys = set(cache.committed())
    found = [*(cache.root / "quarantine").glob("*")]
    for path in cache.root.iterdir():
        stale = now - path.lstat().st_mtime > _STALE_SECONDS
        orphan = path.suffix == ".engine" and path.stem not in keys
        if stale and (orphan or path.name.startswith(".")):
            found.append(path)
    freed = 0
    for path in found:
        freed += path.lstat().st_size
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()
    return [str(p.relative_to(cache.root)) for p in found], freed
