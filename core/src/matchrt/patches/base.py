"""What a patch is, and how patches are applied and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Patch:
    """A replacement inside a network, in force while its context is open.

    `exact`: the patched network computes the same function in real arithmetic, so only rounding may differ; otherwise
    it approximates. `tolerance`: the largest absolute difference of outputs that tests allow.
    """

    name: str
    reason: str
    exact: bool
    tolerance: float
    apply: Callable[[nn.Module], AbstractContextManager[None]]


@contextmanager
def apply_patches(network: nn.Module, patches: Iterable[Patch]) -> Iterator[nn.Module]:
    """Apply `patches` in order and yield `network`; on leaving, also by an error, they are undone in reverse order."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch.apply(network))
        yield network


@contextmanager
def replaced_modules(network: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> Iterator[None]:
    """Swap submodules of `network` for what `replace` returns (None: leave it), and put the originals back.

    The children of a replaced module are not visited; `network` itself is never replaced. A replacement starts in its
    original's training mode.
    """
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        _replace_children(network, replace, swapped)
        yield
    finally:
        for parent, name, original in reversed(swapped):
            setattr(parent, name, original)


def _replace_children(
    parent: nn.Module, replace: Callable[[nn.Module], nn.Module | None], swapped: list[tuple[nn.Module, str, nn.Module]]
) -> None:
    for name, child in list(parent.named_children()):
        replacement = replace(child)
        if replacement is None:
            _replace_children(child, replace, swapped)
            continue
        replacement.train(child.training)
        setattr(parent, name, replacement)
        swapped.append((parent, name, child))
