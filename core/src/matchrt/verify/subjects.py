"""The two sides of a comparison: a bundle on a backend, in this process or in one of another Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import numpy as np

from matchrt.bundle import BundleManifest
from matchrt.errors import BackendError
from matchrt.plugins import Plugins
from matchrt.progress import Progress
from matchrt.runtime import Matcher, load
from matchrt.runtime.steps import as_contract, run_steps
from matchrt.workers import Interpreters, Worker

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class How:
    """How a bundle is run: the arguments of `matchrt.load`, and the interpreter (None: in this process)."""

    backend: str = "onnxruntime"
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    provider: str | None = None
    threads: int = 0
    trust: tuple[str, ...] = ()
    interpreter: str | None = None

    @property
    def title(self) -> str:
        """For people."""
        return " ".join(p for p in (self.backend, self.provider, self.precision) if p)


class Subject(Protocol):
    """An open bundle. Preprocessing and postprocessing are done by the caller, the same for both sides."""

    def describe(self) -> dict[str, Any]:
        """Backend, precision, versions: JSON-able."""

    def run(self, network: str, inputs: Tensors) -> Tensors:
        """Outputs of one network on the host, in the contract's types."""

    def steps(self, tensors: Tensors) -> Tensors:
        """`tensors` with the outputs of every step."""

    def close(self) -> None:
        """Free the engines."""


class Local:
    """A subject in this process."""

    def __init__(self, bundle: Path, how: How, plugins: Plugins, progress: Progress | None = None) -> None:
        self.how = how
        self.matcher: Matcher = load(
            bundle,
            backend=how.backend,
            precision=how.precision,
            provider=how.provider,
            threads=how.threads,
            trust=how.trust,
            options=how.options,
            progress=progress,
            plugins=plugins,
        )

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        from matchrt.workers.machine import device_of, versions_of

        versions, device = versions_of(self.how.backend), device_of(self.matcher)
        return {"backend": self.how.backend, "precision": self.how.precision, "versions": dict(versions), "device": device}

    def run(self, network: str, inputs: Tensors) -> Tensors:
        """See `Subject`."""
        contract = {t.name: t for t in self.matcher.manifest.network(network).outputs}
        outputs = self.matcher.sessions()[network].run(inputs)
        return {n: as_contract(np.array(v), contract.get(n)) for n, v in outputs.items()}

    def steps(self, tensors: Tensors) -> Tensors:
        """See `Subject`."""
        found = run_steps(self.matcher.manifest, self.matcher.sessions(), tensors)
        return {n: np.array(v) for n, v in found.items()}

    def close(self) -> None:
        """See `Subject`."""
        self.matcher.close()


class Remote:
    """A subject in a process of another Python."""

    def __init__(self, bundle: Path, how: How, manifest: BundleManifest, progress: Progress | None = None) -> None:
        self.how, self.manifest = how, manifest
        self.worker = Worker(how.interpreter, name=f"{how.backend} worker")
        try:
            self.opened = self.worker.open(
                bundle,
                backend=how.backend,
                precision=how.precision,
                provider=how.provider,
                threads=how.threads,
                trust=how.trust,
                options=how.options,
                progress=progress,
            )
        except BaseException:
            self.worker.end()
            raise

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return {
            "backend": self.how.backend,
            "precision": self.how.precision,
            "versions": dict(self.opened.versions),
            "device": dict(self.opened.device),
            "interpreter": self.how.interpreter,
        }

    def run(self, network: str, inputs: Tensors) -> Tensors:
        """See `Subject`."""
        return self.worker.run(network, inputs)

    def steps(self, tensors: Tensors) -> Tensors:
        """See `Subject`."""
        return self.worker.run_steps(tensors)

    def close(self) -> None:
        """See `Subject`."""
        self.worker.end()


class Opened:
    """A context manager around a subject; errors of opening name the side."""

    def __init__(
        self, side: str, bundle: Path, manifest: BundleManifest, how: How, plugins: Plugins, progress: Progress | None
    ) -> None:
        try:
            self.subject: Subject = (
                Local(bundle, how, plugins, progress)
                if how.interpreter is None
                else Remote(bundle, how, manifest, progress)
            )
        except BackendError as error:
            raise type(error)(f"{side} ({how.title}): {error.message}", hint=error.hint) from error

    def __enter__(self) -> Subject:
        return self.subject

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.subject.close()


def with_interpreter(how: How, interpreters: Interpreters) -> How:
    """`how` under the interpreter that the user named for its backend, if any."""
    from dataclasses import replace

    chosen = interpreters.by_backend.get(how.backend)
    return how if chosen is None else replace(how, interpreter=chosen)
