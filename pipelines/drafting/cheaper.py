"""What makes a call of a drafter cheaper: blocks left out of its network, and its LoRA merged into the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from ttsnap.pipelines.lora import tuned_layers

from ttsnap.files.reading import printable

_LISTS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""Names of lists whose blocks take and give the same shapes. Those of a U-Net's stages do not."""
MOST_MERGED = 2**30
"""Most bytes of layers that are copied to merge a LoRA into them; on CUDA devices a quarter of the free memory, if that
is more."""


def block_lists(net: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of alike blocks of a network, of which any may be left out, by their names in it."""
    lists = {name: part for name, part in net.named_modules() if isinstance(part, nn.ModuleList)}
    return {
        name: part for name, part in lists.items()
        if name.rpartition(".")[2] in _LISTS and len(part) > 1 and len(set(map(type, part))) == 1
    }  # fmt: skip


def leave_out(net: nn.Module, skipped: Sequence[str], said: str) -> None:
    """Take these blocks out of a network's lists, in place. The others keep their names.

    said: what messages begin with. ValueError for what is no such block, and where a list would be empty.
    """
    lists = block_lists(net)
    for name in skipped:
        where, _, key = name.rpartition(".")
        if where not in lists or key not in lists[where]._modules:
            known = ", ".join(f"{there} (0 to {len(part) - 1})" for there, part in block_lists(net).items())
            raise ValueError(f"{said}: cannot leave out {printable(name)} of a {type(net).__name__}, whose lists of "
                             f"alike blocks are {known or 'none'}")  # fmt: skip
        del lists[where]._modules[key]
    if empty := [name for name, part in lists.items() if not len(part)]:
        raise ValueError(f"{said}: no block is left of {empty[0]}; leave out fewer")


def merge(net: nn.Module) -> None:
    """Merge the LoRA of a network into copies of the layers that it changes, where there is room for these.

    The layers may share their weights with another network, which stay as they are. Quantised weights are not merged.
    """
    layers = [layer.get_base_layer() for _, layer in tuned_layers(net)]
    weights = [p for layer in layers for p in layer.parameters()]
    most, device = MOST_MERGED, weights[0].device
    if device.type == "cuda":
        most = max(most, torch.cuda.mem_get_info(device)[0] // 4)
    plain = all(type(p) is nn.Parameter and p.is_floating_point() for p in weights)
    if not plain or sum(p.nbytes for p in weights) > most:
        return
    for layer in layers:
        for name, p in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(p.detach().clone(), requires_grad=False))
    net.fuse_lora()  # type: ignore[operator]
    net.unload_lora()  # type: ignore[operator]
