"""Whole or not at all: failures, Ctrl-C, a full disk, kill -9, and what may be replaced."""

# ruff: noqa: PT012 - what a block does before it fails is what these tests are about

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matchrt.errors import MatchrtError, UsageError
from matchrt.files import atomic_file, atomic_folder, atomic_write_bytes, atomic_write_text

FAILURES = [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "é\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\r\n".encode()
    atomic_write_bytes(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"two"
    assert names(tmp_path) == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_until_the_end_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".bin"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_any_failure_leaves_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(MatchrtError, match="No space left") as caught, atomic_file(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise full
    assert "free some space" in (caught.value.hint or "")
    with pytest.raises(MatchrtError, match="No space left"), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_bytes(b"half")
        raise full
    assert names(tmp_path) == []


def test_a_full_disk_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MatchrtError, match="No space left"):
        atomic_write_text(tmp_path / "a.txt", "x")
    with pytest.raises(MatchrtError, match="No space left"), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_bytes(b"half")
    assert names(tmp_path) == []


def test_other_errors_of_the_block_stay_themselves(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "b"):
        (tmp_path / "missing").read_bytes()
    assert names(tmp_path) == []


def test_impossible_targets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder") as caught:
        atomic_write_text(tmp_path / "missing" / "a.txt", "")
    assert "mkdir" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="is a folder"):
        atomic_write_text(tmp_path, "")
    with pytest.raises(UsageError, match="no folder"), atomic_folder(tmp_path / "missing" / "b"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("prepared", [False, True])
def test_a_folder_appears_complete(tmp_path: Path, prepared: bool) -> None:
    path = tmp_path / "bundle"
    if prepared:
        path.mkdir()
    with atomic_folder(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("1")
        assert not path.exists() or not names(path)
    assert (path / "sub" / "a").read_text() == "1"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_folder_leaves_what_was_there(tmp_path: Path, failure: BaseException, existing: bool) -> None:
    path = tmp_path / "bundle"
    if existing:
        path.mkdir()
        (path / "bundle.json").write_text("old")
    with pytest.raises(type(failure)), atomic_folder(path, replace=True) as temporary:
        (temporary / "bundle.json").write_text("new")
        raise failure
    assert names(tmp_path) == (["bundle"] if existing else [])
    if existing:
        assert (path / "bundle.json").read_text() == "old"


def test_replacing_a_folder_takes_consent_and_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "holidays"
    path.mkdir()
    (path / "photo.jpg").write_text("dear")
    for replace, message in ((False, "already exists"), (True, "not written by this tool")):
        with pytest.raises(UsageError, match=message), atomic_folder(path, replace=replace):
            pytest.fail("the block must not run")
    (path / "bundle.json").touch()
    monkeypatch.chdir(path)
    with pytest.raises(UsageError, match="current folder"), atomic_folder(path, replace=True):
        pytest.fail("the block must not run")
    monkeypatch.chdir(tmp_path)
    with atomic_folder("holidays", replace=True) as temporary:
        (temporary / "bundle.json").write_text("new")
    assert names(path) == ["bundle.json"]
    assert names(tmp_path) == ["holidays"]


def test_files_and_links_are_not_folders_to_replace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a folder"), atomic_folder(tmp_path / name, replace=True):
            pytest.fail("the block must not run")


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with pytest.raises(UsageError, match="already exists"), atomic_folder(path) as temporary:
        (temporary / "a").write_text("mine")
        path.mkdir()
        (path / "theirs").touch()
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["bundle"]


def test_the_old_folder_returns_where_the_second_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "bundle.json").write_text("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "disk trouble")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk trouble"), atomic_folder(path, replace=True) as temporary:
        (temporary / "bundle.json").write_text("new")
    assert (path / "bundle.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    """kill -9 while a process rewrites one file without pause: always one of the versions, complete."""
    path = tmp_path / "a.bin"
    script = (
        "import sys, itertools; from matchrt.files import atomic_write_bytes\n"
        "for i in itertools.count(): atomic_write_bytes(sys.argv[1], bytes([i % 256]) * 2_000_000)"
    )
    for delay in (0.2, 0.25, 0.31, 0.38):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        while not path.exists():
            time.sleep(0.005)
        end = time.monotonic() + delay
        versions = set()
        while time.monotonic() < end:  # a reader meanwhile sees no half version either
            versions.add(whole_version(path))
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole_version(path)
        assert len(versions) > 1


def whole_version(path: Path) -> int:
    data = path.read_bytes()
    assert len(data) == 2_000_000
    assert data == data[:1] * len(data)
    return data[0]
