"""A copy of a network that is trained in part and shares the rest with the original."""

from __future__ import annotations

import copy
import re
from itertools import chain

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from ttsnap.reward_models.scorer import Scorer


def trained_copy(base: Scorer, kind: str, rank: int) -> nn.Module:
    """base.network again, with LoRA or DoRA on `base.adapted`, or (kind "full") with `base.trained` of its own.

    Every other tensor is the original's, so that memory holds the weights once, and the original never changes. At
    first both compute the same. Adapters are float32 whatever the network's dtype.
    """
    if kind == "full":
        network = share(base.network, base.trained)
        own = [p for name, p in network.named_parameters() if re.fullmatch(base.trained, name)]
        if not own:
            raise ValueError(f"no parameter of {base.name} matches {base.trained!r}; is it another architecture?")
        for parameter in own:
            parameter.requires_grad_(True)
        return network
    network = share(base.network)
    open_attention(network, base.adapted)
    matches = [name for name, _ in network.named_modules() if re.fullmatch(base.adapted, name)]
    if not matches:
        raise ValueError(f"no module of {base.name} matches {base.adapted!r}; is it another architecture?")
    import peft  # it takes seconds to import

    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=base.adapted, use_dora=kind == "dora")
    adapted: nn.Module = peft.inject_adapter_in_model(config, network)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def share(network: nn.Module, own: str = "") -> nn.Module:
    """A copy of the module tree that holds the same tensors, but copies of the parameters whose names match `own`."""
    tensors = chain(network.named_parameters(), network.named_buffers())
    memo = {id(tensor): tensor for name, tensor in tensors if not re.fullmatch(own, name)}
    return copy.deepcopy(network, memo)  # type: ignore[arg-type]


def open_attention(network: nn.Module, adapted: str) -> None:
    """Put a ProjectedAttention in place of every nn.MultiheadAttention whose in_proj is to be adapted."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and re.fullmatch(adapted, f"{name}.in_proj"):
            network.set_submodule(name, ProjectedAttention(module))


class ProjectedAttention(nn.Module):
    """nn.MultiheadAttention's self-attention with projections that are modules, so that adapters can go into them.

    peft can adapt an nn.MultiheadAttention, but adds its update to the weight before every call and takes it off
    again, which leaves a rounding error each time, and knows no DoRA there. The parameters are the given module's.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if not attention.batch_first or attention.in_proj_weight is None or attention.bias_k is not None:
            raise ValueError(f"only batch-first self-attention without extra keys can be adapted, got {attention}")
        self.heads, self.out_proj = attention.num_heads, attention.out_proj
        self.in_proj = nn.Linear(1, 1, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.in_proj.out_features, self.in_proj.in_features = attention.in_proj_weight.shape

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """query (N, T, D), which key and value are, too; attn_mask as in scaled_dot_product_attention."""
        n, t, d = query.shape
        q, k, v = self.in_proj(query).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, t, d)), None
