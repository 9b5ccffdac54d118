"""A vision-language model with a head on its hidden states, as a reward.

The head is `rm_head.` in a checkpoint, or `rm_heads.NAME.` where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.reward_models.preprocess import Sight
from ttsnap.reward_models.vlm.model import RENAMED, AskedVLM
from ttsnap.reward_models.weights import (
    load_into,
    locate,
    merge_adapters,
    pretrained,
    read_weights,
    renamed,
)

KINDS = ("qwen2_vl", "qwen2_5_vl")
"""Model types of backbones. MiMo-VL is of the second."""
HEADS = ("rm_heads.", "rm_head.")
EMBEDDING = "language_model.embed_tokens.weight"


class Headed(nn.Module):
    """A backbone of transformers (Qwen2VLModel or Qwen2_5_VLModel) and heads on its last hidden
    states."""

    def __init__(self, backbone: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)

    def forward(self, head: int, inputs: dict[str, Tensor], marked: Tensor) -> Tensor:
        """A head's outputs at the marked tokens, as many in each of N rows: (N, tokens, outputs)
        float32.

        inputs: of the backbone; marked (N, length) bool. Position ids count up through images and
        videos as through text, not over rows and columns as Qwen2-VL's own: the trainers of these
        models pass embeddings, which have no place in an image.
        """
        n, length = marked.shape
        places = torch.arange(length, device=marked.device).expand(3, n, length)
        hidden = self.backbone(**inputs, position_ids=places, use_cache=False).last_hidden_state[
            marked
        ]
        values: Tensor = self.heads[head](hidden.float())
        return values.view(n, -1, values.shape[-1])


class HeadedVLM(AskedVLM):
    """A vision-language model with a head for each question. Subclasses have the questions and what
    is shown.

    network: the backbone in its dtype and the heads in float32.
    """

    files: tuple[str, ...] = ("model.safetensors",)
    """Names that the file of weights may have."""
    marks: tuple[str, ...] = ("<|Reward|>",)
    """Tokens at which heads read, added to the tokenizer in this order; each question has each of
    them once."""
    pixels: tuple[int, int] = (256 * 28 * 28, 256 * 28 * 28)
    """Fewest and most pixels of an image or frame."""
    network: Headed
    preprocess: Sight

    def __init__(self, network: Headed, processor: Any, *, batch_size: int = 4) -> None:
        if len(network.heads) != len(self.questions):
            heads = f"{len(network.heads)} heads for {len(self.questions)} questions"
            raise ValueError(
                f"{self.name} needs a head (rm_head or rm_heads) for each question, got {heads};"
                " are these the weights of another reward?"
            )
        config: Any = network.backbone.config
        self._tokenizer = processor.tokenizer
        self._tokenizer.add_tokens(list(self.marks), special_tokens=True)
        self._tokenizer.padding_side = "right"
        self._marks = torch.tensor(self._tokenizer.convert_tokens_to_ids(list(self.marks)))
        known = int(config.text_config.vocab_size)
        if int(self._marks.max()) >= known:
            raise ValueError(
                f"the weights of {self.name} know {known} tokens, its tokenizer more; are they a"
                " pair?"
            )
        sight = Sight.of(config, self.pixels)
        super().__init__(network, processor, sight, batch_size=batch_size)

    @classmethod
    def load(
        cls,
        source: str,
        dtype: torch.dtype,
        *,
        backbone: str | Path | None = None,
        scale: float = 1.0,
        **options: Any,
    ) -> Self:
        """source: weights in safetensors. dtype: the backbone's. scale: the factor of low-rank
        adapters in the weights.

        backbone: a folder or hub id with the configuration and the tokenizer; by default those
        beside the weights, or those of `cls.backbone`.
        """
        from transformers import AutoConfig, AutoProcessor

        state = merge_adapters(read_weights(source, cls.files), scale)
        texts = str(backbone or _beside(source) or cls.backbone)
        config = pretrained(AutoConfig, texts)
        processor = pretrained(AutoProcessor, texts)
        tensors, heads = split_heads(state)
        network = build_backbone(config, tensors, dtype, source)
        width = int(config.text_config.hidden_size)
        return cls(
            Headed(network, [build_head(head, width, source) for head in heads]),
            processor,
            **options,
        )

    def read(self, values: Sequence[Tensor]) -> Tensor:
        """The heads' outputs, each (N, marks, outputs) float32 -> scores (N,): the mean first
        output at first marks."""
        return torch.stack([value[:, 0, 0] for value in values]).mean(0)

    def show(self, images: Tensor, source: Tensor | None) -> list[Tensor]:
        """A batch's images, sources first, or its videos, each (N, T, 3, h, w) levels 0..255; T is
        1 for images."""
        return [self.preprocess.image(x) for x in (source, images) if x is not None]

    def score(self, images: Tensor, prompts: Sequence[str], source: Tensor | None = None) -> Tensor:
        shown = self.show(images, source)
        return self.read([self._ask(head, shown, prompts) for head in range(len(self.questions))])

    def _ask(self, head: int, shown: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """A head's outputs for its question about each row of `shown`: (N, marks, outputs)."""
        kind = "video" if "video" in self.needs else "image"
        cut = [
            [self.preprocess.patches(levels) for levels in row] for row in zip(*shown, strict=True)
        ]
        texts = [
            self._text(head, kind, [grid for _, grid in row], p)
            for row, p in zip(cut, prompts, strict=True)
        ]
        read = self._tokenizer(texts, padding=True, return_tensors="pt")
        ids = read["input_ids"].to(self.device)
        mask = read["attention_mask"].to(self.device)
        patches = torch.cat([patches for row in cut for patches, _ in row]).to(self.device)
        grids = torch.stack([grid for row in cut for _, grid in row]).to(self.device)
        name = "pixel_values_videos" if kind == "video" else "pixel_values"
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            name: patches,
            f"{kind}_grid_thw": grids,
        }
        values: Tensor = self.network(head, inputs, torch.isin(ids, self._marks.to(self.device)))
        return values

    def _text(self, head: int, kind: str, grids: Sequence[Tensor], prompt: str) -> str:
        """A question in the model's chat layout, with the tokens of each image or video."""
        text = self.layout(self.question(head, prompt), len(grids), kind)
        pad = f"<|{kind}_pad|>"
        first, *rest = text.split(pad)
        return first + "".join(
            pad * self.preprocess.tokens(grid) + part
            for grid, part in zip(grids, rest, strict=True)
        )


def _beside(source: str) -> Path | str | None:
    """The folder or hub id of the weights, where it also has the configuration and the
    tokenizer."""
    path = Path(source).expanduser()
    where = path.parent if path.is_file() else source
    try:
        for name in ("config.json", "tokenizer_config.json"):
            locate(where, [name])
    except ValueError:
        return None
    return where


def split_heads(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The backbone's tensors by transformers' names, and each head's, in the order of the heads'
    names.

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
        backbone[renamed(name, RENAMED)] = value
    return backbone, [heads[name] for name in sorted(heads)]


def build_backbone(
    config: object, state: Mapping[str, Tensor], dtype: torch.dtype, source: str
) -> nn.Module:
    """transformers' model of `config` with these weights, which are not copied where `dtype` is
    theirs.

    The vocabulary's size is the checkpoint's: trainers cut the table of embeddings to their
    tokenizer's.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModel

    kind = str(getattr(config, "model_type", ""))
    if kind not in KINDS:
        raise ValueError(
            f"the configuration of {source} is of a {kind!r}; this reward reads"
            f" {' and '.join(KINDS)}"
        )
    if EMBEDDING not in state:
        raise ValueError(f"the weights in {source} are for another model: no {EMBEDDING}")
    config.text_config.vocab_size = len(state[EMBEDDING])  # type: ignore[attr-defined]
    with init_empty_weights():
        network: nn.Module = AutoModel.from_config(config, dtype=dtype)
    load_into(
        network, {name: value.to(dtype) for name, value in state.items()}, source, assign=True
    )
    return network


def build_head(state: Mapping[str, Tensor], width: int, source: str) -> nn.Sequential:
    """Linear layers in float32 with a ReLU between each two, as many and as wide as the
    checkpoint's.

    Layers are named by numbers in order (0, 3, 5 in a RankNet of three); a single layer has no
    name. ValueError where layers do not fit each other, or the first does not read `width`
    features.
    """
    names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: (len(name), name))
    layers: list[nn.Module] = []
    for name in names:
        start = f"{name}." if name else ""
        weight = state.get(f"{start}weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != width:
            shape = None if weight is None else tuple(weight.shape)
            raise ValueError(
                f"the head in {source} has no layer {name!r} that reads {width} features, got"
                f" {shape}"
            )
        bias = state.get(f"{start}bias")
        layer = nn.Linear(width, len(weight), bias=bias is not None)
        load_into(
            layer,
            {"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()}),
            source,
        )
        layers += [nn.ReLU(), layer] if layers else [layer]
        width = len(weight)
    return nn.Sequential(*layers)
