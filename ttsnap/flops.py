"""FLOPs of a call, counted by torch on the meta device: nothing is computed, no hook of the real module runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def on_meta(module: Any) -> Any:
    """A diffusers model of the same configuration without weights. Adapters (LoRA) added later are not in it."""
    module = getattr(module, "_orig_mod", module)  # torch.compile
    with torch.device("meta"):
        return type(module).from_config(module.config).eval()


def count_flops(call: Callable[[], Any]) -> float:
    """FLOPs (two per multiply-add) of matmuls, convolutions and attention in `call`.

    Attention is counted through its matmul form, since torch has no formula for the CPU's fused kernel.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
