"""What every training stage shares: budget, learning rate, log, checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Log:
    """Writes one JSON line an event to `log.jsonl` and the same, short, to the terminal."""

    def __init__(self, folder: Path) -> None:
        self.start = time.monotonic()
        self.file = (folder / "log.jsonl").open("a")

    def __call__(self, stage: str, **values: Any) -> None:
        """Record `values` of `stage`."""
        entry = {"t": round(time.monotonic() - self.start, 1), "stage": stage}
        entry.update({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        print(" ".join(f"{k}={v}" for k, v in entry.items()), flush=True)


def train(
    name: str,
    parameters: list[nn.Parameter],
    step: Callable[[], dict[str, Tensor]],
    settings: dict[str, Any],
    log: Log,
    save: Callable[[], None],
) -> None:
    """Run `step` (which returns "loss" and other figures) until the stage's seconds or steps are spent.

    AdamW with a short warm-up, then a cosine to zero over the budget; gradients are clipped at norm 1. Raises
    `FloatingPointError` when the loss stops being finite. `save` is called every minute and at the end.
    """
    optimiser = torch.optim.AdamW(parameters, lr=settings["rate"], weight_decay=1e-4, betas=(0.9, 0.99))
    start = shown = saved = time.monotonic()
    done, since = 0, 0
    while True:
        spent = time.monotonic() - start
        progress = done / settings["steps"] if "steps" in settings else spent / settings["seconds"]
        if progress >= 1:
            break
        warm = min(1.0, (done + 1) / 300)
        for group in optimiser.param_groups:
            group["lr"] = settings["rate"] * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        if done == settings.get("profile"):
            profile(step)
        figures = step()
        optimiser.zero_grad(set_to_none=True)
        figures["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        done, since = done + 1, since + 1
        if done in (1, 10) or time.monotonic() - shown > 8:
            values = {k: float(v.detach()) for k, v in figures.items()}
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"{name}: loss is {values['loss']} at step {done}")
            log(name, step=done, rate=since / (time.monotonic() - shown), memory_gb=memory(), **values)
            shown, since = time.monotonic(), 0
        if time.monotonic() - saved > 60:
            save()
            saved = time.monotonic()
    save()
    log(name, step=done, seconds=time.monotonic() - start, finished=True)


def memory() -> float:
    """Most GPU memory used so far, in gigabytes."""
    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def profile(step: Callable[[], dict[str, Tensor]]) -> None:
    """Print where the GPU's time goes in four steps (`--set TABLE.profile=STEP`)."""
    with torch.profiler.profile() as recorded:
        for _ in range(4):
            step()["loss"].backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = recorded.key_averages()
    print(
        averages.table(
            sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70, top_level_events_only=False
        )
    )
