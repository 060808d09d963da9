"""SuperPoint and LightGlue on a CPU: onnxruntime against eager PyTorch, in one run.

    uv run python benchmarks/lightglue_cpu.py [--rounds 15] [--threads 2] [--output FILE.json]

Each contender lives in its own process, so that its peak memory is its own; the onnxruntime processes never import
torch. Rounds are interleaved: every contender runs once a round, in turn, while the others wait. Weights are random,
the same for our network and its ONNX file; speed does not depend on them. The networks of transformers and kornia run
with their early exits off, as published otherwise. Other load on the machine favours onnxruntime in wall time: the
receipt holds the load average, which should start near zero. On a busy machine use one thread and read CPU time.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, KEYPOINTS = 480, 640, 1024
CASES = {
    "extractor 480x640, K 1024": ["onnxruntime", "pytorch", "pytorch-transformers"],
    "matcher 512 points": ["onnxruntime", "pytorch", "pytorch-kornia", "pytorch-transformers"],
    "matcher 1024 points": ["onnxruntime", "pytorch", "pytorch-kornia", "pytorch-transformers"],
}
PACKAGES = ("torch", "onnxruntime", "onnx", "transformers", "kornia", "numpy")


def photograph() -> np.ndarray:
    """(1, 1, HEIGHT, WIDTH) float32: a photograph, mirrored at the right to fill the width."""
    import skimage.data

    image = skimage.data.camera()[:HEIGHT].astype(np.float32) / 255
    return np.ascontiguousarray(np.pad(image, ((0, 0), (0, WIDTH - image.shape[1])), mode="reflect")[None, None])


def case_inputs(case: str) -> dict[str, np.ndarray]:
    if case.startswith("extractor"):
        size = np.array([[HEIGHT, WIDTH]], np.int32)
        return {"image": photograph(), "scale": np.ones((1, 2), np.float32), "valid_size": size}
    points = int(case.split()[1])
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {}
    for i in (0, 1):
        descriptors = rng.standard_normal((1, points, 256))
        descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
        inputs[f"keypoints{i}"] = (rng.random((1, points, 2)) * [WIDTH - 1, HEIGHT - 1]).astype(np.float32)
        inputs[f"descriptors{i}"] = descriptors.astype(np.float32)
        inputs[f"count{i}"] = np.array([points], np.int32)
        inputs[f"size{i}"] = np.array([[HEIGHT, WIDTH]], np.float32)
    return inputs


def network(case: str) -> Any:
    import torch

    from matchrt_lightglue.networks import LightGlue, SuperPoint

    torch.manual_seed(0)
    return (SuperPoint(max_keypoints=KEYPOINTS) if case.startswith("extractor") else LightGlue()).eval()


def model_path(folder: Path, case: str) -> Path:
    return folder / f"{case.split()[0]}.onnx"


def export(folder: Path) -> None:
    """Write both networks as ONNX files with dynamic shapes."""
    from matchrt.export.onnx_export import export_network, save_model
    from matchrt.model import Target
    from matchrt.patches import apply_patches
    from matchrt_lightglue.examples import ExampleSettings, example_inputs
    from matchrt_lightglue.patches import packed_attention
    from matchrt_lightglue.spec import EXTRACTOR, MATCHER

    examples = example_inputs("full", ExampleSettings(KEYPOINTS, keypoints_vary=True))
    for spec in (EXTRACTOR, MATCHER):
        net = network(spec.name)
        with apply_patches(net, [packed_attention()] if spec is MATCHER else []):
            model = export_network(net, spec, examples[spec.name], Target(opset=20))
        save_model(model, model_path(folder, spec.name))


def contender(case: str, kind: str, folder: Path, threads: int) -> Callable[[], Any]:
    inputs = case_inputs(case)
    if kind == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model_path(folder, case), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, inputs)
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    call = {"pytorch": ours, "pytorch-kornia": kornia, "pytorch-transformers": transformers}[kind](case, tensors)

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def ours(case: str, tensors: list[Any]) -> Callable[[], Any]:
    net = network(case)
    return lambda: net(*tensors)


def kornia(case: str, tensors: list[Any]) -> Callable[[], Any]:
    import kornia.feature

    net = kornia.feature.LightGlue(features=None, depth_confidence=-1, width_confidence=-1).eval()
    images = {
        f"image{i}": {
            "keypoints": tensors[4 * i],
            "descriptors": tensors[4 * i + 1],
            "image_size": tensors[4 * i + 3].flip(1),
        }
        for i in (0, 1)
    }
    return lambda: net(images)


def transformers(case: str, tensors: list[Any]) -> Callable[[], Any]:
    import torch
    from transformers import (
        LightGlueConfig,
        LightGlueForKeypointMatching,
        SuperPointConfig,
        SuperPointForKeypointDetection,
    )

    if case.startswith("extractor"):
        config = SuperPointConfig(keypoint_threshold=0.0005, max_keypoints=KEYPOINTS)
        net = SuperPointForKeypointDetection(config).eval()
        net.load_state_dict(transformers_names(network(case).state_dict()))  # equal work: as many detections
        image = tensors[0].expand(-1, 3, -1, -1)
        return lambda: net(image)
    net = LightGlueForKeypointMatching(LightGlueConfig(depth_confidence=-1.0, width_confidence=-1.0)).eval()
    keypoints, descriptors = (torch.stack((tensors[i], tensors[i + 4]), dim=1) for i in (0, 1))
    mask = torch.ones(keypoints.shape[:3], dtype=torch.int64)
    return lambda: net._match_image_pair(keypoints, descriptors, HEIGHT, WIDTH, mask=mask)


def transformers_names(state: dict[str, Any]) -> dict[str, Any]:
    def rename(key: str) -> str:
        stage, kind = key[4], key[5]
        where = {"P": "keypoint_decoder.conv_score_", "D": "descriptor_decoder.conv_descriptor_"}
        start = where.get(stage) or f"encoder.conv_blocks.{int(stage) - 1}.conv_"
        return f"{start}{kind}{key[6:]}"

    return {rename(key): tensor for key, tensor in state.items()}


def work(case: str, kind: str, folder: Path, threads: int) -> None:
    """Worker: one run per line on stdin, its wall and CPU seconds on stdout; an empty line ends it with its memory."""
    run = contender(case, kind, folder, threads)
    run()
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        start, cpu = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - start, time.process_time() - cpu, flush=True)
    print(peak_rss_mib(), "torch" in sys.modules, flush=True)


def peak_rss_mib() -> float:
    """Peak resident memory of this program alone; `ru_maxrss` would count the parent's from before the exec."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure(case: str, folder: Path, rounds: int, threads: int) -> dict[str, dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    workers = {
        kind: subprocess.Popen(
            [sys.executable, __file__, "--work", case, kind, str(folder), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for kind in CASES[case]
    }

    def ask(kind: str, line: str) -> str:
        process = workers[kind]
        assert process.stdin is not None
        assert process.stdout is not None
        if line:
            process.stdin.write(line)
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {kind} ended early in case {case!r}")
        return answer

    for kind in workers:
        ask(kind, "")
    times: dict[str, list[float]] = {kind: [] for kind in workers}
    cpu: dict[str, list[float]] = {kind: [] for kind in workers}
    for _ in range(rounds):
        for kind in workers:
            time.sleep(0.1)  # threads of the process before it stop spinning
            wall, busy = ask(kind, "run\n").split()
            times[kind].append(float(wall))
            cpu[kind].append(float(busy))
    results: dict[str, dict[str, Any]] = {}
    for kind, process in workers.items():
        peak, has_torch = ask(kind, "\n").split()
        assert kind != "onnxruntime" or has_torch == "False"
        process.wait()
        ordered = sorted(times[kind])
        results[kind] = {
            "median_ms": round(1e3 * statistics.median(ordered), 2),
            "min_ms": round(1e3 * ordered[0], 2),
            "max_ms": round(1e3 * ordered[-1], 2),
            "median_cpu_ms": round(1e3 * statistics.median(cpu[kind]), 2),
            "peak_rss_mib": round(float(peak), 1),
        }
    for kind in workers:
        for key, source in (("times_onnxruntime", times), ("cpu_times_onnxruntime", cpu)):
            ratios = [t / o for t, o in zip(source[kind], source["onnxruntime"], strict=True)]
            results[kind][key] = round(statistics.median(ratios), 2)
    return results


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=3, metavar=("CASE", "KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        case, kind, folder = args.work
        work(case, kind, Path(folder), args.threads)
        return
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        export(Path(name))
        cases = {case: measure(case, Path(name), args.rounds, args.threads) for case in CASES}
    receipt = {
        "benchmark": "lightglue_cpu",
        "date": datetime.date.today().isoformat(),
        "command": f"uv run python benchmarks/lightglue_cpu.py --rounds {args.rounds} --threads {args.threads}",
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "method": "one process per contender, interleaved rounds, medians; times_onnxruntime is the median of each "
        "round's time over onnxruntime's in that round (cpu_: the same of CPU time, which is fair on a busy "
        "machine with one thread, while idle threads spin and count with more); "
        "peak memory is the process's, loading included",
        "weights": "random",
        "cases": cases,
    }
    for case, results in cases.items():
        print(case)
        for kind, row in results.items():
            print(
                f"  {kind:22s} {row['median_ms']:8.1f} ms  ({row['min_ms']:.1f} to {row['max_ms']:.1f})  "
                f"x{row['times_onnxruntime']:.2f}  {row['peak_rss_mib']:.0f} MiB  "
                f"CPU {row['median_cpu_ms']:.1f} ms x{row['cpu_times_onnxruntime']:.2f}"
            )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    main()
