"""Who is compared: bundles on backends in precisions and batches, and what people would use instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matchrt.bundle import Bundle
from matchrt.errors import UsageError
from matchrt.workers.peers import PeerName

GPU_BACKENDS = frozenset({"tensorrt", "tensorrt_rtx"})
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
PEERS: Mapping[str, tuple[str, Mapping[str, str]]] = MappingProxyType(
    {
        "torch": ("fp32", {}),
        "torch-fp16": ("fp16", {"half": "autocast"}),
        "torch-half": ("fp16", {"half": "network"}),
        **{f"torch-compile-{mode}": ("fp16", {"half": "autocast", "compile": mode}) for mode in COMPILE_MODES},
    }
)
"""PyTorch's ways by name: precision and options of backend `torch`. fp32 is eager with TF32 off; fp16 is autocast, or for
`torch-half` the whole network in float16; the compiled ones run under autocast."""
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"torch-compile": tuple(f"torch-compile-{mode}" for mode in COMPILE_MODES)}
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the comparison. `peer` is its name among `PEERS`, or a function's; "" for our own backends."""

    bundle: Bundle
    bundle_name: str
    backend: str
    precision: str
    batch: int = 1
    peer: str = ""
    function: PeerName | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    provider: str | None = None

    @property
    def label(self) -> str:
        """For tables, unique within one group."""
        how = self.peer or f"{self.backend}{f' ({self.provider})' if self.provider else ''} {self.precision}"
        return how if self.batch == 1 else f"{how}, batch {self.batch}"

    @property
    def group(self) -> tuple[str, int]:
        """Contenders of one group do the same work, and may be compared: bundle and batch."""
        return self.bundle_name, self.batch

    @property
    def is_peer(self) -> bool:
        """Whether it is what people would use instead."""
        return bool(self.peer)

    @property
    def on_gpu(self) -> bool:
        """Whether it is to run on a GPU, as far as its options tell."""
        device = str(self.options.get("device", "cpu"))
        return self.backend in GPU_BACKENDS or (self.provider or "cpu") != "cpu" or device.startswith("cuda")


def plan(
    bundles: Mapping[str, Bundle],
    *,
    backends: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int],
    against: Sequence[str],
    provider: str | None = None,
    device: str | None = None,
    threads: int = 0,
) -> list[Contender]:
    """All contenders, bundle by bundle and batch by batch, our own first. `device` of the peers: by default the GPU if ours use it.

    Raises `UsageError` for an unknown peer, or where two rows would be the same.
    """
    on_gpu = any(b in GPU_BACKENDS for b in backends) or (provider or "cpu") != "cpu"
    device = device or ("cuda" if on_gpu else "cpu")
    planned: list[Contender] = []
    for name, bundle in bundles.items():
        for batch in batches:
            for backend in backends:
                for precision in precisions:
                    own = {"device": device} if backend == "torch" else {}
                    used = provider if backend == "onnxruntime" else None
                    planned.append(
                        Contender(
                            bundle=bundle,
                            bundle_name=name,
                            backend=backend,
                            precision=precision,
                            batch=batch,
                            provider=used,
                            options=own,
                        )
                    )
            planned += _peers(name, bundle, batch, against, device)
    rows = [(c.group, c.label) for c in planned]
    twice = next((r for r in rows if rows.count(r) > 1), None)
    if twice:
        raise UsageError(f"{twice[1]!r} is asked for twice for {twice[0][0]}")
    return planned


def _peers(name: str, bundle: Bundle, batch: int, against: Sequence[str], device: str) -> Iterator[Contender]:
    for text in against:
        if ".py:" in text:
            function = PeerName.parse(text)
            yield Contender(
                bundle=bundle,
                bundle_name=name,
                backend="peer",
                precision=function.options.get("precision", ""),
                batch=batch,
                peer=function.label,
                function=function,
                options={"device": device},
            )
            continue
        for peer in GROUPS.get(text, (text,)):
            if peer not in PEERS:
                known = ", ".join([*PEERS, *GROUPS])
                raise UsageError(f"--against: no peer is called {peer!r}", hint=f"known: {known}, PATH.py:FUNCTION")
            precision, options = PEERS[peer]
            yield Contender(
                bundle=bundle,
                bundle_name=name,
                backend="torch",
                precision=precision,
                batch=batch,
                peer=peer,
                options={"device": device, **options},
            )


def split_against(texts: Sequence[str]) -> list[str]:
    """Peers of `--against`, which may be repeated: names parted by commas; a PATH.py:FUNCTION stands by itself."""
    found: list[str] = []
    for text in texts:
        found += [text] if ".py:" in text else [t for t in text.split(",") if t]
    return list(dict.fromkeys(found))


def read_bundles(places: Sequence[str]) -> dict[str, Bundle]:
    """Bundles by short names: the folder's own, with its parent's where two are alike. Raises `BundleError`, `UsageError`."""
    from matchrt.bundle import read_bundle

    names: dict[str, Bundle] = {}
    paths = [Path(p).resolve() for p in places]
    for path in paths:
        name = path.name
        if sum(p.name == name for p in paths) > 1:
            name = f"{path.parent.name}/{name}"
        if name in names:
            raise UsageError(f"bundle {name} is given twice")
        names[name] = read_bundle(path)
    return names
