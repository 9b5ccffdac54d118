"""FLOPs of a call, counted by torch, or of a network in a file of ONNX.

On the meta device nothing is computed and no hook of the real module runs.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def on_meta(module: nn.Module) -> nn.Module:
    """A copy of a module without its weights: adapters (LoRA) are kept; hooks (offload) and
    compilation are not.

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
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=False)
    return empty


def count_flops(call: Callable[[], object]) -> float:
    """FLOPs (two per multiply-add) of matmuls, convolutions and attention in `call`, of which
    nothing is compiled.

    It runs as it would otherwise, and nothing is set that other threads would see.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        call()
    return float(counter.get_total_flops())


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of attention of these shapes (B, heads, L, D)."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
"""Of kernels for which torch has none."""


@cache
def count_onnx(path: Path, shape: tuple[int, ...]) -> float:
    """FLOPs, as above, of a network in a file of ONNX for one input of this shape.

    Onnxruntime runs it once on zeros, unoptimised, and its profile has the shapes that each
    operator saw.
    """
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    # fused operators hide shapes
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights, too
    options.intra_op_num_threads = torch.get_num_threads()
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    return float(
        sum(_operator(event["args"]) for event in events if "op_name" in event.get("args", {}))
    )


def _operator(about: Mapping[str, Any]) -> int:
    """FLOPs of an operator of ONNX, by its entry in a profile: a shape of each input and output, by
    its type."""
    name = about["op_name"]
    if name not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or "output_type_shape" not in about:
        return 0
    first, second, *_ = _shapes(about["input_type_shape"])
    (result, *_) = _shapes(about["output_type_shape"])
    match name:
        case "Conv":
            return 2 * math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":
            return 2 * math.prod(first) * math.prod(second[1:])
        case "Gemm":
            return 2 * math.prod(first) * result[-1]
        case _:
            return 2 * math.prod(result) * first[-1]


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[Sequence[int]]:
    return [shape for entry in entries for shape in entry.values()]
