"""The parts of the examination, with answers that this machine cannot give."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchrt.doctor import hardware, places
from matchrt.doctor.child import IDENTITY
from matchrt.doctor.findings import Finding, State
from matchrt.doctor.installed import Distribution, parse, requirements, rivals
from matchrt.doctor.needs import Needs
from matchrt.doctor.software import judge
from matchrt.doctor.trial import Trial, attempt, attempt_imports

H200 = {
    "index": 0,
    "name": "NVIDIA H200",
    "compute_capability": "9.0",
    "multiprocessors": 132,
    "memory_bytes": 140 << 30,
}
GPU: dict[str, Any] = {"gpus": [H200], "driver": "12.8", "reason": "", "driver_version": "570.86"}


def module(folder: Path, name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    return name


def test_a_finding_without_repair_is_refused() -> None:
    with pytest.raises(ValueError, match="no repair"):
        Finding("a", "b", State.WARN, "c")


def test_a_crash_among_imports_names_the_culprit_and_the_rest_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = module(tmp_path, "doctor_crashes", "import ctypes; ctypes.string_at(0)", monkeypatch)
    leave = module(tmp_path, "doctor_leaves", "import os; print('gone'); os._exit(7)", monkeypatch)
    fail = module(tmp_path, "doctor_fails", "raise ImportError('libGL.so.1: cannot open shared object')", monkeypatch)
    exits = module(tmp_path, "doctor_exits", "raise SystemExit(3)", monkeypatch)
    quiet = module(tmp_path, "doctor_leaves_quietly", "import os; os._exit(0)", monkeypatch)
    outcome = attempt_imports(["json", crash, fail, exits, leave, quiet, "decimal"])
    assert outcome[quiet] == "importing it ended the process with exit code 0"
    assert outcome["json"] == outcome["decimal"] == ""
    assert outcome[crash] == "importing it crashed the process with SIGSEGV"
    assert outcome[fail] == "ImportError: libGL.so.1: cannot open shared object"
    assert outcome[exits] == "SystemExit: 3"
    assert outcome[leave].startswith("importing it ended the process with exit code 7")


def test_a_library_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, "doctor_hangs", "import time; time.sleep(600)", monkeypatch)
    trial = attempt("imports", "json", name, limit_s=2)
    assert trial.died == f"did not answer in 2 s ({name})"
    assert trial.done == ["json"]


def test_the_current_folder_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h5py.py").write_text("raise RuntimeError('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    assert attempt_imports(["h5py"]) == {"h5py": ""}


def test_the_identity_is_a_model() -> None:
    import onnx
    import onnxruntime

    model = onnx.load_from_string(IDENTITY)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(IDENTITY, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0] == 3


@pytest.mark.parametrize(
    ("line", "version", "admitted"),
    [
        ("numpy>=1.24", "1.24.0", True),
        ("numpy>=1.24", "1.9.9", False),
        ("torch>=2.10; extra == 'convert'", "2.10.0+cu128", True),
        ("torch<3,>=2.10; extra == 'convert'", "3.0", False),
        ("tensorrt>=8.6 ; extra == 'tensorrt'", "8.6.1.post1", True),
        ("tensorrt (>=8.6)", "8.5.3", False),
        ("pydantic", "0.1", True),
    ],
)
def test_bounds(line: str, version: str, admitted: bool) -> None:
    requirement = parse(line)
    assert requirement is not None
    assert requirement.admits(version) is admitted


def test_bounds_agree_with_packaging() -> None:
    """The oracle is what pip itself uses."""
    specifiers = pytest.importorskip("packaging.specifiers")
    rng = np.random.default_rng(0)
    for _ in range(200):
        bound, have = (".".join(map(str, rng.integers(0, 4, rng.integers(1, 4)))) for _ in range(2))
        operator = str(rng.choice([">=", ">", "<", "<="]))
        requirement = parse(f"x{operator}{bound}")
        assert requirement is not None
        assert requirement.admits(have) == specifiers.SpecifierSet(f"{operator}{bound}").contains(have)


def test_requirements_are_those_of_the_project_file() -> None:
    needed, fault = requirements()
    assert not fault
    extras = {e: {r.name for r in needed if r.extra == e} for e in {r.extra for r in needed}}
    assert {"convert", "tensorrt", "rtx", "pycuda", "hdf5"} <= set(extras)
    assert "torch" in extras["convert"]
    assert {"numpy", "onnxruntime"} <= extras[""]
    assert ("tomli" in extras[""]) == (sys.version_info < (3, 11))
    assert requirements("no-such-distribution")[1] == (
        "the metadata of no-such-distribution cannot be read: PackageNotFoundError"
    )


def test_two_builds_of_one_library_are_rivals() -> None:
    found = {n: Distribution(n, "1") for n in ("onnxruntime", "onnxruntime-gpu", "opencv-python")}
    assert rivals(found) == [("onnxruntime", "onnxruntime-gpu")]
    requirement = parse("opencv-python-headless>=4.8")
    assert requirement is not None
    assert judge(requirement, found, {}).state is State.OK


def test_a_distribution_without_its_module_is_broken() -> None:
    requirement = parse("no-such-thing>=1")
    assert requirement is not None
    found = {"no-such-thing": Distribution("no-such-thing", "2")}
    assert judge(requirement, found, {}).state is State.BROKEN
    assert judge(requirement, {}, {}).state is State.MISSING


def test_a_gpu_is_described() -> None:
    driver, gpu = hardware.gpu_findings(Trial(answer=GPU))
    assert driver.value == "570.86, supports CUDA up to 12.8"
    assert gpu.value == "NVIDIA H200, compute capability 9.0, 140.0 GiB, 132 multiprocessors"


@pytest.mark.parametrize(
    ("trial", "state", "word"),
    [
        (Trial(died="crashed the process with SIGSEGV (libcuda)", at="libcuda"), State.BROKEN, "SIGSEGV"),
        (Trial(answer={"gpus": [], "driver": "", "reason": "no NVIDIA driver is installed"}), State.MISSING, "driver"),
        (Trial(answer={"gpus": [], "driver": "", "reason": "cuInit returned 999"}), State.BROKEN, "999"),
    ],
)
def test_no_gpu_is_a_finding(trial: Trial, state: State, word: str) -> None:
    (finding,) = hardware.gpu_findings(trial)
    assert finding.state is state
    assert word in finding.value
    assert "--backend onnxruntime" in finding.repair


def library(**changes: Any) -> Trial:
    good = {"version": "11.4.0", "can_build": True, "can_run": True, "reason": "", "details": {}, "as_is": False}
    return Trial(answer={**good, **changes})


def test_a_library_for_a_newer_cuda_than_the_driver_cannot_run() -> None:
    found = {n: Distribution(n, "11.4.0") for n in ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs")}
    finding = hardware.backend_finding("tensorrt", library(), GPU, found)
    assert finding.state is State.WARN
    assert "built for CUDA 13, the driver supports CUDA up to 12.8" in finding.value
    assert finding.repair.startswith("pip install tensorrt-cu12")
    need = Needs([finding], {}).answer("tensorrt")
    assert "cannot run here: tensorrt is built for CUDA 13" in need.why[0]
    newer = {**GPU, "driver": "13.0"}
    assert hardware.backend_finding("tensorrt", library(), newer, found).state is State.OK


def test_an_architecture_that_the_library_does_not_know_cannot_run() -> None:
    trial = library(targets=["SM75", "SM89", "SM120"])
    finding = hardware.backend_finding("tensorrt_rtx", trial, GPU, {})
    assert "knows no GPU of compute capability 9.0 (it knows sm75, sm89, sm120)" in finding.value
    assert Needs([finding], {}).answer("tensorrt_rtx:build").met
    assert not Needs([finding], {}).answer("tensorrt_rtx:run").met
    ada = {**GPU, "gpus": [{**H200, "compute_capability": "8.9"}]}
    assert hardware.backend_finding("tensorrt_rtx", trial, ada, {}).state is State.OK


def test_a_backend_that_runs_bundles_as_they_are_needs_no_builder() -> None:
    finding = hardware.backend_finding("mine", library(can_build=False, as_is=True), {}, {})
    assert finding.state is State.OK
    assert Needs([finding], {}).answer("mine").met
    assert not Needs([finding], {}).answer("mine:build").met


def test_building_needs_the_packages_that_prepare_graphs() -> None:
    finding = hardware.backend_finding("tensorrt", library(), {**GPU, "driver": "13.0"}, {})
    assert Needs([finding], {"onnx": ""}).answer("tensorrt").met
    need = Needs([finding], {"onnx": "ModuleNotFoundError: No module named 'onnx'"}).answer("tensorrt")
    assert need.repairs == ("pip install onnx",)
    assert Needs([finding], {"onnx": "no"}).answer("tensorrt:run").met


def test_a_provider_that_does_not_start_is_broken() -> None:
    trial = Trial(
        answer={"carried": ["cpu", "cuda", "tensorrt"], "started": ["cpu"]},
        failures={"provider cuda": "onnxruntime could not start CUDAExecutionProvider"},
        died="crashed the process with SIGABRT (provider tensorrt)",
        at="provider tensorrt",
    )
    found = {f.name: f for f in hardware.provider_findings(trial, gpus=True)}
    assert [found[f"onnxruntime:{n}"].state.value for n in ("cpu", "cuda", "tensorrt", "rtx")] == [
        "ok",
        "broken",
        "broken",
        "missing",
    ]
    assert "SIGABRT" in found["onnxruntime:tensorrt"].value


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/engines"
    folder.mkdir(parents=True, mode=0o700)
    return folder


def engines(name: str = "engines cache") -> Finding:
    return next(f for f in places.place_findings() if f.name == name)


def test_a_room_is_measured(cache: Path) -> None:
    (cache / "timing").mkdir()
    (cache / "timing/a").write_bytes(b"12345")
    (cache / "b.engine").write_bytes(b"123")
    assert engines().state is State.OK
    assert (engines().data["files"], engines().data["bytes"], engines().data["mode"]) == (2, 8, "700")
    assert engines().data["owner"] == os.getuid()
    (cache / "quarantine").mkdir()
    (cache / "quarantine/x.reason").write_text("changed")
    assert (engines().state, engines().repair.split(" (")[0]) == (State.WARN, "matchrt engines prune")


def test_a_room_that_others_may_write_to_is_refused(cache: Path) -> None:
    cache.chmod(0o777)
    assert engines().state is State.BROKEN
    assert "writable by other users" in engines().value
    assert engines().repair.startswith(f"chmod 700 {cache}")


def test_a_file_or_a_loop_in_the_way(cache: Path) -> None:
    cache.rmdir()
    cache.write_text("a file")
    assert "is not a folder" in engines().value
    cache.unlink()
    cache.symlink_to(cache)
    assert "is not a folder" in engines().value
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file higher up")
    assert f"{cache.parent} is not a folder" in engines().value


def test_a_room_that_cannot_be_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal is the system call's stand-in here."""
    inner = cache / "timing"
    inner.mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path) == str(inner):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert engines().state is State.BROKEN
    assert engines().value == f"{cache}: {inner}: Permission denied"
    assert engines().repair.startswith("chmod -R u+rwX")


def test_a_full_disk_and_no_temporary_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1 << 20, "total": 1 << 40})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert engines("cache disk").state is State.WARN
    assert "matchrt engines prune" in engines("cache disk").repair

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert engines("temporary folder").state is State.BROKEN


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MATCHRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert engines("cache").state is State.BROKEN
