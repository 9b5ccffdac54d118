"""FLOPs of a call, counted by torch. On the meta device nothing is computed and no hook of the real module runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module without its weights: adapters (LoRA) are kept; hooks (offload) and compilation are not.

    Raises whatever a parameter raises that cannot be put on the meta device (some quantised ones).
    """
    module = getattr(module, "_orig_mod", module)  # torch.compile
    tensors = [*module.parameters(), *module.buffers()]
    # deepcopy takes what is in the memo for copied, so no weight is.
    memo: dict[int, object] = {id(t): _emptied(t) for t in tensors}
    twin: nn.Module = remove_hook_from_module(copy.deepcopy(module, memo), recurse=True)
    for part in twin.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        registry = getattr(part, "_diffusers_hook", None)
        if registry is not None:
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)
    return twin.eval()


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    empty = tensor.detach().to("meta")
    return torch.nn.Parameter(empty, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else empty


def count_flops(call: Callable[[], object], *, fused: bool = False) -> float:
    """FLOPs (two per multiply-add) of matmuls, convolutions and attention in `call`.

    Attention is counted through its matmul form, since torch has no formula for the CPU's fused kernel; with `fused`
    (on an accelerator, whose kernels have formulas) it runs as it is.
    """
    with (
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        nullcontext() if fused else sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        call()
    return float(counter.get_total_flops())
