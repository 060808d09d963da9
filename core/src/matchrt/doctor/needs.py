"""Named needs: is this machine fit for an extra, a backend, a provider? Each answer names its reasons and repairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matchrt.doctor.findings import Finding, Need, State
from matchrt.doctor.hardware import PROVIDER_PACKAGES

PROVIDERS = ("cpu", *PROVIDER_PACKAGES)
ABILITIES = ("build", "run")
BUILD_PACKAGES = ("onnx", "onnx_graphsurgeon")
"""Modules that prepare a graph for a builder; they need no torch."""
_ABSENT = (State.BROKEN, State.MISSING)


def known_names(extras: Iterable[str], backends: Iterable[str]) -> list[str]:
    """Every name that `--for` takes.

    A backend's name asks for all that matching with it takes: running, and building unless it runs bundles as they are.
    `NAME:build` and `NAME:run` ask for one of them.
    """
    backends = [b for b in backends if b != "torch"]
    split = [f"{b}:{ability}" for b in backends for ability in ABILITIES]
    providers = [f"onnxruntime:{p}" for p in PROVIDERS]
    rest = ["core", "plugins", "gpu", "cuda", "torch", *extras, *backends]
    return [*dict.fromkeys(rest), *split, *providers]


class Needs:
    """Answers for one examination: its findings by group and name, and the imports that were tried."""

    def __init__(self, findings: Sequence[Finding], imports: Mapping[str, str]) -> None:
        self._by_name = {(f.group, f.name): f for f in reversed(findings)}
        self._findings = findings
        self._imports = imports

    def answer(self, name: str) -> Need:
        """The need called `name`, one of `known_names`."""
        head, _, tail = name.partition(":")
        if name in ("core", "plugins"):
            groups = ("packages", "places") if name == "core" else ("plugins",)
            mine = [f for f in self._findings if f.group in groups]
            return _from(
                name, [f for f in mine if f.state in _ABSENT or (f.state is State.WARN and "package" in f.data)]
            )
        if name == "gpu":
            return _from(name, [f for f in self._findings if f.group == "gpu" and f.state is not State.OK])
        if name == "cuda" or (head == "onnxruntime" and tail in PROVIDERS):
            return self._provider(name, tail or name)
        if ("backends", head) in self._by_name:
            return self._backend(name, head, (tail,) if tail else ())
        return _from(name, [f for f in [self._by_name[("extras", name)]] if f.state is not State.OK])

    def _provider(self, name: str, provider: str) -> Need:
        lacking = [self._by_name[("backends", "onnxruntime")], self._by_name[("providers", f"onnxruntime:{provider}")]]
        lacking = [f for f in lacking if f.state is not State.OK]
        if provider != "cpu":
            lacking += [f for f in self._findings if f.group == "gpu" and f.state is not State.OK]
        return _from(name, lacking)

    def _backend(self, name: str, backend: str, abilities: Sequence[str]) -> Need:
        finding = self._by_name[("backends", backend)]
        if backend == "torch" or finding.state in _ABSENT:
            return _from(name, [f for f in [finding] if f.state in _ABSENT])
        abilities = abilities or (("run",) if finding.data["as_is"] else ABILITIES)
        cannot = [a for a in abilities if not finding.data[f"can_{a}"]]
        reason = str(finding.data.get("reason") or "its library says so")
        why = [f"{backend} {finding.data['version']} cannot {a} here: {reason}" for a in cannot]
        repairs = [finding.repair] if cannot else []
        if "build" in abilities:
            lacking = {m: e for m in BUILD_PACKAGES if (e := self._imports.get(m, ""))}
            why += [f"building prepares graphs with {m}, which does not import: {e}" for m, e in lacking.items()]
            repairs += [f"pip install {' '.join(m.replace('_', '-') for m in lacking)}"] if lacking else []
        return Need(name, tuple(why), tuple(repairs))


def _from(name: str, lacking: Sequence[Finding]) -> Need:
    repairs = dict.fromkeys(f.repair for f in lacking)
    return Need(name, tuple(f"{f.name}: {f.value}" for f in lacking), tuple(repairs))
