"""FLOPs of a call, counted by torch without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flops(call: Callable[[], Any]) -> float:
    """FLOPs (two per multiply-add) of matmuls, convolutions and attention in `call`, which runs on fake tensors.

    Tensors that `call` creates are fake, so nothing is computed; real module weights may be used as they are.
    Attention is counted through its matmul form, since torch has no formula for the CPU's fused kernel.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return float(counter.get_total_flops())
