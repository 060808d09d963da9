"""The whole examination: what is tried, in which order, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from matchrt.builtin import register_backends
from matchrt.doctor import hardware, software
from matchrt.doctor.findings import Finding, Need, State
from matchrt.doctor.installed import Requirement, importable, installed, requirements
from matchrt.doctor.needs import BUILD_PACKAGES, Needs, known_names
from matchrt.doctor.places import place_findings
from matchrt.doctor.trial import Trial, attempt, attempt_imports
from matchrt.errors import UsageError

BACKENDS = tuple(b.name for b in register_backends() if b.name != "torch")
"""Core's backends; torch has a trial of its own, which tells its CUDA too."""


@dataclass(frozen=True)
class Report:
    """Findings in the order of their groups, and the needs that were asked for."""

    findings: tuple[Finding, ...]
    needs: tuple[Need, ...] = ()

    @property
    def unmet(self) -> tuple[Need, ...]:
        """Needs that are not met."""
        return tuple(n for n in self.needs if not n.met)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `findings`, `needs`, and how many findings are in which state."""
        counts = {s.value: sum(f.state is s for f in self.findings) for s in State}
        return {
            "findings": [f.to_dict() for f in self.findings],
            "needs": [n.to_dict() for n in self.needs],
            "counts": counts,
        }


@dataclass
class _Trials:
    """What runs in processes of its own while the rest is read."""

    plugins: Future[Trial]
    cuda: Future[Trial]
    torch: Future[Trial] | None
    imports: Future[dict[str, str]]
    backends: dict[str, Future[Trial]] = field(default_factory=dict)


def examine(wanted: Sequence[str] = ()) -> Report:
    """Look at everything; answer the needs called `wanted`. Raises `UsageError` for a need that is not known, and nothing else."""
    needed, fault = requirements()
    extras = sorted({r.extra for r in needed if r.extra})
    with ThreadPoolExecutor(max_workers=4) as pool:
        trials = _begin(pool, needed, wanted)
        extra_backends = [
            b for b in trials.plugins.result().answer.get("backends", {}) if b not in (*BACKENDS, "torch")
        ]
        _check_names(wanted, known_names(extras, [*BACKENDS, *extra_backends]), trials)
        for name in extra_backends:
            trials.backends[name] = pool.submit(attempt, "backend", name)
        findings = software.python_findings() + place_findings() + hardware.machine_findings()
        findings += _findings(trials, needed, fault, extras)
        imports = trials.imports.result()
    order = ("python", "packages", "extras", "plugins", "gpu", "backends", "providers", "places", "machine")
    findings.sort(key=lambda f: order.index(f.group))
    needs = Needs(findings, imports)
    return Report(tuple(findings), tuple(needs.answer(n) for n in dict.fromkeys(wanted)))


def _begin(pool: ThreadPoolExecutor, needed: Sequence[Requirement], wanted: Sequence[str]) -> _Trials:
    modules = [r.module for r in needed if not r.extra and r.name != "onnxruntime"]
    modules += [r.module for r in needed if r.extra in wanted and r.name not in ("torch", "tensorrt", "tensorrt-rtx")]
    if any(w.partition(":")[0] in BACKENDS and not w.endswith(":run") and w != "onnxruntime" for w in wanted):
        modules += BUILD_PACKAGES
    # A package that is absent is no news for a trial, one that BUILD_PACKAGES names excepted.
    modules = [m for m in dict.fromkeys(modules) if importable(m) or m in BUILD_PACKAGES]
    trials = _Trials(
        plugins=pool.submit(attempt, "plugins"),
        cuda=pool.submit(attempt, "cuda"),
        torch=pool.submit(attempt, "torch") if importable("torch") else None,
        imports=pool.submit(attempt_imports, modules),
    )
    trials.backends.update({name: pool.submit(attempt, "backend", name) for name in BACKENDS})
    return trials


def _check_names(wanted: Sequence[str], known: Sequence[str], trials: _Trials) -> None:
    unknown = [n for n in wanted if n not in known]
    if unknown:
        names = ", ".join(known)
        raise UsageError(f"doctor knows no need called {', '.join(map(repr, unknown))}", hint=f"known: {names}")


def _findings(trials: _Trials, needed: Sequence[Requirement], fault: str, extras: Sequence[str]) -> list[Finding]:
    found = installed()
    imports = dict(trials.imports.result())
    torch = trials.torch.result() if trials.torch else Trial()
    if torch.problem:
        imports["torch"] = torch.problem
    for name in hardware.LIBRARIES:
        if trials.backends[name].result().died:
            imports[name] = trials.backends[name].result().died
    onnxruntime = trials.backends["onnxruntime"].result()
    if not onnxruntime.answer:
        imports["onnxruntime"] = onnxruntime.problem
    packages = [software.judge(r, found, imports) for r in needed]
    gpu = trials.cuda.result()
    gpus = bool(gpu.answer.get("gpus"))
    findings = software.package_findings([p for p in packages if not p.requirement.extra], found)
    if fault:
        findings.append(
            Finding("packages", "requirements", State.BROKEN, fault, "pip install --force-reinstall matchrt")
        )
    findings += [software.extra_finding(e, [p for p in packages if p.requirement.extra == e]) for e in extras]
    findings += software.plugin_findings(trials.plugins.result())
    findings += hardware.gpu_findings(gpu)
    findings += [hardware.backend_finding(n, t.result(), gpu.answer, found) for n, t in trials.backends.items()]
    findings.append(hardware.torch_finding(torch, trials.torch is not None, gpus))
    return findings + hardware.provider_findings(onnxruntime, gpus)
