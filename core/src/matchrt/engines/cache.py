"""The engine cache: one build for each key, whole or not at all, and nothing deserialised that it did not write.

KEY.engine     what the backend made
KEY.json       the sidecar; written last, it is the commit mark: without it there is no engine
KEY.lock       held while KEY is built; the system drops it when its holder ends in any way
quarantine/    engines that were corrupt or of doubtful origin, kept for a look, removed by `prune`
timing/        kernel timings for each backend, version and GPU
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchrt.backends.building import Buffer, IoTensor
from matchrt.engines.spec import EngineSpec
from matchrt.engines.trust import CorruptEngineError, UntrustedEngineError, folder_distrust, read_content
from matchrt.errors import BackendError, UsageError
from matchrt.files.atomic import atomic_file
from matchrt.weights.fetch import cache_folder
from matchrt.weights.locks import exclusive

_MAX_SIDECAR = 32 << 20


@dataclass(frozen=True)
class Entry:
    """A committed engine as its sidecar describes it."""

    key: str
    spec: EngineSpec
    sha256: str
    size: int
    record: Mapping[str, Any]
    """The whole sidecar."""
    used: float
    """Seconds since the epoch of the last use."""

    @property
    def network(self) -> str:
        """Name of the network it was first built for."""
        return str(self.record["origins"][0]["network"])

    @property
    def io(self) -> tuple[IoTensor, ...]:
        """Inputs and outputs as the engine declares them."""
        return tuple(IoTensor(**{**t, "shape": tuple(t["shape"])}) for t in self.record["io"])


@dataclass(frozen=True)
class Fresh:
    """A new engine for the cache: its bytes and what the sidecar says besides the specification."""

    payload: Buffer
    record: Mapping[str, Any]


class EngineCache:
    """Engines of this user in `root` (by default the folder `engines` of matchrt's cache)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_folder("engines") if root is None else root
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def engine_path(self, key: str) -> Path:
        """Where the engine of `key` lies, if it was built."""
        return self.root / f"{key}.engine"

    def sidecar_path(self, key: str) -> Path:
        """Where its sidecar lies."""
        return self.root / f"{key}.json"

    def find(self, key: str, trust: Collection[str] = ()) -> Entry | None:
        """The entry of `key`, or None. Raises as `read` for a sidecar that is corrupt or of doubtful origin."""
        path = self.sidecar_path(key)
        try:
            content = read_content(path, _MAX_SIDECAR)
        except FileNotFoundError:
            return None
        try:
            record = json.loads(content.data)
            spec = EngineSpec.from_dict(record["spec"])
            engine = record["engine"]
            entry = Entry(key, spec, str(engine["sha256"]), int(engine["size"]), record, path.stat().st_mtime)
            _ = entry.network, entry.io
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, BackendError) as error:
            raise CorruptEngineError(f"the sidecar {path.name} cannot be read: {error}") from None
        if spec.key() != key:
            raise CorruptEngineError(f"the sidecar {path.name} describes another engine, {spec.key()[:16]}…")
        if content.distrust and entry.sha256 not in trust:
            raise UntrustedEngineError(content.distrust, hint=_trust_hint(entry.sha256))
        return entry

    def read(self, key: str, trust: Collection[str] = ()) -> tuple[Entry, bytes]:
        """The engine of `key` with its bytes, after every check: owner, mode, no link, size and sha256.

        `trust` lists sha256s whose owner does not matter. Raises `KeyError` if it was not built, `UntrustedEngineError`,
        `CorruptEngineError`. Only these bytes may be deserialised; the file is not read again.
        """
        entry = self.find(key, trust)
        if entry is None:
            raise KeyError(key)
        try:
            content = read_content(self.engine_path(key), entry.size)
        except FileNotFoundError:
            raise CorruptEngineError(f"engine {key[:16]}… has a sidecar but no engine file") from None
        if content.sha256 != entry.sha256:
            raise CorruptEngineError(f"engine {key[:16]}… was changed: {len(content.data)} bytes, another sha256")
        if content.distrust and entry.sha256 not in trust:
            raise UntrustedEngineError(content.distrust, hint=_trust_hint(entry.sha256))
        with contextlib.suppress(OSError):
            os.utime(self.sidecar_path(key))
        return entry, content.data

    def get_or_build(
        self,
        spec: EngineSpec,
        origin: Mapping[str, Any],
        build: Callable[[], Fresh],
        waiting: Callable[[], None] | None = None,
        trust: Collection[str] = (),
    ) -> tuple[Entry, bool]:
        """The entry for `spec` and whether it was there already; else it is built while other processes wait.

        What is found corrupt or of doubtful origin is put into quarantine and built anew. `origin` (bundle, network, …) is
        added to the sidecar. Whatever `build` raises leaves the cache without an engine of this key.
        """
        key = spec.key()
        doubt = folder_distrust(self.root)
        if doubt:
            raise UntrustedEngineError(doubt, hint=f"chmod 700 {self.root}, or name another cache with MATCHRT_CACHE")
        with exclusive(self.root / f"{key}.lock", waiting):
            self._sweep(key)
            try:
                entry, _ = self.read(key, trust)
            except KeyError:
                pass
            except (CorruptEngineError, UntrustedEngineError) as error:
                self._quarantine(key, error.message)
            else:
                return self._with_origin(entry, origin), True
            fresh = build()
            return self._store(spec, fresh, origin), False

    def _store(self, spec: EngineSpec, fresh: Fresh, origin: Mapping[str, Any]) -> Entry:
        key = spec.key()
        payload = memoryview(fresh.payload)
        _write(self.engine_path(key), payload)
        sha256 = hashlib.sha256(payload).hexdigest()
        engine = {"file": f"{key}.engine", "sha256": sha256, "size": payload.nbytes}
        record = {"key": key, "spec": spec.to_dict(), "engine": engine, "origins": [dict(origin)], **fresh.record}
        self._write_sidecar(key, record)
        entry = self.find(key, {sha256})
        assert entry is not None
        return entry

    def _with_origin(self, entry: Entry, origin: Mapping[str, Any]) -> Entry:
        origins = list(entry.record["origins"])
        if dict(origin) in origins:
            return entry
        record = {**entry.record, "origins": [*origins, dict(origin)]}
        self._write_sidecar(entry.key, record)
        return Entry(entry.key, entry.spec, entry.sha256, entry.size, record, time.time())

    def _write_sidecar(self, key: str, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        _write(self.sidecar_path(key), memoryview(text.encode("utf-8")))

    def _sweep(self, key: str) -> None:
        """Remove what a killed build of `key` left; its lock is held, so nobody writes these any more."""
        for leftover in self.root.glob(f".{key}.*"):
            leftover.unlink(missing_ok=True)

    def _quarantine(self, key: str, reason: str) -> None:
        folder = self.root / "quarantine"
        folder.mkdir(mode=0o700, exist_ok=True)
        stem = f"{key}.{time.time_ns()}"
        for path in (self.sidecar_path(key), self.engine_path(key)):  # the commit mark goes first
            with contextlib.suppress(FileNotFoundError):
                path.rename(folder / f"{stem}{path.suffix}")
        _write(folder / f"{stem}.reason", memoryview(reason.encode("utf-8")))

    def committed(self) -> list[str]:
        """Keys of committed engines, whatever their state."""
        return sorted(p.stem for p in self.root.glob("*.json"))

    def entries(self) -> Iterator[Entry]:
        """The entries that can be read, unsound ones left out (see `problems`)."""
        for key in self.committed():
            with contextlib.suppress(BackendError):
                entry = self.find(key)
                if entry is not None:
                    yield entry

    def resolve(self, prefix: str) -> str:
        """The one key that begins with `prefix`. Raises `UsageError`."""
        found = [k for k in self.committed() if k.startswith(prefix)]
        if len(found) != 1:
            what = f"{len(found)} engines begin" if found else "no engine begins"
            raise UsageError(f"{what} with {prefix!r}", hint="`matchrt engines list` shows them")
        return found[0]

    def problems(self, key: str) -> str:
        """Why the engine of `key` would not be loaded; "" if it would. Nothing is deserialised."""
        used = self.sidecar_path(key).stat()
        try:
            self.read(key)
        except (BackendError, KeyError) as error:
            return error.message if isinstance(error, BackendError) else "not built"
        os.utime(self.sidecar_path(key), ns=(used.st_atime_ns, used.st_mtime_ns))
        return ""

    def remove(self, key: str) -> int:
        """Remove an engine; the bytes freed."""
        freed = 0
        with exclusive(self.root / f"{key}.lock"):
            for path in (self.sidecar_path(key), self.engine_path(key)):
                with contextlib.suppress(FileNotFoundError):
                    freed += path.lstat().st_size
                    path.unlink()
        return freed

    def nearest(self, spec: EngineSpec, network: str) -> Entry | None:
        """The existing engine that differs from `spec` in the fewest fields, one of the same network first."""
        others = [e for e in self.entries() if e.key != spec.key()]
        ranked = sorted(others, key=lambda e: (e.network != network, len(spec.differences(e.spec)), -e.used))
        return ranked[0] if ranked else None

    def timing_cache(self, name: str) -> bytes:
        """The stored kernel timings called `name`; empty if there are none, or if they are not this user's."""
        try:
            content = read_content(self._timing_path(name))
        except (FileNotFoundError, BackendError):
            return b""
        return b"" if content.distrust else content.data

    def merge_timing_cache(self, name: str, fresh: bytes, base: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        """Store `fresh`, which began from `base`; if others stored more meanwhile, `merge(theirs, fresh)`."""
        if not fresh:
            return
        with exclusive(self._timing_path(name).with_suffix(".lock")):
            theirs = self.timing_cache(name)
            _write(self._timing_path(name), memoryview(fresh if theirs in (base, b"") else merge(theirs, fresh)))

    def _timing_path(self, name: str) -> Path:
        folder = self.root / "timing"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / ("".join(c if c.isalnum() or c in ".-_" else "_" for c in name) + ".cache")


def _trust_hint(sha256: str) -> str:
    return f"if you know where it comes from: --trust {sha256}"


def _write(path: Path, data: memoryview) -> None:
    """Write `data` to `path`, whole or not at all, readable by this user only; a link at `path` is replaced, not followed."""
    if path.is_symlink():
        path.unlink()
    with atomic_file(path) as temporary:
        os.chmod(temporary, 0o600)
        with temporary.open("wb") as file:
            file.write(data)
