"""Workers: what comes back is what a call here would give, errors too, and a death is told."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import matchrt
from matchrt.errors import BackendError, BundleError, EnvironmentLackError, ImageError, UsageError
from matchrt.runtime.steps import run_steps
from matchrt.samples import sample_pairs
from matchrt.workers import Interpreters, Worker


@pytest.fixture(scope="module")
def worker(mini_bundle: Path) -> Iterator[Worker]:
    with Worker(name="mini") as worker:
        opened = worker.open(mini_bundle, threads=1)
        assert opened.name == "superpoint-lightglue:mini"
        assert opened.device["kind"] == "cpu"
        assert opened.seconds["load"] > 0
        assert opened.seconds["build"] == 0
        assert opened.versions["onnxruntime"]
        assert "torch" not in opened.versions
        yield worker


@pytest.fixture(scope="module")
def here(mini_bundle: Path) -> matchrt.Matcher:
    return matchrt.load(mini_bundle, threads=1)


def test_every_tensor_is_what_it_is_here(worker: Worker, here: matchrt.Matcher) -> None:
    pair = sample_pairs()[0]
    tensors = worker.preprocess(pair.image0, pair.image1)
    from matchrt.images.read import read_image

    expected, _ = here.preprocess(read_image(pair.image0), read_image(pair.image1), here.settings)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[n], expected[n]) and tensors[n].dtype == expected[n].dtype for n in expected)
    outputs, mine = worker.run_steps(tensors), run_steps(here.manifest, here.sessions(), expected)
    assert outputs.keys() == mine.keys()
    assert all(np.array_equal(outputs[n], mine[n]) for n in mine)


def test_matches_of_files_and_of_arrays_are_those_from_here(worker: Worker, here: matchrt.Matcher) -> None:
    pair = sample_pairs()[0]
    expected = here(pair.image0, pair.image1)
    from PIL import Image

    for images in ((pair.image0, pair.image1), [np.asarray(Image.open(p)) for p in (pair.image0, pair.image1)]):
        arrays, facts = worker.match(*images)
        assert len(expected) > 20
        assert np.array_equal(arrays["keypoints1"], expected.keypoints1)
        assert np.array_equal(arrays["indices"], expected.indices)
        assert facts["size0"] == list(expected.size0)
        assert set(facts["seconds"]) == {"read", "preprocess", "run", "postprocess"}


def test_errors_come_back_as_they_are(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg"):
        worker.match(tmp_path / "none.jpg", tmp_path / "none.jpg")
    with pytest.raises(BackendError, match="nothing made") as caught:
        worker.run_steps({})
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="knows no command 'dance'"):
        worker.ask("dance")
    with pytest.raises(BackendError, match="TypeError"):
        worker.ask("match", pictures=3)
    with Worker() as fresh:
        with pytest.raises(BundleError, match="no bundle at") as lost:
            fresh.open("no-such-bundle")
        assert lost.value.hint
        with pytest.raises(UsageError, match="no bundle is open"):
            fresh.preprocess(sample_pairs()[0].image0, sample_pairs()[0].image1)


def test_what_a_library_prints_breaks_nothing(mini_bundle: Path, tmp_path: Path) -> None:
    program = tmp_path / "loud.py"
    program.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "from matchrt.workers import desk, serve\nreal = desk.Desk.match\n"
        "def loud(self, images):\n    print('noise')\n    os.write(1, b'{\"answer\": 1}')\n    return real(self, images)\n"
        "desk.Desk.match = loud\nserve.serve(Path(sys.argv[3]))\n"
    )
    launcher = script(tmp_path / "python.sh", f'exec {sys.executable} {program} "$@"')
    pair = sample_pairs()[0]
    with Worker(str(launcher)) as worker:
        worker.open(mini_bundle)
        assert len(worker.match(pair.image0, pair.image1)[0]["scores"]) > 20


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_death_is_told_with_its_last_words(mini_bundle: Path) -> None:
    with Worker(name="victim") as worker:
        worker.open(mini_bundle)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSEGV)
        with pytest.raises(BackendError, match="victim, asked to match, died with signal SIGSEGV"):
            worker.match("a.jpg", "b.jpg")
        assert worker.pid is None
        with pytest.raises(BackendError, match="victim has ended"):
            worker.memory()


def test_a_launcher_that_fails_is_told(tmp_path: Path) -> None:
    broken = script(tmp_path / "python.sh", "echo no such library >&2; exit 3")
    with pytest.raises(BackendError, match="exit code 3: no such library"):
        Worker(str(broken))
    bare = script(tmp_path / "bare.sh", f'exec {sys.executable} -I -S "$@"')
    with pytest.raises(EnvironmentLackError, match="has no matchrt"):
        Worker(str(bare))


def test_interpreters_are_named_by_backend() -> None:
    chosen = Interpreters.parse([f"tensorrt={sys.executable}"])
    assert chosen.of("tensorrt") == chosen.of("torch") == sys.executable
    with pytest.raises(UsageError, match="BACKEND=PATH"):
        Interpreters.parse(["/usr/bin/python3"])
    with pytest.raises(EnvironmentLackError, match="no interpreter at /no/python"):
        Interpreters.parse(["torch=/no/python"])


def test_only_its_own_process_ends_and_also_when_the_caller_is_killed(tmp_path: Path) -> None:
    code = (
        "import time\nfrom matchrt.workers import Worker\na = Worker(); b = Worker(); a.end()\n"
        "print(b.ask('hello')['python'] and b.pid, flush=True)\ntime.sleep(60)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    assert Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    caller.kill()
    caller.wait()
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
