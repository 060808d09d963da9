"""torch's arrays and ours, on a GPU, without TensorRT: the buffer protocols that `TensorRtSession` uses, both ways, in place.

    python benchmarks/gpu_torch_arrays.py --save OUT.json

For hosts whose torch and TensorRT live in different interpreters: the session's inputs go through `arrays.view` and its outputs are
`DeviceTensor`s, and both are exercised here with torch on the GPU, on torch's streams, beside torch in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matchrt.backends.tensorrt.arrays import DeviceTensor, view
from matchrt.backends.tensorrt.cuda import driver
from matchrt.backends.tensorrt.memory import Harbour, choose_memory
from matchrt.bench.receipt import now
from matchrt.errors import BackendError
from matchrt.workers.machine import machine_record, versions_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    cuda = driver(0)
    checks = {
        "torch_in": torch_in(cuda),
        "torch_out": torch_out(cuda),
        "order_of_streams": order_of_streams(cuda),
        "torch_memory": torch_memory(cuda),
        "one_context": one_context(cuda),
        "refusals": refusals(cuda),
    }
    passed = all(c["passed"] for c in checks.values())
    receipt = {
        "what": "torch's arrays and matchrt's, both ways, in place, on a GPU",
        "command": "python benchmarks/gpu_torch_arrays.py",
        "date": now(),
        "machine": machine_record(),
        "versions": versions_of(),
        "passed": passed,
        "checks": checks,
    }
    if args.save:
        args.save.write_text(json.dumps(receipt, indent=1) + "\n")
    print(json.dumps({"passed": passed, **checks}))
    return 0 if passed else 1


def torch_in(cuda: Any) -> dict[str, Any]:
    """Views of torch tensors have torch's address, shape and type."""
    rows = []
    for dtype in (torch.float32, torch.float16, torch.int32, torch.int64, torch.bool):
        tensor = torch.ones((2, 3, 5), device="cuda", dtype=dtype)
        with cuda.current():
            seen = view(tensor, cuda, cuda.thread_stream())
        rows.append(seen.pointer == tensor.data_ptr() and seen.shape == (2, 3, 5) and seen.owner is tensor)
    return {"passed": all(rows), "types": len(rows)}


def ours(cuda: Any, value: np.ndarray, name: str | None = None) -> DeviceTensor:
    """`value` on the device in memory of provider `name`, as a session's output is."""
    memory = choose_memory(cuda, name)
    with cuda.current():
        stream = cuda.thread_stream()
        block, pinned = memory.device(value.nbytes), memory.pinned(value.nbytes)
        pinned.bytes[:] = value.view(np.uint8).reshape(-1)
        cuda.to_device(block.pointer, pinned.pointer, value.nbytes, stream)
        cuda.synchronize(stream)
        pinned.free()
    return DeviceTensor(cuda, block, value.shape, value.dtype, stream, lambda b: b.free(), Harbour(memory))


def torch_out(cuda: Any) -> dict[str, Any]:
    """torch reads our arrays in place through both protocols, and they outlive our object."""
    value = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    tensor = ours(cuda, value, "driver")
    pointer = tensor.pointer
    a, b = torch.from_dlpack(tensor), torch.as_tensor(tensor, device="cuda")
    in_place = a.data_ptr() == pointer and b.data_ptr() == pointer
    same = bool(np.array_equal(a.cpu().numpy(), value) and np.array_equal(b.cpu().numpy(), value))
    del tensor
    alive = bool(np.array_equal(a.cpu().numpy(), value))
    return {"passed": in_place and same and alive, "in_place": in_place, "equal": same, "outlives": alive}


def order_of_streams(cuda: Any) -> dict[str, Any]:
    """Work that torch put on its stream before the hand-over is done before ours, 200 times, and the other way round."""
    wrong = 0
    size = 1 << 22
    stream = torch.cuda.Stream()
    out = np.empty(4, np.float32)
    for turn in range(200):
        with torch.cuda.stream(stream):
            tensor = torch.zeros(size, device="cuda")
            for _ in range(8):
                tensor = tensor + 1
            tensor = tensor + turn
        with torch.cuda.stream(stream), cuda.current():
            used = cuda.thread_stream()
            seen = view(tensor, cuda, used)
            cuda.to_host(out.ctypes.data, seen.pointer + (size - 4) * 4, 16, used)
            cuda.synchronize(used)
        wrong += not np.all(out == 8 + turn)
    return {"passed": wrong == 0, "wrong": wrong, "turns": 200}


def torch_memory(cuda: Any) -> dict[str, Any]:
    """Memory from torch's own pool, chosen because torch is loaded."""
    chosen = choose_memory(cuda).name
    before = torch.cuda.memory_allocated()
    tensor = ours(cuda, np.arange(1 << 20, dtype=np.float32))
    grown = torch.cuda.memory_allocated() - before
    same = bool(np.array_equal(torch.from_dlpack(tensor).cpu().numpy(), np.arange(1 << 20, dtype=np.float32)))
    return {"passed": chosen == "torch" and grown == 4 << 20 and same, "chosen": chosen, "pool_grew": grown}


def one_context(cuda: Any) -> dict[str, Any]:
    """torch and matchrt share the primary context, and matchrt leaves the thread's context as it found it."""
    import ctypes

    from matchrt.backends.cuda_probe import load_driver

    library, before, inside, after = load_driver(), *(ctypes.c_void_p() for _ in range(3))
    torch.cuda.synchronize()
    library.cuCtxGetCurrent(ctypes.byref(before))
    with cuda.current():
        library.cuCtxGetCurrent(ctypes.byref(inside))
    library.cuCtxGetCurrent(ctypes.byref(after))
    same = before.value == inside.value == after.value and before.value is not None
    return {"passed": same}


def refusals(cuda: Any) -> dict[str, Any]:
    """What cannot be read in place is refused with a reason."""
    told = {}
    for name, tensor in (
        ("transposed", torch.ones((3, 4), device="cuda").T),
        ("needs a gradient", torch.ones(3, device="cuda", requires_grad=True)),
    ):
        try:
            with cuda.current():
                view(tensor, cuda, cuda.thread_stream())
            told[name] = "TAKEN"
        except BackendError as error:
            told[name] = error.message
    return {"passed": "TAKEN" not in told.values(), "told": told}


if __name__ == "__main__":
    sys.exit(main())
