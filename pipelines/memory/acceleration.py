"""Attention kernels and torch.compile for the denoising network.

SDPA of PyTorch is the default. A compiled network does not recompile each time a batch shrinks.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from diffusers.models import attention_processor as processors
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils.import_utils import is_xformers_available
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ttsnap.core.names import unknown
from ttsnap.extras import install

SDPA = "sdpa"
# Processors whose counterpart for xformers computes the same. diffusers' own method,
# enable_xformers_memory_efficient_attention(), replaces all processors, which changes some models:
# Sana's linear attention would become softmax, and Lumina2 would lose its rotary embedding.
TWINS: dict[type, type] = {
    processors.AttnProcessor: processors.XFormersAttnProcessor,
    processors.AttnProcessor2_0: processors.XFormersAttnProcessor,
    processors.JointAttnProcessor2_0: processors.XFormersJointAttnProcessor,
}
BACK: dict[type, type] = {
    processors.XFormersAttnProcessor: processors.AttnProcessor2_0,
    processors.XFormersJointAttnProcessor: processors.JointAttnProcessor2_0,
}
# Denoisers that mask the padding of shorter prompts inside their attention.
MASKING = ("PixArtTransformer2DModel", "QwenImageTransformer2DModel", "ZImageTransformer2DModel")
MOST_ERROR = 0.1
"""The largest relative error against SDPA at which a kernel is accepted. Kernels that quantise are
below it; a kernel that misreads the mask is far above it."""
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(query, key, value (B, L, heads, D), mask (B, L), True where a key is attended to) -> (B, L,
heads, D)."""


class _UnfitError(Exception):
    """A backend cannot run this model here."""


def network(pipe: Any) -> Any:
    """The transformer or U-Net of a pipeline, without the wrapper of torch.compile. ValueError
    where it has neither."""
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if model is None:
        raise ValueError(f"{type(pipe).__name__} has neither a transformer nor a unet")
    return getattr(model, "_orig_mod", model)  # torch.compile(module)


def use_attention(pipe: Any, backend: str = SDPA) -> str:
    """Run the denoiser's attention on `backend` and return what is in force: that, or "sdpa" with a
    warning why not.

    backend: "sdpa", "xformers", or another name of diffusers' AttentionBackendName ("flash",
    "sage", ...). It is tried on the pipeline's device, dtype and head sizes before it is used: move
    the pipeline first. ValueError for an unknown name. Pipelines that share the network share the
    change. Where diffusers dispatches attention (Flux, Flux.2, Qwen-Image, Z-Image) it sets the
    backend for the whole process. Other models of these kinds that were not given one get it,
    too. Switch before compile_denoiser.
    """
    name = backend.lower()
    model = network(pipe)
    known = [SDPA, *(b.value for b in AttentionBackendName)]
    if name not in known:
        raise ValueError(unknown("attention backend", backend, known))
    _native(model)
    if name in (SDPA, AttentionBackendName.NATIVE.value):
        return SDPA
    try:
        _switch(pipe, model, name)
    except _UnfitError as why:
        _native(model)
        warnings.warn(f"attention stays with PyTorch's SDPA: {why}", stacklevel=2)
        return SDPA
    return name


def dispatches(model: Any) -> bool:
    """Whether set_attention_backend reaches this model's attention. Elsewhere it silently does
    nothing."""
    return any(hasattr(module.processor, "_attention_backend") for module in _attention(model))


def _attention(model: Any) -> Iterator[Any]:
    return (
        m
        for m in model.modules()
        if hasattr(m, "set_processor") and getattr(m, "processor", None) is not None
    )


def _native(model: Any) -> None:
    """Return to SDPA. diffusers' disable_xformers_... would give SD3 a processor that ignores the
    prompt."""
    for module in _attention(model):
        if type(module.processor) in BACK:
            module.set_processor(BACK[type(module.processor)]())
    if dispatches(model):
        model.set_attention_backend(AttentionBackendName.NATIVE.value)


def _switch(pipe: Any, model: Any, name: str) -> None:
    """Set the backend of the model. _UnfitError where that is impossible."""
    if name == "xformers" and not is_xformers_available():
        raise _UnfitError(f"xformers is not installed; {install('xformers')} (Linux, x86-64)")
    if dispatches(model):
        try:
            model.set_attention_backend(name)
        except (
            Exception
        ) as error:  # a package or a device is missing, or a kernel could not be downloaded
            raise _UnfitError(f"{name} cannot be used: {_first_line(error)}") from error
        _try(pipe, model, name, _dispatched(name))
        return
    if name != "xformers":
        raise _UnfitError(
            f"diffusers cannot switch the attention of {type(model).__name__} to {name}"
        )
    modules = list(_attention(model))
    alone = {type(m.processor).__name__ for m in modules if type(m.processor) not in TWINS}
    alone |= {
        "query norms"
        for m in modules
        if type(m.processor) in _PLAIN and getattr(m, "norm_q", None) is not None
    }
    if alone or not modules:
        raise _UnfitError(
            f"xformers has no counterpart of {', '.join(sorted(alone))} of {type(model).__name__}"
        )
    _try(pipe, model, name, _memory_efficient)
    for module in modules:
        module.set_processor(TWINS[type(module.processor)]())


_PLAIN = (processors.AttnProcessor, processors.AttnProcessor2_0)


def _dispatched(name: str) -> Kernel:
    """The backend `name`, called as the attention processors of Flux do: with a boolean mask (B, 1,
    1, L)."""

    def kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :]
        return dispatch_attention_fn(
            query, key, value, attn_mask=seen, backend=AttentionBackendName(name)
        )

    return kernel


def _memory_efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """xformers, called as XFormersAttnProcessor does: tensors (B * heads, L, D), the mask as a bias
    on the logits."""
    batch, length, heads, _ = query.shape
    q, k, v = (t.transpose(1, 2).flatten(0, 1).contiguous() for t in (query, key, value))
    bias = None
    if mask is not None:
        rows = ((~mask).to(query.dtype) * -10000.0).repeat_interleave(heads, 0)
        bias = rows[:, None, :].expand(-1, length, -1)
    out = cast(Any, processors).xformers.ops.memory_efficient_attention(q, k, v, attn_bias=bias)
    return cast(Tensor, out.unflatten(0, (batch, heads)).transpose(1, 2))


def _try(pipe: Any, model: Any, name: str, kernel: Kernel) -> None:
    """Compare the kernel with SDPA on random tensors, on the pipeline's device, in the model's
    dtype and head sizes.

    _UnfitError where it fails, or its relative error is not below MOST_ERROR.
    """
    device = pipe._execution_device
    dtype = model.dtype
    where = f"{str(dtype).removeprefix('torch.')} on {device.type}"
    # 300: some kernels want multiples of 8 of a mask
    length = 300
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, length, dtype=torch.bool, device=device)
    mask[1, length // 3 :] = False
    for size in sorted({m.inner_dim // m.heads for m in _attention(model)}):
        q, k, v = (
            torch.randn(2, length, 2, size, generator=generator).to(device, dtype) for _ in range(3)
        )
        for seen in (None, mask) if type(model).__name__ in MASKING else (None,):
            task = f"heads of {size}, {where}"
            task += "" if seen is None else ", masking the padding of shorter prompts"
            try:
                with torch.no_grad():
                    error = _error(kernel(q, k, v, seen), q, k, v, seen)
            except Exception as failure:
                hint = "; move the pipeline to a CUDA device first" if device.type == "cpu" else ""
                raise _UnfitError(
                    f"{name} failed on {task}: {_first_line(failure)}{hint}"
                ) from failure
            if not error < MOST_ERROR:
                raise _UnfitError(
                    f"{name} computes something else than SDPA ({task}): relative error {error:.2g}"
                )


def _error(found: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> float:
    """Relative L2 error of a kernel's output (B, L, heads, D) against SDPA of the same query, key,
    value and mask."""
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    seen = None if mask is None else mask[:, None, None, :]
    expected = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).float()
    return float((found.float() - expected).norm() / expected.norm())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


RECOMPILE_LIMIT = 64
"""Kinds of blocks times batch sizes. PyTorch's limit of 8 would be an error in searches with larger
batches."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


def compile_denoiser(
    pipe: Any,
    *,
    mode: str | None = None,
    regional: bool = True,
    dynamic: bool | None = False,
    **options: Any,
) -> None:
    """Compile the denoising network in place, at its first calls; the weights and the module stay
    the same.

    mode: of torch.compile, as "max-autotune-no-cudagraphs". ValueError for those with CUDA graphs,
    which reuse the memory of outputs that a search keeps. regional: only the repeated blocks, as
    full graphs, where diffusers names them (U-Nets, Flux, Flux.2, Qwen-Image, Z-Image): quicker to
    compile; elsewhere the whole network is compiled.
    dynamic: False compiles once per batch size, and `pipe._search_buckets = True` makes
    `SearchMixin.engine` fill batches up to a few sizes (ttsnap/engine/batch_sizes.py); True
    compiles for any size, and batches stay as they are.
    options: more arguments of torch.compile.
    """
    if mode in CUDA_GRAPHS:
        raise ValueError(
            f"mode {mode!r} reuses the memory of outputs; choose 'max-autotune-no-cudagraphs' or"
            " None"
        )
    model = network(pipe)
    settings: dict[str, Any] = {"mode": mode, "dynamic": dynamic, **_limit(), **options}
    if regional and getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks(**{"fullgraph": True, **settings})
    else:
        model.compile(**settings)
    pipe._search_buckets = dynamic is not True


def _limit() -> dict[str, int]:
    """The limit of compilations: an option of torch.compile, or in older versions set for the
    process."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": RECOMPILE_LIMIT}
    config: Any = importlib.import_module("torch._dynamo.config")
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    return {}
