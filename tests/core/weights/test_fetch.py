"""Downloads against a local HTTP server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from matchrt.errors import DownloadError
from matchrt.weights import fetch as fetch_module
from matchrt.weights.fetch import cache_folder, fetch
from matchrt.weights.transfer import shown_url

CONTENT = random.Random(7).randbytes(700_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; the flags make it misbehave. `requests` records (path, Range header)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.say_length = True
        self.cut_after: list[int] = []  # bytes of body after which each of the next answers is cut off
        self.fail: list[int] = []  # status codes of the next answers
        self.slow = 0.0
        self.requests: list[tuple[str, str | None]] = []
        self.base = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.fail:
            self.send_error(server.fail.pop(0))
            return
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header(
                "Location",
                {
                    "/redirect": "/f",
                    "/redirect-file": "file:///etc/passwd",
                    "/redirect-ftp": "ftp://host.invalid/f",
                }.get(self.path, self.path),
            )
            self.end_headers()
            return
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        start = self._start()
        if start is not None and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        self._body(start)

    def _start(self) -> int | None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if found is None or not self.server.ranges:
            return None
        if self.headers.get("If-Range") not in (None, self.server.etag):
            return None
        return int(found[1])

    def _body(self, start: int | None) -> None:
        server = self.server
        body = server.content[start or 0 :]
        # Before any answer: a client that refuses the headers may set the next one's cut while this one still writes.
        cut = server.cut_after.pop(0) if server.cut_after else len(body)
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.say_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for position in range(0, min(cut, len(body)), 50_000):
            self.wfile.write(body[position : min(position + 50_000, cut)])
            time.sleep(server.slow)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MATCHRT_OFFLINE", raising=False)


def only_support_files(folder: Path) -> bool:
    return all(path.name.startswith(".") for path in folder.iterdir())


def test_downloads_once_then_uses_what_is_there(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "w.pth"
    first = fetch(
        server.base + "/f", target, sha256=SHA.upper(), size=len(CONTENT), progress=lambda n, t: seen.append((n, t))
    )
    assert (first.downloaded, first.trust, first.sha256, first.size_bytes) == (True, "pinned", SHA, len(CONTENT))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    again = fetch(server.base + "/f", target, sha256=SHA)
    assert not again.downloaded
    assert len(server.requests) == 1
    assert sorted(p.name for p in target.parent.iterdir()) == [".w.pth.lock", "w.pth"]


def test_continues_after_interruptions_with_range_requests(server: Server, tmp_path: Path) -> None:
    server.cut_after = [300_000, 100_000]
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).sha256 == SHA
    assert [r for _, r in server.requests] == [None, "bytes=300000-", "bytes=400000-"]


def test_a_later_call_continues_what_an_earlier_one_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    server.cut_after = [300_000]
    with pytest.raises(DownloadError, match=r"cut off: 300000 of 700000 bytes came") as error:
        fetch(server.base + "/f", tmp_path / "w", sha256=SHA)
    assert error.value.hint is not None
    assert "continues" in error.value.hint
    assert only_support_files(tmp_path)
    assert fetch(server.base + "/f", tmp_path / "w").sha256 == SHA  # unpinned, but the ETag vouches for the part
    assert server.requests[-1] == ("/f", "bytes=300000-")
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_kill_9_in_the_middle_leaves_nothing_under_the_name_and_the_next_call_works(
    server: Server, tmp_path: Path
) -> None:
    server.slow = 0.1
    call = f"fetch({server.base + '/f'!r}, {str(tmp_path / 'w')!r}, sha256={SHA!r})"
    code = f"from matchrt.weights.fetch import fetch; {call}"
    child = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / ".w.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 0):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert only_support_files(tmp_path)
    server.slow = 0.0
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).downloaded
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [300_000]
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).sha256 == SHA
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_content_that_changed_between_two_attempts_is_not_mixed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    server.cut_after = [300_000]
    with pytest.raises(DownloadError, match="cut off"):
        fetch(server.base + "/f", tmp_path / "w")
    server.content, server.etag = CONTENT[::-1], '"v2"'
    fetch(server.base + "/f", tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]


def test_a_mixed_part_without_etag_is_noticed_by_the_pin_and_downloaded_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.etag, server.content, server.cut_after = None, bytes(700_000), [300_000]
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="cut off"):
        fetch(server.base + "/f", tmp_path / "w", sha256=SHA)
    server.content = CONTENT
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).sha256 == SHA
    assert [r for _, r in server.requests] == [None, "bytes=300000-", None]


def test_an_unpinned_part_without_validator_is_not_continued(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.etag, server.cut_after = None, [300_000]
    monkeypatch.setattr(fetch_module, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="cut off"):
        fetch(server.base + "/f", tmp_path / "w")
    fetch(server.base + "/f", tmp_path / "w")
    assert [r for _, r in server.requests] == [None, None]


def test_a_whole_part_that_was_not_yet_renamed_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".w.part").write_bytes(CONTENT)
    url_id = hashlib.sha256((server.base + "/f").encode()).hexdigest()
    (tmp_path / ".w.part.json").write_text(json.dumps({"url": url_id, "validator": '"v1"'}))
    assert fetch(server.base + "/f", tmp_path / "w").sha256 == SHA
    assert [r for _, r in server.requests] == ["bytes=700000-"]


def test_a_download_that_never_completes_is_refused(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after = [1000] * 10
    with pytest.raises(DownloadError, match="cut off: 1000 of 700000"):
        fetch(server.base + "/f", tmp_path / "w", sha256=SHA)
    assert only_support_files(tmp_path)
    assert len(server.requests) == fetch_module.ATTEMPTS


def test_without_length_a_cut_is_noticed_by_the_pin_and_refused_without_one(server: Server, tmp_path: Path) -> None:
    server.say_length = False
    with pytest.raises(DownloadError, match="does not say how long"):
        fetch(server.base + "/f", tmp_path / "w")
    server.cut_after = [1000]
    with pytest.raises(DownloadError, match="not what was published"):
        fetch(server.base + "/f", tmp_path / "w", sha256=SHA)
    assert only_support_files(tmp_path)
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).sha256 == SHA


def test_wrong_hash_and_wrong_size_keep_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"its sha256 is {SHA}, not {'0' * 64}; it was not kept"):
        fetch(server.base + "/f", tmp_path / "w", sha256="0" * 64)
    with pytest.raises(DownloadError, match="has 700000 bytes, and 5 were published"):
        fetch(server.base + "/f", tmp_path / "w", size=5)
    assert [p.name for p in tmp_path.iterdir()] == [".w.lock"]


def test_the_hash_is_recorded_at_first_fetch_and_enforced_after(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "w"
    assert fetch(server.base + "/f?token=secret", target).trust == "first"
    record = json.loads((tmp_path / "w.fetch.json").read_text())
    assert record["sha256"] == SHA
    assert "secret" not in json.dumps(record)
    assert fetch(server.base + "/f", target).trust == "recorded"
    target.unlink()
    server.content, server.etag = bytes(700_000), '"v2"'
    with pytest.raises(DownloadError, match="has changed since its first fetch") as error:
        fetch(server.base + "/f", target)
    assert not target.exists()
    assert error.value.hint is not None
    assert "w.fetch.json" in error.value.hint
    (tmp_path / "w.fetch.json").unlink()
    assert fetch(server.base + "/f", target).trust == "first"


def test_a_present_file_that_was_altered_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "w"
    fetch(server.base + "/f", target)
    target.write_bytes(b"altered")
    with pytest.raises(DownloadError, match="recorded at the first fetch"):
        fetch(server.base + "/f", target)
    with pytest.raises(DownloadError, match="not what was published"):
        fetch(server.base + "/f", target, sha256=SHA)
    assert target.read_bytes() == b"altered"
    (tmp_path / "w.fetch.json").write_text("{")
    with pytest.raises(DownloadError, match=r"w.fetch.json is damaged"):
        fetch(server.base + "/f", target)


def test_two_processes_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.slow = 0.08
    code = (
        "from matchrt.weights.fetch import fetch\n"
        f"print(fetch({server.base + '/f'!r}, {str(tmp_path / 'w')!r}, sha256={SHA!r}).downloaded)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert answers == ["False", "False", "True"]
    assert len(server.requests) == 1
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_two_threads_at_once_download_once(server: Server, tmp_path: Path) -> None:
    server.slow = 0.02
    answers: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(fetch(server.base + "/f", tmp_path / "w", sha256=SHA).downloaded)
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [False, False, True]
    assert len(server.requests) == 1


def test_http_errors_are_one_clear_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/missing cannot be downloaded: the server answered 404") as error:
        fetch(server.base + "/missing?key=secret", tmp_path / "w")
    assert "\n" not in error.value.message
    assert "secret" not in error.value.message
    server.fail = [403]
    with pytest.raises(DownloadError, match="403"):
        fetch(server.base + "/f", tmp_path / "w")
    server.fail = [503, 429]
    assert fetch(server.base + "/f", tmp_path / "w").sha256 == SHA


def test_redirects(server: Server, tmp_path: Path) -> None:
    assert fetch(server.base + "/redirect", tmp_path / "w").sha256 == SHA
    with pytest.raises(DownloadError, match="redirects without end"):
        fetch(server.base + "/redirect-loop", tmp_path / "x")
    for scheme in ("file", "ftp"):
        with pytest.raises(DownloadError, match="an address that is not http: refused"):
            fetch(f"{server.base}/redirect-{scheme}", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_redirect_from_https_to_http_is_refused() -> None:
    import urllib.request
    from email.message import Message

    from matchrt.weights.transfer import _Redirects

    request = urllib.request.Request("https://host.invalid/f")
    with pytest.raises(DownloadError, match="which is not encrypted: refused"):
        _Redirects().redirect_request(request, None, 302, "", Message(), "http://host.invalid/f")  # type: ignore[arg-type]
    allowed = _Redirects().redirect_request(request, None, 302, "", Message(), "https://other.invalid/f")  # type: ignore[arg-type]
    assert allowed is not None


def test_offline_says_where_to_put_the_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "w.pth"
    with pytest.raises(DownloadError) as error:
        fetch(server.base + "/f", target, sha256=SHA, offline=True)
    monkeypatch.setenv("MATCHRT_OFFLINE", "1")
    with pytest.raises(DownloadError) as by_environment:
        fetch(server.base + "/f", target, sha256=SHA)
    for message in (error.value.message, by_environment.value.message):
        assert "\n" not in message
        assert str(target) in message
        assert SHA in message
        assert server.base in message
    target.write_bytes(CONTENT)
    assert not fetch(server.base + "/f", target, sha256=SHA).downloaded
    assert server.requests == []


def test_no_route_says_where_to_put_the_file(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/f"
        with pytest.raises(DownloadError, match=r"cannot be reached .*refused.*put it at") as error:
            fetch(url, tmp_path / "w")
    assert "\n" not in error.value.message


def test_file_addresses_are_copied_whole(tmp_path: Path) -> None:
    source = tmp_path / "a b.pth"
    source.write_bytes(CONTENT)
    assert fetch(source.as_uri(), tmp_path / "w", offline=True).sha256 == SHA
    assert (tmp_path / "w").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="does not exist"):
        fetch((tmp_path / "none").as_uri(), tmp_path / "x")
    with pytest.raises(DownloadError, match="only https, http and file"):
        fetch("ftp://host.invalid/f", tmp_path / "x")


def test_a_disk_that_is_too_small_is_refused_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(DownloadError, match=r"is full \(1000 bytes free\)"):
        fetch(server.base + "/f", tmp_path / "w")
    assert not (tmp_path / ".w.part").exists()
    assert not (tmp_path / "w").exists()


def test_a_write_that_fails_midway_leaves_nothing_under_the_name(server: Server, tmp_path: Path) -> None:
    """A file size limit of the operating system makes the write itself fail, as a full disk does."""
    code = (
        "import resource\n"
        "from matchrt.errors import DownloadError\n"
        "from matchrt.weights.fetch import fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        f"try:\n    fetch({server.base + '/f'!r}, {str(tmp_path / 'w')!r}, sha256={SHA!r})\n"
        "except DownloadError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert only_support_files(tmp_path)
    assert fetch(server.base + "/f", tmp_path / "w", sha256=SHA).sha256 == SHA


def test_cache_folder_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "weights"
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    cache_folder().chmod(0o755)
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    monkeypatch.delenv("MATCHRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder("engines") == tmp_path / "x" / "matchrt" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "h"))
    assert cache_folder() == tmp_path / "h" / ".cache" / "matchrt" / "weights"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="cannot be used"):
        cache_folder()


def test_unwritable_destination_is_a_download_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch("http://127.0.0.1:1/f", tmp_path / "file" / "w")
    os.mkdir(tmp_path / "folder")
    with pytest.raises(DownloadError, match="is a folder"):
        fetch("http://127.0.0.1:1/f", tmp_path / "folder")


def test_secrets_are_not_shown() -> None:
    assert shown_url("https://user:pw@host/a/f.pth?sig=1#x") == "https://host/a/f.pth"
