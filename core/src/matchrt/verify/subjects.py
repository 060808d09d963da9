"""The two sides of a comparison: a bundle on a backend, in this process or in one of another Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from matchrt.bundle import Bundle
from matchrt.plugins import Plugins
from matchrt.progress import Progress
from matchrt.runtime import Matcher, load
from matchrt.runtime.steps import run_network, run_steps
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
        return {
            "backend": self.how.backend,
            "precision": self.how.precision,
            "versions": dict(versions),
            "device": device,
        }

    def run(self, network: str, inputs: Tensors) -> Tensors:
        """See `Subject`."""
        return run_network(self.matcher.manifest, self.matcher.sessions(), network, inputs)

    def steps(self, tensors: Tensors) -> Tensors:
        """See `Subject`."""
        found = run_steps(self.matcher.manifest, self.matcher.sessions(), tensors)
        return {n: np.array(v) for n, v in found.items()}

    def close(self) -> None:
        """See `Subject`."""
        self.matcher.close()


class Remote:
    """A subject in a process of another Python."""

    def __init__(self, bundle: Path, how: How, progress: Progress | None = None) -> None:
        self.how = how
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


@contextmanager
def opened(bundle: Bundle, how: How, plugins: Plugins, progress: Progress | None = None) -> Iterator[Subject]:
    """A subject while the block runs. Raises as `matchrt.load` does."""
    subject: Subject = (
        Local(bundle.path, how, plugins, progress) if how.interpreter is None else Remote(bundle.path, how, progress)
    )
    try:
        yield subject
    finally:
        subject.close()


def with_interpreter(how: How, interpreters: Interpreters) -> How:
    """`how` under the interpreter that the user named for its backend, if any."""
    chosen = interpreters.by_backend.get(how.backend)
    return how if chosen is None else replace(how, interpreter=chosen)
