"""One full-size comparison with romatch on the CPU: the same random weights, 560 and 864, symmetric.

    uv run python benchmarks/roma_full_parity.py [--threads 2] [--out docs/benchmarks/roma-full-parity.json]

Writes a receipt: time and peak memory of both, and their differences at every stage. Needs about 9 GB of memory and
several minutes. Random weights say that both compute the same function; they say nothing about matching.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "plugins" / "roma"))

import roma_oracle

from matchrt_roma.networks import Roma, part_names
from matchrt_roma.settings import RomaConfig, RomaSettings


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def differences(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    gap = (ours - theirs).abs().flatten()
    some = gap[:: max(1, gap.numel() // 2_000_000)]
    return {
        "max": float(gap.max()),
        "mean": float(gap.mean()),
        "p999": float(some.quantile(0.999)),
        "share_above_1e-4": float((gap > 1e-4).float().mean()),
        "reference_std": float(theirs.std()),
    }


def run_upstream(twins: roma_oracle.Twins, pair: Tensor, high: Tensor) -> tuple[dict[str, Tensor], float]:
    """Warp and certainty of `match`, and the Gaussian process' mean, its input and the anchors' flow on the way."""
    kept: dict[str, Tensor] = {}
    gp, decoder = twins.theirs.decoder.gps["16"], twins.theirs.decoder.embedding_decoder
    hooks = [
        gp.register_forward_hook(lambda _m, args, out: kept.update(f16=args[0].clone(), mean=out.clone())),
        decoder.register_forward_hook(
            lambda _m, _args, out: kept.update(logits=out[0].clone(), certainty=out[1].clone())
        ),
    ]
    started = time.perf_counter()
    warp, certainty = twins.theirs.match(pair[:1], pair[1:], im_A_high_res=high[:1], im_B_high_res=high[1:])
    seconds = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    width = warp.shape[2] // 2
    kept["warp"] = torch.stack((warp[0, :, :width, 2:], warp[0, :, width:, :2]))
    kept["dense_certainty"] = torch.stack((certainty[0, :, :width], certainty[0, :, width:]))
    return kept, seconds


def run_ours(network: Roma, pair: Tensor, high: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors: dict[str, Tensor] = {"images": pair[None], "images_high": high[None]}
    seconds = {}
    for name in part_names(network.settings):
        part = network.part(name)
        started = time.perf_counter()
        tensors.update(part.named(tensors))
        seconds[name] = round(time.perf_counter() - started, 2)
    return tensors, seconds


def gp_errors(twins: roma_oracle.Twins, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Any]:
    """Both float32 solves of upstream's features against float64, and the system's condition number."""
    gp, part = twins.theirs.decoder.gps["16"], twins.ours.gp
    f16 = theirs["f16"]
    again = part.posterior(f16[None])
    basis = gp.get_pos_enc(f16).flatten(2).transpose(1, 2).double()
    y = f16.double().flatten(2).transpose(1, 2).flip(0)
    result: dict[str, Any] = {"ours": 0.0, "upstream": 0.0, "condition": 0.0}
    for index in (0, 1):
        system = gp.K(y[index, None], y[index, None])[0] + gp.sigma_noise * torch.eye(y.shape[1], dtype=torch.float64)
        exact = gp.K(y[1 - index, None], y[index, None])[0] @ torch.linalg.solve(system, basis[index])
        for name, mean in (("ours", again), ("upstream", theirs["mean"])):
            error = float((mean[index].flatten(1).T - exact).abs().max())
            result[name] = max(result[name], error)
        values = torch.linalg.eigvalsh(system)
        result["condition"] = max(result["condition"], float(values[-1] / values[0]))
    return result


def compare(network: Roma, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Any]:
    mean, f16 = ours["mean"][0], ours["f16"][0]
    logits, certainty = network.match_decoder(mean, f16)
    their_logits = theirs["logits"].flatten(2).transpose(1, 2)
    flips = int((logits.argmax(-1) != their_logits.argmax(-1)).sum())
    same_logits, _ = network.match_decoder(theirs["mean"], theirs["f16"])
    return {
        "f16": differences(f16, theirs["f16"]),
        "gp_mean": differences(mean, theirs["mean"]),
        "anchor_logits": differences(logits, their_logits),
        "anchor_logits_from_upstream_mean": differences(same_logits, their_logits),
        "decoder_certainty": differences(certainty, theirs["certainty"]),
        "anchor_flips": flips,
        "tokens": int(logits.shape[0] * logits.shape[1]),
        "warp": differences(ours["warp"][0], theirs["warp"]),
        "certainty": differences(ours["certainty"][0], theirs["dense_certainty"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=560)
    parser.add_argument("--upsample-size", type=int, default=864)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/roma-full-parity.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    receipt: dict[str, Any] = {
        "what": "RoMa at full size against romatch, CPU, float32, the same random weights, symmetric",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "size": options.size,
        "upsample_size": options.upsample_size,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": options.threads,
        "load_average_at_start": [round(value, 1) for value in os.getloadavg()],
    }
    started = time.perf_counter()
    settings = RomaSettings(recipe="upstream", size=(options.size,) * 2, upsample_size=(options.upsample_size,) * 2)
    twins = roma_oracle.twins_of(RomaConfig(), settings, peak=2.0)
    receipt["build_seconds"] = round(time.perf_counter() - started, 1)
    receipt["parameters"] = sum(parameter.numel() for parameter in twins.ours.parameters())
    receipt["leaf"] = settings.leaf
    pair, high = roma_oracle.images(2, options.size), roma_oracle.images(2, options.upsample_size)
    gc.collect()
    receipt["peak_mib_after_build"] = peak_mib()
    ours, seconds = run_ours(twins.ours, pair, high)
    receipt["ours"] = {"seconds": seconds, "total_seconds": round(sum(seconds.values()), 1), "peak_mib": peak_mib()}
    print(json.dumps(receipt["ours"]), flush=True)
    theirs, upstream_seconds = run_upstream(twins, pair, high)
    receipt["upstream"] = {"total_seconds": round(upstream_seconds, 1), "peak_mib_of_both": peak_mib()}
    receipt["differences"] = compare(twins.ours, ours, theirs)
    receipt["gp_mean_max_error_against_float64"] = gp_errors(twins, ours, theirs)
    receipt["load_average_at_end"] = [round(value, 1) for value in os.getloadavg()]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(receipt, indent=2) + "\n")
    print(json.dumps(receipt, indent=2))


if __name__ == "__main__":
    main()
