"""Findings about GPUs, the driver, backends with their libraries, processors and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matchrt.doctor.findings import Finding, State
from matchrt.doctor.installed import Distribution
from matchrt.doctor.trial import Trial

_GIB = 1 << 30
_LOW_MEMORY = 2 * _GIB
_WITHOUT = "without a GPU use --backend onnxruntime"
LIBRARIES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt_rtx": ("tensorrt-rtx", "rtx")}
"""Backend to distribution and extra."""
PROVIDER_PACKAGES = {
    "cuda": "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    "tensorrt": "pip uninstall -y onnxruntime && pip install onnxruntime-gpu 'matchrt[tensorrt]'",
    "rtx": "use --backend tensorrt_rtx, or a build of onnxruntime with this provider (the index's wheels carry none)",
}


def gpu_findings(trial: Trial) -> list[Finding]:
    """The driver and each GPU, or why there is none."""
    answer = trial.answer
    if not answer or "gpus" not in answer:
        text = f"asking the NVIDIA driver: {trial.problem or 'no answer'}"
        return [Finding("gpu", "driver", State.BROKEN, text, f"reinstall the NVIDIA driver, then reboot; {_WITHOUT}")]
    if not answer["gpus"]:
        state = State.BROKEN if "cuInit" in answer["reason"] or "cuDevice" in answer["reason"] else State.MISSING
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        repair = f"install the NVIDIA driver (nvidia.com/drivers), then `nvidia-smi`; {_WITHOUT}"
        if visible is not None:
            repair = f"unset CUDA_VISIBLE_DEVICES (it is {visible!r}); {_WITHOUT}"
        return [Finding("gpu", "gpu", state, answer["reason"], repair, {"gpus": []})]
    version = answer.get("driver_version") or "of unknown version"
    text = f"{version}, supports CUDA up to {answer['driver']}"
    findings = [
        Finding("gpu", "driver", State.OK, text, data={"version": version, "cuda": answer["driver"]}),
    ]
    for g in answer["gpus"]:
        memory = f"{g['memory_bytes'] / _GIB:.1f} GiB"
        text = f"{g['name']}, compute capability {g['compute_capability']}, {memory}, {g['multiprocessors']} multiprocessors"
        findings.append(Finding("gpu", f"gpu {g['index']}", State.OK, text, data=g))
    return findings


def backend_finding(name: str, trial: Trial, gpu: Mapping[str, Any], found: Mapping[str, Distribution]) -> Finding:
    """What a backend can do here."""
    answer = dict(trial.answer)
    extra = LIBRARIES.get(name, ("", ""))[1]
    install = f"pip install 'matchrt[{extra}]'" if extra else "`matchrt plugins` names its distribution; reinstall that"
    if name == "onnxruntime":
        install = "pip install --force-reinstall onnxruntime"
    if trial.died and not trial.at.startswith("provider "):
        return Finding(
            "backends", name, State.BROKEN, f"its library {trial.died}", f"{install} --force-reinstall", answer
        )
    if not answer.get("version"):
        reason = answer.get("reason") or trial.problem or "it gives no version"
        state = State.MISSING if "is not installed" in reason else State.BROKEN
        return Finding("backends", name, state, reason, install, answer)
    reason = clash(name, answer, gpu, found)
    if reason:
        answer["can_run"], answer["reason"] = False, reason[0]
    builds, runs = (("" if answer[key] else "not ") for key in ("can_build", "can_run"))
    value = f"{answer['version']}, can {builds}build and can {runs}run here".replace("can not", "cannot")
    if answer["can_run"] and (answer["can_build"] or answer["as_is"]):
        return Finding("backends", name, State.OK, value, data=answer)
    repair = reason[1] if reason else f"run it where a GPU is; {_WITHOUT}"
    return Finding("backends", name, State.WARN, f"{value}: {answer['reason']}", repair, answer)


def clash(
    name: str, answer: Mapping[str, Any], gpu: Mapping[str, Any], found: Mapping[str, Distribution]
) -> tuple[str, str] | None:
    """Why a library cannot run although there is a GPU, with the repair: another CUDA than the driver's, an unknown architecture."""
    if not gpu.get("gpus"):
        return None
    driver = str(gpu["driver"])
    prefix = LIBRARIES.get(name, ("",))[0]
    built = {n.rpartition("-cu")[2][:2] for n in found if prefix and n.startswith(f"{prefix}-cu")}
    majors = [int(b) for b in built if b.isdigit()]
    if majors and min(majors) > int(driver.partition(".")[0]):
        need = f"{prefix} is built for CUDA {min(majors)}, the driver supports CUDA up to {driver}"
        return need, f"pip install {prefix}-cu{driver.partition('.')[0]}, or install a newer NVIDIA driver"
    capability = gpu["gpus"][0]["compute_capability"]
    targets = answer.get("targets")
    if targets and f"SM{capability.replace('.', '')}" not in targets:
        known = ", ".join(t.lower() for t in targets)
        return (
            f"it knows no GPU of compute capability {capability} (it knows {known})",
            "use --backend tensorrt on this GPU",
        )
    return None


def provider_findings(trial: Trial, gpus: bool) -> list[Finding]:
    """Each provider of onnxruntime: carried by this build, and started."""
    carried, started = trial.answer.get("carried", []), trial.answer.get("started", [])
    findings = []
    for name in ("cpu", "cuda", "tensorrt", "rtx"):
        install = PROVIDER_PACKAGES.get(name, "pip install --force-reinstall onnxruntime")
        data = {"carried": name in carried, "started": name in started}
        failure = trial.failures.get(f"provider {name}", "")
        if trial.died and trial.at == f"provider {name}":
            failure = f"starting it {trial.died}"
        state, value, repair = State.OK, "started", ""
        if name not in carried:
            state, value, repair = State.MISSING, "this build of onnxruntime does not carry it", install
        elif failure:
            state, value, repair = (
                State.BROKEN,
                failure,
                "install the CUDA and cuDNN that this build asks for, or choose --provider cpu",
            )
        elif name not in started:
            state = State.WARN
            value, repair = (
                ("carried, not started", "run doctor again") if gpus else ("carried, no GPU to start on", _WITHOUT)
            )
        findings.append(Finding("providers", f"onnxruntime:{name}", state, value, repair, data))
    return findings


def torch_finding(trial: Trial, installed: bool, gpus: bool) -> Finding:
    """torch, which conversion and the reference need."""
    answer = trial.answer
    if not installed:
        text = "not installed; conversion and the reference need it, running a bundle does not"
        return Finding("backends", "torch", State.MISSING, text, "pip install 'matchrt[convert]'")
    if trial.problem or "version" not in answer:
        text = f"importing it {trial.died}" if trial.died else trial.problem or "it gives no version"
        repair = "pip install --force-reinstall torch"
        return Finding("backends", "torch", State.BROKEN, text, repair, answer)
    built = f"built for CUDA {answer['cuda']}" if answer["cuda"] else "without CUDA"
    use = "uses the GPU" if answer["cuda_usable"] else "on CPU"
    value = f"{answer['version']}, {built}, {use}"
    if gpus and not answer["cuda_usable"]:
        repair = "install the build of torch for this driver's CUDA: https://pytorch.org/get-started/locally"
        return Finding("backends", "torch", State.WARN, f"{value} although there is a GPU", repair, answer)
    return Finding("backends", "torch", State.OK, value, data=answer)


def machine_findings() -> list[Finding]:
    """Processors that this process may use, and memory."""
    every = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    quota = _cpu_quota()
    cores = f"{allowed} of {every}" + (f", held to {quota:g} by its control group" if quota else "")
    findings = [
        Finding("machine", "processors", State.OK, cores, data={"count": every, "usable": allowed, "quota": quota})
    ]
    memory = _memory()
    if memory is None:
        return findings
    total, free = memory
    low = free < _LOW_MEMORY
    findings.append(
        Finding(
            "machine",
            "memory",
            State.WARN if low else State.OK,
            f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f} GiB",
            "close other programs; conversion of the large matchers takes several GiB" if low else "",
            {"total_bytes": total, "free_bytes": free},
        )
    )
    return findings


def _cpu_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> tuple[int, int] | None:
    """Bytes in all and free, a control group's limit counted."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[n].split()[0]) * 1024 for n in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, free
    return min(total, limit), max(0, min(free, limit - used))
