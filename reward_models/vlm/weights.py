"""Checkpoints of vision-language models with a head: where their files are, and what their tensors are called here.

The names in a checkpoint are those of the transformers version, and of the trainer, that wrote it. Up to 4.51 the
vision tower of a Qwen2-VL was `visual.` and the text model `model.`; from 4.52 on they are `model.visual.` and
`model.language_model.`. A model trained by peft has `base_model.model.` before all of them, and low-rank adapters whose
products are added to the weights beside them. The head is `rm_head.`, or `rm_heads.NAME.` where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from ttsnap.reward_models.weights import load_into, locate, read_state

from ttsnap.files.reading import read_object

KINDS = ("qwen2_vl", "qwen2_5_vl")
"""Model types of configurations that are read here. MiMo-VL is of the second."""
INDEX = "model.safetensors.index.json"
"""Names the files of a checkpoint in several, as transformers writes it."""
RENAMED = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("visual.", "visual."),
    ("language_model.", "language_model."),
    ("model.", "language_model."),
)
"""Beginnings of published names, and of transformers' Qwen2VLModel and Qwen2_5_VLModel; the first that fits counts."""
HEADS = ("rm_heads.", "rm_head.")
EMBEDDING = "language_model.embed_tokens.weight"


def read_weights(name_or_path: str | Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint in safetensors, by their published names.

    name_or_path: a file, a folder or a hub id that holds one of `names`, or INDEX with the files that it lists.
    ValueError for anything else, pickles among it.
    """
    path = locate(name_or_path, [*names, INDEX])
    if path.name.endswith(".index.json"):
        listed = read_object(path, what="index of weights").get("weight_map")
        shards = sorted({str(file) for file in listed.values()}) if isinstance(listed, dict) else []
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError(f"{path} must list the files of its tensors, beside it, in weight_map")
        beside = path.parent if Path(name_or_path).expanduser().exists() else name_or_path
        paths = [locate(beside, [shard]) for shard in shards]
    else:
        paths = [path]
    wrong = next((path for path in paths if path.suffix != ".safetensors"), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is no safetensors file; docs/rewards.md shows how to convert a checkpoint to one")
    return {name: value for path in paths for name, value in read_state(path).items()}


def merge_adapters(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights with peft's low-rank adapters added to them: W + scale * B @ A, in float32; a state without any as it is.

    scale: the adapters' alpha / rank. Names lose what peft adds to them. ValueError for half an adapter, or one without
    a weight of its shape.
    """
    plain = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    out = {name.replace(".base_layer.", "."): value for name, value in plain.items() if ".lora_" not in name}
    for name, down in plain.items():
        if ".lora_A." in name:
            target = f"{name.partition('.lora_A.')[0]}.weight"
            up, weight = plain.get(name.replace(".lora_A.", ".lora_B.")), out.get(target)
            if up is None or weight is None or weight.shape != (len(up), down.shape[-1]):
                raise ValueError(f"the adapter {name} needs a lora_B, and {target} of its shape, beside it")
            out[target] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return out


def renamed(name: str) -> str:
    """The name that transformers' models without a head give to a published tensor."""
    start, new = next((pair for pair in RENAMED if name.startswith(pair[0])), ("", ""))
    return new + name.removeprefix(start)


def split_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The backbone's tensors by transformers' names, and those of each head, in the order of the heads' names.

    The layer that predicts words (`lm_head`) is dropped: no head reads it.
    """
    backbone: dict[str, Tensor] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("lm_head."):
            continue
        head = next((start for start in HEADS if name.startswith(start)), None)
        if head is not None:
            rest = name.removeprefix(head)
            one, rest = rest.split(".", 1) if head == "rm_heads." else ("", rest)
            heads.setdefault(one, {})[rest] = value
            continue
        backbone[renamed(name)] = value
    return backbone, [heads[name] for name in sorted(heads)]


def build_backbone(config: object, state: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> nn.Module:
    """transformers' model of `config` with these weights, which are not copied where they are of `dtype` already.

    The number of tokens is the checkpoint's: trainers cut the table of embeddings to what their tokenizer has.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModel

    kind = str(getattr(config, "model_type", ""))
    if kind not in KINDS:
        raise ValueError(f"the configuration beside {source} is of a {kind!r}; this reward reads {' and '.join(KINDS)}")
    if EMBEDDING not in state:
        raise ValueError(f"the weights in {source} are for another model: no {EMBEDDING}")
    config.text_config.vocab_size = len(state[EMBEDDING])  # type: ignore[attr-defined]
    with init_empty_weights():
        network: nn.Module = AutoModel.from_config(config, dtype=dtype)
    load_into(network, {name: value.to(dtype) for name, value in state.items()}, source, assign=True)
    return network


def build_head(state: Mapping[str, Tensor], width: int, source: str) -> nn.Sequential:
    """Linear layers in float32 with a ReLU between each two, as many and as wide as the checkpoint's.

    Their names are numbers, in order (a RankNet of three layers is 0, 3, 5); a single one has none. ValueError where
    the layers do not follow each other, or the first does not read `width` features.
    """
    names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: (len(name), name))
    layers: list[nn.Module] = []
    for name in names:
        start = f"{name}." if name else ""
        weight = state.get(f"{start}weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != width:
            shape = None if weight is None else tuple(weight.shape)
            raise ValueError(f"the head in {source} has no layer {name!r} that reads {width} features, got {shape}")
        bias = state.get(f"{start}bias")
        layer = nn.Linear(width, len(weight), bias=bias is not None)
        load_into(layer, {"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()}), source)
        layers += [nn.ReLU(), layer] if layers else [layer]
        width = len(weight)
    return nn.Sequential(*layers)
