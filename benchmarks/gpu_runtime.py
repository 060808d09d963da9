"""What the TensorRT runtime promises, tried on a GPU: build and cache hit, CUDA graphs, zero copy, threads, memory over many runs.

    python benchmarks/gpu_runtime.py BUNDLE --precision fp16 --runs 10000 --save OUT.json

Needs TensorRT and a GPU; cupy and cuda.core are tried where they can be imported, and the receipt says if they were not there.
Every check writes what it compared; `passed` is the conjunction. Exit 1 if one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchrt.backends.tensorrt.backend import TensorRtBackend
from matchrt.bench.receipt import now
from matchrt.bundle import Bundle, read_bundle
from matchrt.engines import EngineCache
from matchrt.engines.build import BuildRequest, build_engines
from matchrt.engines.profiles import parse_range
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.runtime.engines import open_engines
from matchrt.samples import sample_pairs
from matchrt.workers.machine import machine_record, versions_of

Tensors = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; exit code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", default=None, help="N or MIN:OPT:MAX, as `matchrt build` takes it")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--memory", help="provider of device memory; by default the session's choice")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args(argv)
    bundle = read_bundle(args.bundle)
    plugins = get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(bundle.manifest.matcher.id))
    checks: dict[str, Any] = {"build": build(bundle, hooks, args.precision, args.batch)}
    inputs = network_inputs(bundle, hooks)
    name = bundle.manifest.steps[-1].network
    backend = plugins.backends["tensorrt"]

    def session(**options: Any) -> Any:
        chosen = {**({"memory": args.memory} if args.memory else {}), **options}
        return open_engines(bundle, hooks, backend, args.precision, chosen)[name].session()

    for title, check in (
        ("cuda_graph", lambda: cuda_graph(session, inputs)),
        ("zero_copy_cupy", lambda: zero_copy_cupy(session, inputs)),
        ("zero_copy_cuda_core", lambda: zero_copy_cuda_core(session, inputs)),
        ("providers", lambda: providers(session, inputs)),
        ("threads", lambda: threads(session(), inputs, min(300, args.runs))),
        ("many_runs", lambda: many_runs(session, inputs, args.runs)),
    ):
        begin = time.perf_counter()
        try:
            checks[title] = check()
        except Exception as error:
            checks[title] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        checks[title]["seconds"] = round(time.perf_counter() - begin, 2)
        print(title, json.dumps(checks[title]), file=sys.stderr, flush=True)
    passed = all(c["passed"] for c in checks.values())
    identity = bundle.manifest.matcher
    receipt = {
        "what": "the TensorRT runtime's promises, tried on a GPU",
        "command": f"python benchmarks/gpu_runtime.py BUNDLE --precision {args.precision} --runs {args.runs}",
        "date": now(),
        "machine": machine_record(),
        "versions": versions_of(),
        "bundle": {"matcher": f"{identity.id}:{identity.variant}", "sha256": bundle.sha256, "network": name},
        "precision": args.precision,
        "passed": passed,
        "checks": checks,
    }
    if args.save:
        args.save.write_text(json.dumps(receipt, indent=1) + "\n")
    print(json.dumps({"passed": passed, **{n: c["passed"] for n, c in checks.items()}}))
    return 0 if passed else 1


def build(bundle: Bundle, hooks: MatcherHooks, precision: str, batch: str | None) -> Tensors:
    """Build twice: the second time everything comes from the cache."""
    ranged = None if batch is None else parse_range(batch, "--batch")
    request = BuildRequest(precision=precision, batch=ranged, options={"tactic_sources": "none"})
    made = [build_engines(bundle, hooks, TensorRtBackend(), request, EngineCache()) for _ in range(2)]
    first, second = ([{"network": b.plan.network, "hit": b.hit, "s": round(b.seconds, 2)} for b in m] for m in made)
    return {"passed": all(b["hit"] for b in second), "first": first, "second": second}


def network_inputs(bundle: Bundle, hooks: MatcherHooks) -> list[dict[str, np.ndarray]]:
    """Inputs of the last step's network for both sample pairs, from the steps before it in onnxruntime on the CPU."""
    from matchrt.backends.onnxruntime import OnnxRuntimeBackend
    from matchrt.images.read import read_image
    from matchrt.runtime.matcher import settings_of

    settings = settings_of(hooks, bundle, {})
    found = []
    opened = {n.name: OnnxRuntimeBackend().open(n.name, bundle.graph(n.name), {}) for n in bundle.manifest.networks}
    for pair in sample_pairs():
        tensors, _ = hooks.preprocess((read_image(pair.image0), read_image(pair.image1)), settings)
        space = dict(tensors)
        *before, last = bundle.manifest.steps
        for step in before:
            out = opened[step.network].session().run({n: space[t] for n, t in step.inputs.items()})
            space.update({t: out[n] for n, t in step.outputs.items()})
        found.append({n: space[t] for n, t in last.inputs.items()})
    return found


def equal(a: Tensors, b: Tensors) -> bool:
    """Whether all tensors are equal bit for bit."""
    return set(a) == set(b) and all(np.array_equal(a[n].view(np.uint8), b[n].view(np.uint8)) for n in a)


def cuda_graph(session: Any, inputs: list[Tensors]) -> Tensors:
    """Replays equal plain runs, also after other inputs were written into the same memory; and what a replay saves."""
    plain, graph = session(cuda_graphs=False), session()
    expected = [plain.run(i) for i in inputs]
    rounds = [[graph.run(i) for i in inputs] for _ in range(5)]
    captured = sum(g is not None for g in graph._graphs.values())
    same = [all(equal(r, e) for r, e in zip(answers, expected, strict=True)) for answers in rounds]
    differ = not equal(expected[0], expected[1])
    times = {"plain": timed(plain, inputs[0]), "graph": timed(graph, inputs[0])}
    return {
        "passed": all(same) and captured > 0 and differ,
        "rounds_equal": same,
        "graphs_captured": captured,
        "pairs_differ": differ,
        "notes": graph.notes,
        "ms_numpy_in_numpy_out": times,
    }


def timed(session: Any, inputs: Tensors) -> float:
    for _ in range(5):
        session.run(inputs)
    spans = []
    for _ in range(50):
        begin = time.perf_counter()
        session.run(inputs)
        spans.append(time.perf_counter() - begin)
    return round(float(np.median(spans)) * 1e3, 3)


def as_engine(session: Any, inputs: Tensors) -> Tensors:
    """Inputs in the engine's own integer widths, which arrays on the device must have already."""
    types = {t.name: t.dtype for t in session._tensors}
    return {n: np.ascontiguousarray(v.astype(types[n])) for n, v in inputs.items()}


def zero_copy_cupy(session: Any, inputs: list[Tensors]) -> Tensors:
    """cupy arrays in on cupy's own stream, device arrays out: read in place, the session stages nothing."""
    import cupy

    made = session()
    expected = made.run(inputs[0])
    fresh = session()
    given = {n: cupy.asarray(v) for n, v in as_engine(fresh, inputs[0]).items()}
    stream = cupy.cuda.Stream(non_blocking=True)
    same = []
    for _ in range(4):
        out = fresh.run_on_device(given, stream=stream.ptr)
        theirs = {n: cupy.from_dlpack(t) for n, t in out.items()}
        interface = {n: cupy.asarray(t) for n, t in out.items()}
        in_place = all(theirs[n].data.ptr == t.pointer and interface[n].data.ptr == t.pointer for n, t in out.items())
        stream.synchronize()
        cupy.cuda.Device().synchronize()
        same.append(equal({n: cupy.asnumpy(a) for n, a in theirs.items()}, expected) and in_place)
    columns = {n: cupy.asarray(np.ascontiguousarray(v.T)).T for n, v in as_engine(fresh, inputs[0]).items()}
    refused = refusal(lambda: fresh.run_on_device(columns))
    return {
        "passed": all(same) and not fresh._stages and refused.startswith("refused"),
        "equal_and_in_place": same,
        "staged_inputs": len(fresh._stages),
        "fortran_order": refused,
        "cupy": cupy.__version__,
    }


def refusal(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"refused: {error}"
    return "taken"


def zero_copy_cuda_core(session: Any, inputs: list[Tensors]) -> Tensors:
    """Memory that cuda.core allocated, handed over by `__cuda_array_interface__`; outputs read through its StridedMemoryView."""
    from cuda.core import Device, utils

    device = Device(0)
    device.set_current()
    made = session()
    expected = made.run(inputs[0])
    fresh = session()
    stream = device.create_stream()
    given, kept = {}, []
    for name, value in as_engine(fresh, inputs[0]).items():
        buffer = device.allocate(max(value.nbytes, 1), stream=stream)
        stream.sync()
        upload(fresh, int(buffer.handle), value)
        kept.append(buffer)
        given[name] = Described(int(buffer.handle), value.shape, value.dtype)
    out = fresh.run_on_device(given, stream=int(stream.handle))
    views = {n: utils.StridedMemoryView.from_any_interface(t, stream_ptr=int(stream.handle)) for n, t in out.items()}
    in_place = all(views[n].ptr == t.pointer and tuple(views[n].shape) == t.shape for n, t in out.items())
    stream.sync()
    same = equal({n: t.numpy() for n, t in out.items()}, expected)
    return {"passed": same and in_place and not fresh._stages, "equal": same, "in_place": in_place}


class Described:
    """An array on the device that only the protocol tells of."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (pointer, False),
            "version": 3,
            "strides": None,
        }


def upload(session: Any, pointer: int, value: np.ndarray) -> None:
    """Copy to the device through the driver, finished."""
    cuda = session._cuda
    with cuda.current():
        stream = cuda.thread_stream()
        pinned = session._memory.pinned(value.nbytes)
        pinned.bytes[:] = value.view(np.uint8).reshape(-1)
        cuda.to_device(pointer, pinned.pointer, value.nbytes, stream)
        cuda.synchronize(stream)
        pinned.free()


def providers(session: Any, inputs: list[Tensors]) -> Tensors:
    """The same answer whoever hands out the memory."""
    expected = session(memory="driver").run(inputs[0])
    found = {}
    for name in ("driver", "cuda-python", "pycuda"):
        try:
            found[name] = "equal" if equal(session(memory=name).run(inputs[0]), expected) else "DIFFERENT"
        except Exception as error:
            found[name] = f"not tried: {error}"
    return {"passed": "DIFFERENT" not in found.values() and found["cuda-python"] == "equal", "answers": found}


def threads(alone: Any, inputs: list[Tensors], runs: int) -> Tensors:
    """Two threads on one engine, each with its own session and inputs, `runs` each: the answers of one thread alone."""
    engine = alone._owner
    expected = [alone.run(i) for i in inputs]
    wrong, errors = [0, 0], []

    def work(index: int) -> None:
        try:
            session = engine.session()
            for _ in range(runs):
                wrong[index] += not equal(session.run(inputs[index]), expected[index])
        except Exception as error:
            errors.append(repr(error))

    running = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    return {"passed": not errors and wrong == [0, 0], "runs": 2 * runs, "wrong": wrong, "errors": errors}


def many_runs(session: Any, inputs: list[Tensors], runs: int) -> Tensors:
    """Device memory in use and the process's resident memory before and after many runs."""
    made = session()
    for i in range(200):
        made.run(inputs[i % 2])
    before = memory()
    begin = time.perf_counter()
    for i in range(runs):
        made.run(inputs[i % 2])
    seconds = time.perf_counter() - begin
    after = memory()
    grown = {n: round(after[n] - before[n], 2) for n in before}
    return {
        "passed": grown["device_mib"] <= 0 and grown["resident_mib"] < 8,
        "runs": runs,
        "ms_a_run": round(seconds / runs * 1e3, 3),
        "before": before,
        "after": after,
        "grown": grown,
    }


def memory() -> dict[str, float]:
    from matchrt.backends.tensorrt.cuda import driver

    cuda = driver(0)
    with cuda.current():
        used = cuda.memory_in_use()
    status = Path("/proc/self/status").read_text()
    resident = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    return {"device_mib": round(used / 2**20, 2), "resident_mib": round(resident / 2**10, 2)}


if __name__ == "__main__":
    sys.exit(main())
