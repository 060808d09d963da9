"""Convert RoMa at full size (560 and 864, symmetric) on the CPU, then race onnxruntime against eager PyTorch.

    uv run python benchmarks/roma_full_convert.py [--threads 2] [--rounds 2] [--out docs/benchmarks/roma-full-convert.json]

Writes a receipt: seconds and peak memory of every phase of `matchrt convert matchanything-roma --random-weights 1`, what its check found,
the sizes of the files, and seconds of both ways on one pair, measured in turns in one process. Needs about 14 GB of memory.
Random weights cost what trained ones cost; they say nothing about matching.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from matchrt.bench.receipt import now
from matchrt.workers.machine import machine_record

MIB = 1024


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MIB


def resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // MIB**2


def load() -> list[float]:
    return [round(value, 1) for value in os.getloadavg()]


class Watch:
    """Progress that notes when each stage and network began, and the most resident memory until the next."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self._stage = ""
        self._begin = time.perf_counter()
        self._most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.1):
            self._most = max(self._most, resident_mib())

    def _note(self, name: str) -> None:
        now_ = time.perf_counter()
        if self.stages:
            self.stages[-1]["seconds"] = round(now_ - self._begin, 1)
            self.stages[-1]["peak_mib"] = max(self._most, resident_mib())
            print(json.dumps(self.stages[-1]), file=sys.stderr, flush=True)
        self._begin, self._most = now_, resident_mib()
        self.stages.append({"stage": name})

    def start(self, stage: str, total: int | None) -> None:
        self._stage = stage
        self._note(stage)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        if detail:
            self._note(f"{self._stage}: {detail}")

    def finish(self) -> None:
        self._note(f"after {self._stage}")

    def close(self) -> list[dict[str, Any]]:
        self._note("end")
        self._over.set()
        return [stage for stage in self.stages[:-1] if stage["seconds"] > 0]


def convert(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from matchrt.export.convert import ConvertRequest, run_convert
    from matchrt.plugins import get_plugins

    torch.set_num_threads(options.threads)
    watch = Watch()
    settings = {"size": options.size, "upsample_size": options.upsample_size}
    request = ConvertRequest(
        matcher="matchanything-roma", variant=options.variant, output=bundle, random_seed=1, settings=settings
    )
    before = load()
    result = run_convert(request, get_plugins(), watch)
    return {
        "load_average": {"before": before, "after": load()},
        "seconds": dict(result.seconds),
        "stages": watch.close(),
        "peak_mib": peak_mib(),
        "check": result.check.to_dict(),
        "files_mib": {p.name: round(p.stat().st_size / MIB**2, 1) for p in sorted(bundle.iterdir())},
    }


def race(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of both ways in turns, onnxruntime first; the first round of each warms up and is not counted."""
    import numpy as np
    import torch

    from matchrt.backends.onnxruntime import OnnxRuntimeBackend
    from matchrt.bundle import read_bundle
    from matchrt.export.check import run_network
    from matchrt.export.weights import random_weights
    from matchrt.images.read import read_image
    from matchrt.plugins import MatcherHooks, get_plugins
    from matchrt.samples import sample_pairs
    from matchrt.settings import resolve

    torch.set_num_threads(options.threads)
    plugins = get_plugins()
    spec = plugins.matcher("matchanything-roma")
    hooks = MatcherHooks(plugins, spec)
    variant = spec.variant(read_bundle(bundle).manifest.matcher.variant)
    chosen = {"size": options.size, "upsample_size": options.upsample_size}
    settings = resolve(spec.settings, ("flag", chosen), environment={})
    network, _ = random_weights(hooks, variant, settings, 1)
    parts = {n.name: network.get_submodule(n.module_path) for n in spec.networks_of(variant)}
    kept = torch.nn.Module()  # parts made once, as a user's script would
    for name, part in parts.items():
        kept.add_module(name, part)
    backend = OnnxRuntimeBackend()
    sessions = {n: backend.open(n, bundle / f"{n}.onnx", {"threads": options.threads}).session() for n in parts}
    pair = sample_pairs()[0]
    images = (read_image(pair.image0), read_image(pair.image1))
    prepared, _ = hooks.preprocess(images, settings)
    seconds: dict[str, list[dict[str, float]]] = {"onnxruntime": [], "eager": []}
    answers: dict[str, dict[str, np.ndarray]] = {}
    before = load()
    for number in range(options.rounds + options.warm_up):
        for way in seconds:
            tensors, spans = dict(prepared), {}
            for step in spec.steps_of(variant):
                inputs = {n: tensors[s] for n, s in step.inputs.items()}
                begin = time.perf_counter()
                if way == "eager":
                    outputs = run_network(kept, spec.network(step.network), inputs)
                else:
                    outputs = sessions[step.network].run(inputs)
                spans[step.network] = round(time.perf_counter() - begin, 2)
                tensors.update({t: outputs[n] for n, t in step.outputs.items()})
            spans["total"] = round(sum(spans.values()), 2)
            print(way, number, json.dumps(spans), file=sys.stderr, flush=True)
            answers[way] = tensors
            if number >= options.warm_up:
                seconds[way].append(spans)
    best = {way: min(r["total"] for r in rounds) for way, rounds in seconds.items()}
    gap = np.abs(answers["eager"]["warp"] - answers["onnxruntime"]["warp"])
    return {
        "load_average": {"before": before, "after": load()},
        "pair": pair.name,
        "warm_up_rounds": options.warm_up,
        "seconds": seconds,
        "best_seconds": best,
        "eager_over_onnxruntime": round(best["eager"] / best["onnxruntime"], 3),
        "warp_difference": {"max": float(gap.max()), "mean": float(gap.mean())},
        **anchor_flips(network, answers),
        "peak_mib_of_both": peak_mib(),
    }


def anchor_flips(network: Any, answers: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Tokens whose best anchor differs between the ways, each from its own mean and features; a flip moves a patch of the warp."""
    import torch

    if any("mean" not in tensors for tensors in answers.values()):
        return {}
    with torch.inference_mode():
        best = [
            network.match_decoder(torch.from_numpy(t["mean"][0]), torch.from_numpy(t["f16"][0]))[0].argmax(-1)
            for t in answers.values()
        ]
    return {"anchor_flips": int((best[0] != best[1]).sum()), "tokens": best[0].numel()}


def in_process_of_its_own(phase: str, bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """So that each phase's peak memory is its own."""
    words = [sys.executable, __file__, "--phase", phase, "--bundle", str(bundle)]
    for name in ("threads", "rounds", "warm_up", "size", "upsample_size", "variant"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=0)
    parser.add_argument("--size", default="560x560")
    parser.add_argument("--upsample-size", default="864x864")
    parser.add_argument("--variant", default="full")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/roma-full-convert.json"))
    parser.add_argument("--bundle", type=Path, help="keep the bundle here; race an existing one with --phase race")
    parser.add_argument("--phase", choices=("convert", "race"), help="one phase only, printed as JSON")
    options = parser.parse_args()
    if options.phase:
        work = convert if options.phase == "convert" else race
        print(json.dumps(work(options.bundle, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or Path(folder) / "roma"
        receipt: dict[str, Any] = {
            "what": f"matchanything-roma:{options.variant}, random weights, symmetric, float32, CPU",
            "sizes": [options.size, options.upsample_size],
            "date": now(),
            "machine": machine_record(("numpy", "torch", "onnx", "onnxruntime")),
            "threads": options.threads,
            "convert": in_process_of_its_own("convert", bundle, options),
        }
        write(options.out, receipt)
        if options.rounds:
            receipt["race"] = in_process_of_its_own("race", bundle, options)
            write(options.out, receipt)
    print(json.dumps(receipt, indent=2))


def write(path: Path, receipt: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    main()
