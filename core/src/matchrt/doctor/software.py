"""Findings about Python, packages, extras and plugins."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchrt.doctor.findings import Finding, State
from matchrt.doctor.installed import Distribution, Requirement, importable, normal, provider_of, rivals
from matchrt.doctor.trial import Trial

KNOWN_VARIABLES = ("CACHE", "OFFLINE", "PLUGINS", "DISABLE_PLUGINS", "DEBUG")


@dataclass(frozen=True)
class Package:
    """A requirement beside what is installed for it. `problem` is empty if that serves."""

    requirement: Requirement
    distribution: Distribution | None
    state: State
    problem: str = ""

    @property
    def version(self) -> str:
        """The installed version; "" if there is none."""
        return self.distribution.version if self.distribution else ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        name = self.distribution.name if self.distribution else None
        return {
            "requires": self.requirement.shown,
            "distribution": name,
            "version": self.version or None,
            "state": self.state.value,
            "problem": self.problem or None,
        }


def judge(requirement: Requirement, found: Mapping[str, Distribution], imports: Mapping[str, str]) -> Package:
    """What is installed for `requirement`; `imports` says of modules that were tried why they failed ("" if not)."""
    there = provider_of(requirement.name, found)
    tried = imports.get(requirement.module)
    if there is None and not importable(requirement.module):
        return Package(requirement, None, State.MISSING, "not installed")
    if tried:
        return Package(requirement, there, State.BROKEN, tried)
    if there is None:
        return Package(requirement, None, State.OK, "not installed by pip, so its version is not known")
    if there.fault:
        return Package(requirement, there, State.BROKEN, there.fault)
    if there.name == requirement.name and not requirement.admits(there.version):
        return Package(requirement, there, State.WARN, f"{there.version} is installed, {requirement.shown} is needed")
    if tried is None and not importable(requirement.module):
        return Package(requirement, there, State.BROKEN, f"there is no module {requirement.module}")
    return Package(requirement, there, State.OK)


def python_findings() -> list[Finding]:
    """Interpreter and platform, and matchrt's variables in the environment."""
    version = platform.python_version()
    fits = sys.version_info >= (3, 10)
    place = f"{platform.python_implementation()} {version}, {sys.executable}"
    repair = "" if fits else "use Python 3.10 or newer"
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return [
        Finding("python", "python", State.OK if fits else State.WARN, place, repair, {"version": version}),
        Finding("python", "platform", State.OK, system, data={"machine": platform.machine()}),
        *_variables(os.environ),
    ]


def _variables(environment: Mapping[str, str]) -> list[Finding]:
    ours = sorted(n for n in environment if n.startswith("MATCHRT_"))
    known = [n for n in ours if n.removeprefix("MATCHRT_") in KNOWN_VARIABLES or n.startswith("MATCHRT_SET_")]
    findings = [Finding("python", n, State.OK, environment[n] or "(empty)") for n in known]
    for name in ours:
        if name not in known:
            text = "is set, but matchrt reads no such variable"
            choices = ", ".join(f"MATCHRT_{n}" for n in KNOWN_VARIABLES)
            findings.append(Finding("python", name, State.WARN, text, f"unset {name}; there are {choices}"))
    return findings


def package_findings(packages: Sequence[Package], found: Mapping[str, Distribution]) -> list[Finding]:
    """matchrt itself, each package that core needs, and what stands in each other's way."""
    own = found.get("matchrt")
    version = own.version if own else "not installed as a distribution"
    state = State.BROKEN if own is None or own.fault else State.OK
    text = f"{version}: {own.fault}" if own and own.fault else version
    findings = [Finding("packages", "matchrt", state, text, "" if state is State.OK else "pip install matchrt")]
    for package in packages:
        name = package.distribution.name if package.distribution else package.requirement.name
        value = " · ".join(p for p in (package.version, package.problem) if p)
        findings.append(
            Finding("packages", name, package.state, value, repair_of(package), {"package": package.to_dict()})
        )
    for group in rivals(found):
        text = f"{' and '.join(group)} write into one folder, and the last one installed wins"
        repair = f"pip uninstall -y {' '.join(group)} && pip install {group[-1]}"
        findings.append(Finding("packages", group[0], State.WARN, text, repair))
    needed = {p.distribution.name for p in packages if p.distribution}
    for other in found.values():
        if other.fault and other.name not in needed | {"matchrt"}:
            repair = f"pip install --force-reinstall --no-deps {other.name}"
            findings.append(Finding("packages", other.name, State.WARN, other.fault, repair))
    return findings


def repair_of(package: Package) -> str:
    """The command that repairs one package; "" if nothing is wrong."""
    quoted = f"'{package.requirement.shown}'"
    return {
        State.OK: "",
        State.WARN: f"pip install --upgrade {quoted}",
        State.MISSING: f"pip install {quoted}",
        State.BROKEN: f"pip install --force-reinstall --no-deps {quoted}",
    }[package.state]


def extra_finding(extra: str, packages: Sequence[Package]) -> Finding:
    """One extra with its packages."""
    worst = max((p.state for p in packages), key=list(State).index, default=State.OK)
    bad = [p for p in packages if p.state is not State.OK]
    good = [f"{p.requirement.name} {p.version}".strip() for p in packages if p.state is State.OK]
    value = "; ".join(f"{p.requirement.name}: {p.problem}" for p in bad) or ", ".join(good)
    if bad and all(p.state is State.MISSING for p in bad):
        names = ", ".join(p.requirement.name for p in bad)
        value = f"{names} {'is' if len(bad) == 1 else 'are'} not installed"
    steps = [repair_of(p) for p in bad if p.state is State.BROKEN]
    if any(p.state in (State.MISSING, State.WARN) for p in bad):
        steps.append(f"pip install 'matchrt[{extra}]'")
    repair = " && ".join(steps)
    return Finding("extras", extra, worst, value, repair, {"packages": [p.to_dict() for p in packages]})


def plugin_findings(trial: Trial) -> list[Finding]:
    """Each plugin: what it gives, or why it failed or was switched off."""
    if not trial.answer:
        state = State.BROKEN
        repair = "MATCHRT_PLUGINS= matchrt plugins (then name one plugin after another, to find the one)"
        return [Finding("plugins", "plugins", state, f"loading them: {trial.problem or 'no answer'}", repair)]
    findings = []
    for p in trial.answer["loaded"]:
        gives = [*p["matchers"], *(f"backend {b}" for b in p["backends"])]
        gives += [f"format {f}" for f in p["formats"]] or ([] if gives else p["hooks"])
        value = f"{p['distribution']} {p['version']}".strip() + ": " + ", ".join(gives)
        findings.append(Finding("plugins", p["name"], State.OK, value, data=p))
    for p in trial.answer["failed"]:
        value = f"{p['distribution']} {p['version']}: " + "; ".join(p["causes"])
        name = normal(p["distribution"])
        repair = f"pip install --upgrade {name}, or leave it out with MATCHRT_DISABLE_PLUGINS={name}"
        findings.append(Finding("plugins", p["name"], State.BROKEN, value, repair, p))
    for p in trial.answer["disabled"]:
        repair = "unset MATCHRT_PLUGINS MATCHRT_DISABLE_PLUGINS, if it should load"
        findings.append(Finding("plugins", p["name"], State.WARN, f"{p['distribution']}: {p['reason']}", repair, p))
    if not any(p["matchers"] for p in trial.answer["loaded"]):
        repair = "pip install matchrt-lightglue matchrt-eloftr matchrt-roma"
        findings.append(Finding("plugins", "matchers", State.WARN, "no plugin brings a matcher", repair))
    return findings
