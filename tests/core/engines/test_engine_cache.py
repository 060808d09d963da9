"""The cache: keys, commits, two builders, and every attack on what lies in it."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from matchrt.backends.building import Profile
from matchrt.engines import CorruptEngineError, EngineCache, EngineSpec, UntrustedEngineError
from matchrt.engines.prune import prune
from matchrt.engines.trust import parse_digests
from matchrt.errors import BackendError, MatchrtError, UsageError
from matchrt.files import atomic

OTHER: dict[str, Any] = {
    "graph_sha256": "f" * 64,
    "backend": "tensorrt_rtx",
    "backend_version": "10.3.0.27",
    "precision": "fp32",
    "profiles": (Profile("x", (1, 3), (3, 3), (4, 3)),),
    "options": (("level", 4), ("tf32", False)),
    "kept_sha256": "",
    "compute_capability": "9.0",
    "gpu": "NVIDIA L40S",
    "targets": ("sm89",),
    "platform": "linux-aarch64",
}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def built(cache: EngineCache, kit: Any) -> str:
    """The key of an engine in the cache."""
    entry, hit = cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert not hit
    return str(entry.key)


def never() -> Any:
    raise AssertionError("built though it was there")


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_field_changes_the_key(kit: Any) -> None:
    base = kit.spec()
    assert set(OTHER) == {f.name for f in fields(EngineSpec)}, "a new field needs a value here"
    changed = {name: replace(base, **{name: value}) for name, value in OTHER.items()}
    assert len({base.key(), *(s.key() for s in changed.values())}) == len(OTHER) + 1
    for name, spec in changed.items():
        found = [field.partition(".")[0] for field, _, _ in base.differences(spec)]
        assert found == [name]


@pytest.mark.parametrize(
    "profiles",
    [
        (Profile("y", (1, 3), (2, 3), (4, 3)),),
        (Profile("x", (2, 3), (2, 3), (4, 3)),),
        (Profile("x", (1, 3), (2, 3), (8, 3)),),
        (Profile("x", (1, 3), (2, 3), (4, 3)), Profile("y", (1,), (1,), (1,))),
        (),
    ],
)
def test_every_part_of_a_profile_changes_the_key(kit: Any, profiles: tuple[Profile, ...]) -> None:
    assert replace(kit.spec(), profiles=profiles).key() != kit.spec().key()


def test_the_order_of_profiles_counts_and_that_of_options_does_not_get_in(kit: Any) -> None:
    two = (Profile("x", (1,), (1,), (1,)), Profile("y", (1,), (1,), (1,)))
    assert kit.spec(profiles=two).key() != kit.spec(profiles=two[::-1]).key()
    assert kit.spec(options=(("a", 1), ("b", 2))).key() == kit.spec(options=(("b", 2), ("a", 1))).key()


def test_a_key_is_a_pure_function_of_the_fields(kit: Any) -> None:
    """The same in another process, whatever its environment and hash seed; and through the sidecar's JSON."""
    spec = kit.spec()
    assert EngineSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).key() == spec.key()
    code = "import engine_kit; print(engine_kit.spec().key())"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.strip() == spec.key()


# ── What is written ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_is_built_once_and_read_back(cache: EngineCache, kit: Any, built: str) -> None:
    entry, data = cache.read(built)
    assert data == b"engine " * 1000
    again, hit = cache.get_or_build(kit.spec(), kit.origin(), never)
    assert hit
    assert again.sha256 == entry.sha256
    assert entry.io == kit.IO
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    for path in (cache.engine_path(built), cache.sidecar_path(built)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_origin_is_added_once(cache: EngineCache, kit: Any, built: str) -> None:
    for _ in range(2):
        entry, hit = cache.get_or_build(kit.spec(), kit.origin("other"), never)
        assert hit
    assert [o["network"] for o in entry.record["origins"]] == ["net", "other"]


def test_an_engine_without_its_sidecar_does_not_exist(cache: EngineCache, kit: Any, built: str) -> None:
    cache.sidecar_path(built).unlink()
    assert cache.find(built) is None
    with pytest.raises(KeyError):
        cache.read(built)
    _, hit = cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert not hit


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), BackendError("no"), MemoryError()], ids=repr)
def test_a_build_that_fails_leaves_nothing(cache: EngineCache, kit: Any, failure: BaseException) -> None:
    def fail() -> Any:
        raise failure

    with pytest.raises(type(failure)):
        cache.get_or_build(kit.spec(), kit.origin(), fail)
    assert [p.name for p in cache.root.iterdir()] == [f"{kit.spec().key()}.lock"]


@pytest.mark.parametrize("at", ["engine", "sidecar"])
def test_a_full_disk_is_told_and_leaves_no_engine(
    cache: EngineCache, kit: Any, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without room: the write itself fails, for the engine or only for its sidecar."""
    sync, calls = atomic._sync, []

    def full(path: Path) -> None:
        calls.append(path)
        if path.is_file() and path.suffix == (".engine" if at == "engine" else ".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(MatchrtError, match="No space left") as caught:
        cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert "free some space" in str(caught.value.hint)
    monkeypatch.undo()
    assert cache.committed() == []
    assert not list(cache.root.glob(".*"))
    _, hit = cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert not hit
    assert cache.problems(kit.spec().key()) == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("NOT RUN: this user may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=False)


def test_a_disk_that_is_really_full(small_disk: Path, kit: Any) -> None:
    cache = EngineCache(small_disk / "engines")
    with pytest.raises(MatchrtError, match="No space left"):
        cache.get_or_build(kit.spec(), kit.origin(), lambda: kit.fresh(bytes(2 << 20)))
    assert cache.committed() == []
    _, hit = cache.get_or_build(kit.spec(), kit.origin(), lambda: kit.fresh(bytes(1 << 10)))
    assert not hit
    assert cache.problems(kit.spec().key()) == ""


# ── Kill and race ───────────────────────────────────────────────────────────────────────────────────────────────────


def _start(root: Path, kit: Any, seconds: float, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, kit.__file__, str(root), str(seconds), str(4 << 20), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _kill_rounds(rounds: int, cache: EngineCache, kit: Any, tmp_path: Path) -> tuple[int, int]:
    """Kill a builder at random moments of its work; the cache must work after each. (killed, had finished)."""
    rng, log, key = random.Random(4), tmp_path / "log", kit.spec().key()
    killed = finished = 0
    expected = bytes(range(256)) * ((4 << 20) // 256)
    whole = _start(cache.root, kit, 0.0, log)
    assert whole.stdout is not None
    whole.stdout.readline()
    begin = time.perf_counter()
    assert whole.stdout.readline().endswith("False\n")
    window = time.perf_counter() - begin  # from the beginning of the work to its end, on this machine at this moment
    whole.wait()
    cache.remove(key)
    for _ in range(rounds):
        process = _start(cache.root, kit, 0.0, log)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, window))
        process.kill()
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        finished += process.returncode == 0
        if cache.find(key) is not None:
            assert cache.read(key)[1] == expected
        entry, _ = cache.get_or_build(kit.spec(), kit.origin(), lambda: kit.fresh(expected))
        assert cache.read(key)[1] == expected
        assert sorted(p.name for p in cache.root.iterdir()) == [f"{key}.{s}" for s in ("engine", "json", "lock")]
        cache.remove(entry.key)
    return killed, finished


def test_kill_at_fifty_random_moments_leaves_a_cache_that_works(cache: EngineCache, kit: Any, tmp_path: Path) -> None:
    killed, _ = _kill_rounds(50, cache, kit, tmp_path)
    assert killed >= 10  # the others had finished; how many depends on what else the machine does


def test_two_processes_on_one_key_build_once(cache: EngineCache, kit: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [_start(cache.root, kit, 0.5, log) for _ in range(2)]
    answers = [p.communicate(timeout=60)[0].splitlines() for p in processes]
    assert len(log.read_text().splitlines()) == 1
    assert sorted(a[1].split()[1] for a in answers) == ["False", "True"]
    assert len({a[1].split()[0] for a in answers}) == 1


def test_a_waiting_builder_takes_over_from_a_killed_one(cache: EngineCache, kit: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = _start(cache.root, kit, 60, log)
    while not log.exists():
        time.sleep(0.02)
    second = _start(cache.root, kit, 0, log)
    time.sleep(0.2)
    first.kill()
    first.wait()
    answer = second.communicate(timeout=60)[0].splitlines()
    assert answer[1].endswith("False")
    assert len(log.read_text().splitlines()) == 2


# ── Attacks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _rebuilt(cache: EngineCache, kit: Any, reason: str) -> None:
    """The next build puts it into quarantine, tells why there, and builds anew."""
    entry, hit = cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert not hit
    assert cache.read(entry.key)[1] == b"engine " * 1000
    reasons = [p.read_text() for p in (cache.root / "quarantine").glob("*.reason")]
    assert len(reasons) == 1
    assert reason in reasons[0]


@pytest.mark.parametrize("position", [0, 3500, 6999])
def test_a_flipped_byte_is_found_before_anything_is_deserialised(
    cache: EngineCache, kit: Any, built: str, position: int
) -> None:
    data = bytearray(cache.engine_path(built).read_bytes())
    data[position] ^= 1
    cache.engine_path(built).write_bytes(data)
    with pytest.raises(CorruptEngineError, match="was changed"):
        cache.read(built)
    _rebuilt(cache, kit, "was changed")


@pytest.mark.parametrize("size", [0, 1, 6999, 7001])
def test_another_size_is_found(cache: EngineCache, kit: Any, built: str, size: int) -> None:
    cache.engine_path(built).write_bytes((b"engine " * 1001)[:size])
    with pytest.raises(CorruptEngineError):
        cache.read(built)
    _rebuilt(cache, kit, "engine" if size <= 7000 else "more than it may have")


def test_a_missing_engine_file_is_found(cache: EngineCache, kit: Any, built: str) -> None:
    cache.engine_path(built).unlink()
    with pytest.raises(CorruptEngineError, match="no engine file"):
        cache.read(built)
    _rebuilt(cache, kit, "no engine file")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"spec": 3}', "[" * 100000, "\xff"])
def test_a_broken_sidecar_is_found(cache: EngineCache, kit: Any, built: str, text: str) -> None:
    cache.sidecar_path(built).write_text(text, "latin-1")
    with pytest.raises(CorruptEngineError, match="cannot be read"):
        cache.read(built)
    _rebuilt(cache, kit, "cannot be read")


def test_a_sidecar_of_another_engine_is_found(cache: EngineCache, kit: Any, built: str) -> None:
    """An engine renamed to another key: its bytes fit its sidecar, but the sidecar does not fit the key."""
    wanted = kit.spec(precision="fp32").key()
    for path in (cache.engine_path, cache.sidecar_path):
        path(built).rename(path(wanted))
    with pytest.raises(CorruptEngineError, match="describes another engine"):
        cache.read(wanted)


@pytest.mark.parametrize("which", ["engine_path", "sidecar_path"])
def test_a_link_is_not_followed(cache: EngineCache, kit: Any, built: str, which: str, tmp_path: Path) -> None:
    path: Path = getattr(cache, which)(built)
    real = tmp_path / "elsewhere"
    path.rename(real)
    before = real.read_bytes()
    path.symlink_to(real)
    with pytest.raises(UntrustedEngineError, match="symbolic link"):
        cache.read(built)
    _rebuilt(cache, kit, "symbolic link")
    assert real.read_bytes() == before
    assert not path.is_symlink()


def test_a_link_without_a_sidecar_is_replaced_not_written_through(cache: EngineCache, kit: Any, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    cache.engine_path(kit.spec().key()).symlink_to(victim)
    cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    assert victim.read_text() == "precious"


def test_a_pipe_in_place_of_an_engine_does_not_hang(cache: EngineCache, built: str) -> None:
    cache.engine_path(built).unlink()
    os.mkfifo(cache.engine_path(built))
    with pytest.raises(UntrustedEngineError, match="not a regular file"):
        cache.read(built)


@pytest.mark.parametrize("which", ["engine_path", "sidecar_path"])
def test_a_foreign_owner_is_refused_unless_the_digest_is_named(
    cache: EngineCache, kit: Any, built: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, data = cache.read(built)
    if os.geteuid() == 0:
        os.chown(getattr(cache, which)(built), 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UntrustedEngineError, match=r"belongs to user \d+, not to you") as caught:
        cache.read(built)
    assert caught.value.hint is not None
    assert f"--trust {entry.sha256}" in caught.value.hint
    with pytest.raises(UntrustedEngineError):
        cache.read(built, {"0" * 64})
    assert cache.read(built, {entry.sha256})[1] == data


def test_a_named_digest_excuses_the_owner_not_the_content(cache: EngineCache, built: str) -> None:
    entry, _ = cache.read(built)
    os.chmod(cache.engine_path(built), 0o666)
    cache.engine_path(built).write_bytes(b"forged!" * 1000)
    with pytest.raises(CorruptEngineError):
        cache.read(built, {entry.sha256})


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(cache: EngineCache, kit: Any, built: str, mode: int) -> None:
    cache.engine_path(built).chmod(mode)
    with pytest.raises(UntrustedEngineError, match="writable by other users"):
        cache.read(built)
    _rebuilt(cache, kit, "writable by other users")


def test_a_folder_that_others_may_write_is_refused(cache: EngineCache, kit: Any, built: str) -> None:
    cache.root.chmod(0o777)
    with pytest.raises(UntrustedEngineError, match="writable by other users"):
        cache.read(built)
    with pytest.raises(UntrustedEngineError) as caught:
        cache.get_or_build(kit.spec(), kit.origin(), never)
    assert "chmod 700" in str(caught.value.hint)


def test_trust_takes_digests_only() -> None:
    assert parse_digests([" " + "A" * 64]) == {"a" * 64}
    for bad in ("", "abc", "g" * 64, "a" * 63):
        with pytest.raises(UsageError, match="64 hexadecimal"):
            parse_digests([bad])


def test_a_timing_cache_of_doubtful_origin_is_not_used(cache: EngineCache) -> None:
    cache.merge_timing_cache("tensorrt-10 L4", b"one", b"", lambda a, b: a + b)
    assert cache.timing_cache("tensorrt-10 L4") == b"one"
    cache.merge_timing_cache("tensorrt-10 L4", b"two", b"one", lambda a, b: b"wrong")
    cache.merge_timing_cache("tensorrt-10 L4", b"three", b"one", lambda a, b: a + b"+" + b)
    assert cache.timing_cache("tensorrt-10 L4") == b"two+three"
    next((cache.root / "timing").glob("*.cache")).chmod(0o666)
    assert cache.timing_cache("tensorrt-10 L4") == b""


# ── Looking and pruning ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_nearest_engine_tells_what_changed(cache: EngineCache, kit: Any, built: str) -> None:
    cache.get_or_build(kit.spec(precision="fp32", gpu="NVIDIA T4"), kit.origin(), kit.fresh)
    wanted = kit.spec(options=(("level", 5), ("tf32", False)))
    nearest = cache.nearest(wanted, "net")
    assert nearest is not None
    assert nearest.key == built
    assert wanted.differences(nearest.spec) == [("options.level", 5, 3)]


def test_prune_by_age_and_by_size(cache: EngineCache, kit: Any) -> None:
    now = time.time()
    keys = []
    for index, days in enumerate((40, 20, 1)):
        entry, _ = cache.get_or_build(kit.spec(gpu=f"GPU {index}"), kit.origin(), kit.fresh)
        os.utime(cache.sidecar_path(entry.key), (now - days * 86400,) * 2)
        keys.append(entry.key)
    size = sum(p.stat().st_size for p in (cache.engine_path(keys[2]), cache.sidecar_path(keys[2])))
    dry = prune(cache, older_than_days=30, dry_run=True)
    assert dry.engines == (keys[0],)
    assert set(cache.committed()) == set(keys)
    assert prune(cache, older_than_days=30).engines == (keys[0],)
    assert prune(cache, max_bytes=int(1.5 * size)).engines == (keys[1],)
    assert cache.committed() == [keys[2]]
    assert prune(cache).engines == ()


def test_prune_removes_quarantine_and_old_leftovers_only(cache: EngineCache, kit: Any, built: str) -> None:
    cache.engine_path(built).write_bytes(b"x")
    cache.get_or_build(kit.spec(), kit.origin(), kit.fresh)
    old, young = cache.root / ".work-old", cache.root / ".work-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "graph.onnx").write_bytes(b"g")
    orphan = cache.root / f"{'9' * 64}.engine"
    orphan.write_bytes(b"o")
    for path in (old, orphan):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    prune(cache)
    assert not old.exists()
    assert not orphan.exists()
    assert young.exists()
    assert not list((cache.root / "quarantine").iterdir())
    assert cache.problems(built) == ""


def test_looking_at_an_engine_does_not_count_as_using_it(cache: EngineCache, built: str) -> None:
    os.utime(cache.sidecar_path(built), (1e9, 1e9))
    assert cache.problems(built) == ""
    entry = cache.find(built)
    assert entry is not None
    assert entry.used == 1e9
    cache.read(built)
    assert cache.sidecar_path(built).stat().st_mtime > 1e9


def test_a_key_is_found_by_its_first_digits(cache: EngineCache, built: str) -> None:
    assert cache.resolve(built[:8]) == built
    with pytest.raises(UsageError, match="no engine begins"):
        cache.resolve("zz")
