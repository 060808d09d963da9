"""Build every shipped matcher at full size with TensorRT-RTX, in float32 and float16. No GPU is needed, and none is used.

    uv run python benchmarks/rtx_full.py [--target sm89] [--only roma:full] [--limit 600] [--out docs/benchmarks/rtx-full-DATE.json]

Each matcher is converted with random weights (without the check against PyTorch, which has receipts of its own). Then each network is
prepared and built as `matchrt build` does, each in a process of its own that is stopped after `--limit` seconds, or when the machine runs
out of memory. The receipt says for each: seconds, engine bytes, peak memory on the host, or why there is no engine. Networks whose ONNX
file equals one that was built are named, not built again. A receipt that exists is continued: what it holds is not repeated.

Building proves that TensorRT-RTX takes the graph. That the engine runs, and how fast, only a GPU can tell.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matchrt.bench.receipt import now
from matchrt.workers.machine import machine_record

CASES: dict[str, dict[str, object]] = {
    "superpoint-lightglue:full": {},
    "superpoint-lightglue:mini": {},
    "eloftr:full": {},
    "eloftr:opt": {},
    "matchanything-eloftr:full": {},
    "roma:encoder-gp": {},
    "roma:coarse": {},
    "roma:full": {},
    "matchanything-roma:full": {},
    "matchanything-roma:coarse": {},
    "matchanything-roma:encoder-gp": {},
    "roma:full upsample=false": {"upsample": False},
    "roma:full pairs=4": {"pairs": 4},
}
"""Matcher and variant, and the settings that differ from its defaults."""

PRECISIONS = ("fp32", "fp16")
MIB = 1024


def peak_mib(process: int | str = "self") -> int:
    """Most resident memory of a process since it began its program, in MiB; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) // MIB


class Builder:
    """Watches the processes that this one starts while the block runs; `peak_mib` is the most that one of them held.

    Not by `getrusage`, which counts what this process held when it forked.
    """

    peak_mib = 0

    def __enter__(self) -> Builder:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            for children in Path("/proc/self/task").glob("*/children"):
                for child in children.read_text().split():
                    if (
                        Path(f"/proc/{child}/cmdline").exists()
                        and b"isolated" in Path(f"/proc/{child}/cmdline").read_bytes()
                    ):
                        self.peak_mib = max(self.peak_mib, peak_mib(child))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def available_mib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) // MIB


def convert(name: str, bundle: Path) -> dict[str, Any]:
    from matchrt.export.convert import ConvertRequest, run_convert
    from matchrt.plugins import get_plugins

    matcher, _, variant = name.split()[0].partition(":")
    request = ConvertRequest(
        matcher=matcher, variant=variant, output=bundle, random_seed=1, settings=CASES[name], check_pairs=()
    )
    result = run_convert(request, get_plugins())
    manifest = result.manifest
    return {
        "seconds": dict(result.seconds),
        "peak_mib": peak_mib(),
        "settings": manifest.settings,
        "axes": [a.model_dump() for a in manifest.axes],
        "onnx": {n.name: manifest.files[n.file].sha256 for n in manifest.networks},
        "onnx_bytes": {n.name: manifest.files[n.file].size for n in manifest.networks},
    }


def build(bundle: Path, network: str, precision: str, target: str) -> dict[str, Any]:
    """One network, as `matchrt build` prepares and builds it, with the bundle's own range of every axis."""
    from matchrt.backends.building import BuildJob
    from matchrt.backends.tensorrt.backend import TensorRtRtxBackend
    from matchrt.bundle import read_bundle
    from matchrt.engines.build import BuildRequest, resolve_options
    from matchrt.engines.isolated import build_isolated
    from matchrt.engines.prepared import prepare_network
    from matchrt.engines.profiles import axis_ranges, frozen_axes, profiles_of
    from matchrt.errors import MatchrtError
    from matchrt.plugins import MatcherHooks, get_plugins
    from matchrt.progress import Silent

    opened, backend, plugins = read_bundle(bundle), TensorRtRtxBackend(), get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(opened.manifest.matcher.id))
    contract, ranges = opened.manifest.network(network), axis_ranges(opened.manifest)
    request, goal = BuildRequest(precision=precision, targets=(target,)), backend.target(precision)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        begin = time.perf_counter()
        prepared = prepare_network(opened, hooks, network, goal, frozen_axes(contract, ranges), Path(folder))
        found["prepare_seconds"] = round(time.perf_counter() - begin, 1)
        found["linter"] = [f"{f.severity}: {f.node} ({f.operator}): {f.limit}" for f in prepared.findings]
        job = BuildJob(
            network=network,
            graph=prepared.graph,
            precision=precision,
            profiles=profiles_of(contract, ranges),
            options=backend.options(resolve_options(hooks, backend, goal, request)),
            targets=request.targets,
            kept=prepared.kept,
        )
        preparing, builder = peak_mib(), Builder()
        begin = time.perf_counter()
        try:
            with builder:
                output = build_isolated(backend, job, Silent())
            found |= {"result": "built", "engine_bytes": len(output.payload), "warnings": list(output.messages)}
        except MatchrtError as error:
            found |= {"result": "refused", "reason": error.message}
        found["build_seconds"] = round(time.perf_counter() - begin, 1)
    return {**found, "peak_mib_preparing": preparing, "peak_mib_building": builder.peak_mib}


def in_process_of_its_own(words: list[str], limit: float, reserve: int) -> dict[str, Any]:
    """The JSON that this script prints when called with `words`; or that it was stopped, and why."""
    begin = time.monotonic()
    command = [sys.executable, __file__, *words]
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, stdout=answer, start_new_session=True)
        why = ""
        while process.poll() is None and not why:
            time.sleep(0.2)
            if time.monotonic() - begin > limit:
                why = f"the limit of {limit:g} s"
            elif available_mib() < reserve:
                why = f"less than {reserve} MiB of memory were left"
        seconds = round(time.monotonic() - begin, 1)
        if why:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {"result": "stopped", "reason": why, "seconds": seconds}
        if process.returncode:
            return {"result": "failed", "reason": f"exit code {process.returncode}", "seconds": seconds}
        answer.seek(0)
        found: dict[str, Any] = json.loads(answer.read().splitlines()[-1])
        return found


def run_case(name: str, receipt: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
    bundle = folder / "bundle"
    case: dict[str, Any] = receipt["matchers"].setdefault(name, {})
    case["convert"] = in_process_of_its_own(
        ["--phase", "convert", "--only", name, "--bundle", str(bundle)], options.convert_limit, options.reserve
    )
    print(name, json.dumps(case["convert"].get("seconds")), file=sys.stderr, flush=True)
    networks = case.setdefault("networks", {})
    for network, digest in case["convert"].get("onnx", {}).items():
        for precision in options.precision:
            found = networks.setdefault(network, {})
            same = built_before(receipt, name, network, digest, precision)
            if same:
                found[precision] = {"result": "same", "as": same}
            elif found.get(precision, {}).get("result") not in ("built", "same"):
                words = ["--phase", "build", "--bundle", str(bundle), "--network", network, "--precision", precision]
                found[precision] = in_process_of_its_own(
                    [*words, "--target", options.target], options.limit, options.reserve
                )
            print(name, network, precision, json.dumps(found[precision])[:300], file=sys.stderr, flush=True)
            write(options.out, receipt)


def built_before(receipt: dict[str, Any], name: str, network: str, digest: str, precision: str) -> str:
    """Another matcher's network with the same ONNX file, if that was built."""
    for other, case in receipt["matchers"].items():
        for candidate, sha256 in case.get("convert", {}).get("onnx", {}).items():
            record = case.get("networks", {}).get(candidate, {}).get(precision, {})
            if other != name and sha256 == digest and record.get("result") == "built":
                return f"{other} {candidate}"
    return ""


def write(path: Path, receipt: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(receipt, indent=1) + "\n")


def main() -> None:
    day = datetime.now(timezone.utc).date().isoformat()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--only", action="append", choices=tuple(CASES), help="this matcher (may be given again)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one network")
    parser.add_argument("--convert-limit", type=float, default=1800)
    parser.add_argument("--reserve", type=int, default=1500, help="MiB that must stay free on the machine")
    parser.add_argument("--out", type=Path, default=Path(f"docs/benchmarks/rtx-full-{day}.json"))
    parser.add_argument("--phase", choices=("convert", "build"), help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase == "convert":
        print(json.dumps(convert(options.only[0], options.bundle)))
        return
    if options.phase == "build":
        print(json.dumps(build(options.bundle, options.network, options.precision[0], options.target)))
        return
    options.precision = options.precision or list(PRECISIONS)
    receipt: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    receipt |= {
        "what": "full-size builds with TensorRT-RTX, random weights, without a GPU; the engines were not run",
        "date": now(),
        "machine": machine_record(("numpy", "torch", "onnx", "onnxruntime", "tensorrt_rtx")),
        "target": options.target,
        "limit_seconds": options.limit,
        "load_average_at_start": [round(value, 1) for value in os.getloadavg()],
    }
    receipt.setdefault("matchers", {})
    for name in options.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            run_case(name, receipt, options, Path(folder))


if __name__ == "__main__":
    main()
