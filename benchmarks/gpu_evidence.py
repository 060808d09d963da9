"""Everything that needs a GPU, in one unattended run: convert, build, verify, try the runtime, race. For hosts where torch and TensorRT
live in different interpreters.

    python benchmarks/gpu_evidence.py convert build verify runtime race --out OUT --work WORK --deadline 560 \\
        --torch PYTHON --tensorrt PYTHON

Each job's answer is written to OUT as it ends, so that a machine that goes away takes only the job under way. `--deadline` is in seconds
from the start; nothing is started that is known to outlast it, and what runs then is ended. A second call goes on with what is missing
from OUT. The order is that of need: what the parity receipts want comes first. `--only NAMES`, `--kinds own,eager,default` (of races and
compilations), `--networks` (of builds), `--precisions` and `--skip-peers` narrow it; `--tiny` tries all on a CPU with onnxruntime.

A host of several GPUs is used whole (`--gpus 0,1,2,3`): a network's build goes to whichever has room, `--jobs` at a time on each, and
every other job has a GPU to itself. Learnt on an H200 with TensorRT 8.6: builds time kernels on the GPU, so more than two at a time
make each of them slower by as many; an fp16 build of LightGlue's matcher takes about a minute alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matchrt.weights.locks import exclusive

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Subject:
    """A bundle to make: its name, matcher, settings, precisions to build, and its peers' function."""

    name: str
    matcher: str
    settings: tuple[str, ...]
    precisions: tuple[str, ...]
    peer: str = ""
    batch: bool = False
    tiny: tuple[str, ...] = ()

    def flags(self, tiny: bool) -> list[str]:
        """For `matchrt convert`."""
        chosen = [*self.settings, *(self.tiny if tiny else ())]
        seed = [] if self.matcher.endswith(":mini") else ["--random-weights", "1"]
        return [*seed, *(w for s in chosen for w in ("--set", s))]


ROMA_TINY = ("size=112x112", "upsample_size=128x128")
LIGHTGLUE_TINY = ("size=192x256", "keypoints=128")
SUBJECTS = (
    Subject("mini", "superpoint-lightglue:mini", ("size=768x1024",), ("fp16", "fp32"), "", True, LIGHTGLUE_TINY),
    Subject(
        "lightglue-1024",
        "superpoint-lightglue:full",
        ("size=768x1024",),
        ("fp16", "fp32"),
        "lightglue",
        True,
        LIGHTGLUE_TINY,
    ),
    Subject(
        "eloftr-480x640",
        "eloftr:full",
        ("size=480x640", "pairs=1"),
        ("fp16", "fp32"),
        "eloftr",
        False,
        ("size=224x224",),
    ),
    Subject("roma", "matchanything-roma:full", (), ("fp16", "fp32"), "roma", False, ROMA_TINY),
    Subject(
        "eloftr-832", "eloftr:full", ("size=832x832", "pairs=1"), ("fp16", "fp32"), "eloftr", False, ("size=256x256",)
    ),
    Subject(
        "lightglue-2048",
        "superpoint-lightglue:full",
        ("size=768x1024", "keypoints=2048"),
        ("fp16",),
        "lightglue",
        True,
        LIGHTGLUE_TINY,
    ),
    Subject("roma-coarse", "matchanything-roma:coarse", (), ("fp16",), "", False, ROMA_TINY[:1]),
    Subject("roma-encoder-gp", "matchanything-roma:encoder-gp", (), ("fp16",), "", False, ROMA_TINY[:1]),
    Subject("eloftr-opt", "eloftr:opt", ("size=480x640", "pairs=1"), ("fp16",), "", False, ("size=224x224",)),
    Subject("matchanything-eloftr", "matchanything-eloftr", ("pairs=1",), ("fp16",), "", False, ("size=256x256",)),
)
COMPILED = ("default", "reduce-overhead", "max-autotune")


class Run:
    """Jobs with a common deadline; answers go to `out`, bundles to `work`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.begin = args, time.monotonic()
        self.out, self.work = Path(args.out), Path(args.work)
        self.out.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.backend = "onnxruntime" if args.tiny else "tensorrt"
        self.gpus = [g for g in args.gpus.split(",") if g]
        self.subjects = [s for s in SUBJECTS if not args.only or s.name in args.only.split(",")]

    def left(self) -> float:
        """Seconds until the deadline."""
        return float(self.args.deadline) - (time.monotonic() - self.begin)

    def job(self, name: str, command: Sequence[object], limit: float = 1e9, least: float = 10, gpu: str = "") -> bool:
        """Run it unless it is done already, where only `gpu` is seen; True if it ended well. Ends it at its limit or at the deadline."""
        if (self.out / f"{name}.done").exists():
            return True
        limit = min(limit, self.left())
        if limit < least:
            self.say(name, "not started: no time left")
            return False
        begin = time.monotonic()
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        stdout, stderr = self.out / f"{name}.out", self.out / f"{name}.err"
        with stdout.open("w") as out, stderr.open("w") as err:
            words = [str(c) for c in command]
            process = subprocess.Popen(words, stdout=out, stderr=err, env=environment, start_new_session=True)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session: workers and builders with it
                process.wait()
                code = None
        tail = " | ".join(stderr.read_text("utf-8", "replace").strip().splitlines()[-3:])[-400:]
        self.say(name, f"{code} after {time.monotonic() - begin:.0f} s" + (f": {tail}" if code != 0 else ""))
        if code == 0:
            (self.out / f"{name}.done").touch()
        return code == 0

    def say(self, name: str, text: str) -> None:
        """One line for the log, and for whoever watches."""
        line = json.dumps({"at": round(time.monotonic() - self.begin), "job": name, "what": text})
        with self.lock, (self.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def converted(self, subject: Subject) -> bool:
        """Whether its bundle is there."""
        return (self.work / subject.name / "bundle.json").is_file()

    def precisions(self, subject: Subject) -> list[str]:
        """To build and verify."""
        return [p for p in subject.precisions if p in self.args.precisions.split(",")]

    def networks(self, subject: Subject) -> list[str]:
        """Of its bundle."""
        return [n["name"] for n in json.loads((self.work / subject.name / "bundle.json").read_text())["networks"]]


def convert(run: Run) -> None:
    """Bundles, four at a time: they need no GPU."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda s: _convert(run, s), run.subjects))


def _convert(run: Run, subject: Subject) -> bool:
    """One at a time for each subject, also beside another call of this script, which is waited for."""
    with exclusive(run.work / f"{subject.name}.lock"):
        if not run.converted(subject):
            command = [run.args.torch, "-m", "matchrt", "convert", subject.matcher, *subject.flags(run.args.tiny)]
            run.job(f"convert-{subject.name}", [*command, "-o", run.work / subject.name, "--json"], 300)
        return run.converted(subject)


def build(run: Run) -> None:
    """Engines, a network each job, `--jobs` at a time on each GPU; in the order of need among bundles that are there already."""
    if run.args.tiny:
        return
    waiting: queue.PriorityQueue[tuple[int, int, str, Callable[[str], object]]] = queue.PriorityQueue()

    def ready(index: int, subject: Subject) -> None:
        if _convert(run, subject):
            for rank, precision in enumerate(run.precisions(subject)):
                chosen = run.args.networks.split(",") if run.args.networks else run.networks(subject)
                for network in [n for n in run.networks(subject) if n in chosen]:
                    name = f"build-{subject.name}-{precision}-{network}"
                    waiting.put((rank, index, name, partial(_build, run, subject, precision, network, name)))

    def work(gpu: str) -> None:
        while not (converted.is_set() and waiting.empty()):
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.5)[-1](gpu)

    converted = threading.Event()
    workers = [threading.Thread(target=work, args=(g,)) for g in (run.gpus or [""]) for _ in range(run.args.jobs)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ready, range(len(run.subjects)), run.subjects))
    converted.set()
    for worker in workers:
        worker.join()


def _build(run: Run, subject: Subject, precision: str, network: str, name: str, gpu: str) -> None:
    more = ["--batch", 1] if subject.batch else []
    command = [run.args.tensorrt, "-m", "matchrt", "build", run.work / subject.name, "--backend", run.backend]
    options = ["--precision", precision, "--option", "tactic_sources=none", "--network", network, "--json"]
    run.job(name, [*command, *options, *more], gpu=gpu)


def built(run: Run, subject: Subject, precision: str) -> bool:
    """Whether its engines are there: a verb that needs them would build for minutes."""
    if not run.converted(subject):
        return False
    names = [f"build-{subject.name}-{precision}-{n}.done" for n in run.networks(subject)]
    return run.args.tiny or all((run.out / n).exists() for n in names)


Job = Callable[[str], object]
"""Takes the GPU that it has to itself."""


def warm(run: Run) -> Iterator[Job]:
    """Fill torch's caches of compiled code, so that a race does not wait for them; may run while engines are built, on another GPU."""
    for subject in run.subjects:
        modes = [m for m in COMPILED if m in run.args.kinds.split(",")]
        for mode in modes if subject.peer and run.converted(subject) else ():
            command = [run.args.torch, HERE / "gpu_peers.py", run.work / subject.name, subject.peer]
            yield partial(
                _on,
                run,
                f"warm-{subject.name}-{mode}",
                [*command, "precision=fp16", f"compile={mode}"],
                run.args.limit,
                30,
            )


def verify(run: Run) -> Iterator[Job]:
    """Parity."""
    for subject, precision in [(s, p) for s in run.subjects for p in run.precisions(s) if built(run, s, p)]:
        name = f"verify-{subject.name}-{precision}"
        command = [run.args.torch, "-m", "matchrt", "verify", run.work / subject.name, "--backend", run.backend]
        options = ["--precision", "fp32" if run.args.tiny else precision, "--report", run.out / f"{name}.html"]
        options += ["--no-locate", "--json", "--interpreter", f"{run.backend}={run.args.tensorrt}"]
        yield partial(_on, run, name, [*command, *options], 400, 10)


def runtime(run: Run) -> Iterator[Job]:
    """CUDA graphs, zero copy, threads, many runs; and torch's arrays."""
    if run.args.tiny:
        return
    for precision in ("fp32", "fp16"):
        if built(run, SUBJECTS[0], precision):
            save = ["--save", run.out / f"runtime-{precision}.json"]
            script = [run.args.tensorrt, HERE / "gpu_runtime.py", run.work / "mini", "--precision", precision]
            script += ["--batch", 1]
            yield partial(_on, run, f"runtime-{precision}", [*script, *save], 200, 10)
    save = ["--save", run.out / "torch-arrays.json"]
    yield partial(_on, run, "torch-arrays", [run.args.torch, HERE / "gpu_torch_arrays.py", *save], 100, 10)


def race(run: Run) -> Iterator[Job]:
    """`own`: every clock and the slowest layers of our engines. Then against PyTorch, by device events, the engine in the same call:
    `eager`, and each mode of torch.compile.
    """
    for kind in ("own", "eager", *COMPILED):
        for subject in run.subjects if kind in run.args.kinds.split(",") else ():
            if not built(run, subject, "fp16") or not (subject.peer or kind in ("own", "eager")):
                continue
            name = f"bench-{subject.name}-{kind}"
            command = [run.args.torch, "-m", "matchrt", "bench", run.work / subject.name, "--backend", run.backend]
            options = ["--precision", "fp32" if run.args.tiny else "fp16", "--save", run.out / f"{name}.json"]
            timing = ["--seconds", "3", "--rounds", "5", "--warm-up", "0.5"]
            timing += ["--layers", "40"] if kind == "own" else ["--modes", "engine"]
            against = [w for p in _peers(run, subject, kind) for w in ("--against", p)]
            interpreter = ["--interpreter", f"{run.backend}={run.args.tensorrt}"]
            yield partial(_on, run, name, [*command, *options, *timing, *against, *interpreter], run.args.limit, 30)


def _on(run: Run, name: str, command: Sequence[object], limit: float, least: float, gpu: str) -> None:
    run.job(name, command, limit, least, gpu)


def spread(run: Run, jobs: Sequence[Job]) -> None:
    """Jobs in their order, one at a time on each GPU that is named (twice, where it is named twice)."""
    free: queue.Queue[str] = queue.Queue()
    for gpu in run.gpus or [""]:
        free.put(gpu)

    def one(job: Job) -> None:
        gpu = free.get()
        try:
            job(gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(free.qsize()) as pool:
        list(pool.map(one, jobs))


def _peers(run: Run, subject: Subject, kind: str) -> list[str]:
    """Published implementations; our own networks in PyTorch beside them, or where there are none."""
    published = f"{HERE / 'gpu_peers.py'}:{subject.peer}"
    wanted = bool(subject.peer) and not run.args.skip_peers
    if kind == "own":
        return []
    if kind == "eager":
        few = run.args.published_only or subject.name == "roma"
        own = ["torch"] if run.args.tiny else [] if few else ["torch", "torch-fp16", "torch-half"]
        return own + [f"{published}:precision={p}" for p in ("fp32", "fp16") if wanted]
    return [f"{published}:precision=fp16:compile={kind}"] if wanted else ["torch-compile"]


FIRST: dict[str, Callable[[Run], None]] = {"convert": convert, "build": build}
THEN: dict[str, Callable[[Run], Iterator[Job]]] = {"warm": warm, "verify": verify, "runtime": runtime, "race": race}


def main() -> int:
    """Run the stages that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=[*FIRST, *THEN])
    parser.add_argument("--out", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--deadline", type=float, default=1e9)
    parser.add_argument("--torch", default=sys.executable)
    parser.add_argument("--tensorrt", default=sys.executable)
    parser.add_argument("--gpus", default="", help="numbers of the GPUs to use; by default CUDA's first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--networks", default="", help="of builds")
    parser.add_argument("--kinds", default=",".join(("own", "eager", *COMPILED)))
    parser.add_argument("--precisions", default="fp16,fp32")
    parser.add_argument("--limit", type=float, default=400, help="seconds that a race, or a compilation, may take")
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--published-only", action="store_true", help="race without our own networks in PyTorch")
    parser.add_argument("--tiny", action="store_true")
    run = Run(parser.parse_args())
    for stage in FIRST:
        if stage in run.args.stages:
            FIRST[stage](run)
    spread(run, [job for stage in THEN if stage in run.args.stages for job in THEN[stage](run)])
    missing = [p.stem for p in run.out.glob("*.out") if not p.with_suffix(".done").exists()]
    run.say("end", f"{run.left():.0f} s left; not ended well: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
