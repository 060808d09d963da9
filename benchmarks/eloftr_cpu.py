"""EfficientLoFTR on a CPU: onnxruntime against eager PyTorch, time at 480x640 and memory at larger sizes.

    python benchmarks/eloftr_cpu.py --receipt docs/benchmarks/eloftr-cpu.json

Every contender runs in a process of its own, so that its peak memory is its own. For time they take turns, one run each, and
the medians are compared. The weights are random (calibrated, so that there are matches): speed does not depend on them. Contenders:

* onnxruntime: the prepared graph of this plugin.
* eager: this plugin's network in PyTorch, in training form, as MatchAnything runs it.
* eager-fused: the same with re-parameterised RepVGG blocks, as EfficientLoFTR runs it.
* published: EfficientLoFTR's own order of work in eager PyTorch (full confidence matrix, full-resolution fine map, unfold), fused.
* transformers: `EfficientLoFTRForKeypointMatching`, eager.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTENDERS = ("onnxruntime", "eager", "eager-fused", "published", "transformers")


# ── The worker: one contender in one process ────────────────────────────────────────────────────────────────────────


def peak_mib() -> float:
    """Peak resident memory of this program. `ru_maxrss` would carry over the parent's peak from before exec."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not report VmHWM")


def worker(contender: str, folder: Path, size: tuple[int, int], threads: int) -> None:
    """Answer each line on stdin with one run: seconds, matches above 0.2 and the peak so far."""
    start = onnx_runner if contender == "onnxruntime" else torch_runner
    call = start(contender, folder, size, threads)
    print(json.dumps({"ready": True, "peak_mib": peak_mib()}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        matches = call()
        print(
            json.dumps({"seconds": time.perf_counter() - began, "matches": matches, "peak_mib": peak_mib()}), flush=True
        )


def onnx_runner(contender: str, folder: Path, size: tuple[int, int], threads: int) -> Callable[[], int]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / f"{size[0]}x{size[1]}.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.load(folder / f"{size[0]}x{size[1]}.npy")
    feed = {"image0": images[0], "image1": images[1]}
    return lambda: int((session.run(["keypoints0", "keypoints1", "scores"], feed)[2] > 0.2).sum())


def torch_runner(contender: str, folder: Path, size: tuple[int, int], threads: int) -> Callable[[], int]:
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    images = [torch.from_numpy(i) for i in np.load(folder / f"{size[0]}x{size[1]}.npy")]
    state = torch.load(folder / "weights.pt", weights_only=True)
    call = transformers_call(state, images) if contender == "transformers" else own_call(contender, state, images, size)

    def run() -> int:
        with torch.inference_mode():
            return call()

    return run


def own_call(contender: str, state: dict[str, Any], images: list[Any], size: tuple[int, int]) -> Callable[[], int]:
    from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings
    from matchrt_eloftr.networks.network import fuse_backbone

    network = EfficientLoFTR(GraphSettings(size, size)).eval()
    network.load_state_dict(state)
    if contender != "eager":
        network = fuse_backbone(network)
    if contender == "published":
        return lambda: published(network, images)
    return lambda: int((network(*images)[2] > 0.2).sum())


def published(network: Any, images: list[Any]) -> int:
    """Dense confidence, unfolded full-resolution maps, then the chosen windows: upstream's order of work."""
    import torch
    import torch.nn.functional as F

    coarse0, coarse1, middle, fine = network.features(*images)
    coarse0, coarse1 = network.transform(coarse0, coarse1)
    left, right = (c[0].flatten(1).T / 16.0 for c in (coarse0, coarse1))
    similarity = left @ right.T / 0.1
    conf = F.softmax(similarity, 0) * F.softmax(similarity, 1)
    inside = network.inside0[0]
    keep = (conf > 0.2) & inside[:, None] & inside[None]
    keep = keep & (conf == conf.max(1, keepdim=True)[0]) & (conf == conf.max(0, keepdim=True)[0])
    i, j = torch.where(keep)
    maps = network.pyramid(coarse0, coarse1, middle, fine)
    full = [F.interpolate(m, scale_factor=2.0, mode="bilinear", align_corners=False) for m in maps]
    windows0 = F.unfold(full[0], 8, stride=8)[0].reshape(64, 64, -1).permute(2, 1, 0)[i]
    windows1 = F.unfold(full[1], 10, stride=8, padding=1)[0].reshape(64, 100, -1).permute(2, 1, 0)[j]
    first = (windows0[..., :56] / 8.0) @ (windows1[..., :56] / 8.0).transpose(1, 2)
    second = windows0[..., 56:] @ (windows1[..., 56:] / 8**0.5).transpose(1, 2)
    best = (F.softmax(first, 1) * F.softmax(first, 2)).reshape(-1, 64, 10, 10)[..., 1:-1, 1:-1].flatten(1).argmax(-1)
    rows = torch.arange(len(best))
    row, column = best % 64 // 8, best % 8
    around = torch.arange(-1, 2)
    heat = second.reshape(-1, 64, 10, 10)[
        rows[:, None, None],
        (best // 64)[:, None, None],
        row[:, None, None] + around[:, None],
        column[:, None, None] + around,
    ]
    F.softmax(heat.flatten(1) / 10.0, -1)
    return len(best)


def transformers_call(state: dict[str, Any], images: list[Any]) -> Callable[[], int]:
    import torch
    from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

    keys = Path(__file__).parents[1] / "tests" / "plugins" / "eloftr" / "data" / "keys.json"
    names = json.loads(keys.read_text("utf-8"))["transformers"]
    model = EfficientLoFTRForKeypointMatching(EfficientLoFTRConfig()).eval()
    model.load_state_dict({names[name]: value for name, value in state.items()})
    pixels = torch.stack(images, 1)
    return lambda: int((model(pixels).matches[0, 1] >= 0).sum())


# ── The parent: prepares the files, takes turns, writes the receipt ─────────────────────────────────────────────────


def prepare(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Calibrated random weights, one graph and one pair for each size."""
    import numpy as np
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins" / "eloftr"))
    from conftest import shifted_pair

    from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings, prepare_for_export
    from matchrt_eloftr.networks.network import INPUTS, OUTPUTS
    from matchrt_eloftr.random_weights import calibrate, randomise

    small = (256, 320)
    network = EfficientLoFTR(GraphSettings(small, small))
    torch.manual_seed(0)
    randomise(network)
    state = calibrate(network, *shifted_pair(*small, (16, 8))).state_dict()
    torch.save(state, folder / "weights.pt")
    for size in sizes:
        print(f"export: {size[0]}x{size[1]}", file=sys.stderr, flush=True)
        pair = shifted_pair(*size, (16, 8))
        np.save(folder / f"{size[0]}x{size[1]}.npy", np.stack([p.numpy() for p in pair]))
        network = EfficientLoFTR(GraphSettings(size, size)).eval()
        network.load_state_dict(state)
        torch.onnx.export(
            prepare_for_export(network),
            pair,
            str(folder / f"{size[0]}x{size[1]}.onnx"),
            dynamo=True,
            opset_version=18,
            input_names=list(INPUTS[:2]),
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )


class Process:
    """A worker and its answers."""

    def __init__(self, contender: str, folder: Path, size: tuple[int, int], threads: int) -> None:
        command = [sys.executable, __file__, "--worker", contender, "--folder", str(folder)]
        command += ["--size", f"{size[0]}x{size[1]}", "--threads", str(threads)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.start = self._answer()

    def run(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def time_all(folder: Path, size: tuple[int, int], threads: int, runs: int) -> dict[str, Any]:
    workers = {name: Process(name, folder, size, threads) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    last: dict[str, dict[str, Any]] = {}
    for turn in range(runs + 1):
        print(f"time: turn {turn} of {runs}", file=sys.stderr, flush=True)
        for name, process in workers.items():
            last[name] = process.run()
            if turn:
                seconds[name].append(last[name]["seconds"])
    for process in workers.values():
        process.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": list(size),
        "runs": runs,
        "median_seconds": {n: round(v, 4) for n, v in medians.items()},
        "fastest_seconds": {n: round(min(v), 4) for n, v in seconds.items()},
        "matches_above_0.2": {n: last[n]["matches"] for n in CONTENDERS},
        "times_faster_than": {
            n: round(medians[n] / medians["onnxruntime"], 3) for n in CONTENDERS if n != "onnxruntime"
        },
    }


def memory(folder: Path, size: tuple[int, int], threads: int, contenders: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for name in contenders:
        process = Process(name, folder, size, threads)
        answer = process.run()
        process.close()
        print(f"memory: {name} at {size[0]}x{size[1]}: {answer}", file=sys.stderr, flush=True)
        found[name] = {
            "before_run_mib": round(process.start["peak_mib"]),
            "peak_mib": round(answer["peak_mib"]),
            "matches": answer["matches"],
        }
    return {"size": list(size), "contenders": found}


def parse_size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--receipt", type=Path)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=parse_size, default=(480, 640))
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.folder, given.size, given.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, [given.size, (832, 832), (1152, 1152)])
        load_before = os.getloadavg()[0]
        receipt = {
            "what": "EfficientLoFTR (full) on CPU, random weights, batch 1, K 2048",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": given.threads},
            "load_before": round(load_before, 2),
            "versions": {p: version(p) for p in ("torch", "onnxruntime", "transformers")},
            "time": time_all(folder, given.size, given.threads, given.runs),
            "memory": [
                memory(folder, given.size, given.threads, CONTENDERS),
                memory(folder, (832, 832), given.threads, CONTENDERS),
                memory(folder, (1152, 1152), given.threads, ("onnxruntime", "published")),
            ],
            "load_after": round(os.getloadavg()[0], 2),
        }
    text = json.dumps(receipt, indent=2) + "\n"
    print(text)
    if given.receipt:
        given.receipt.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
