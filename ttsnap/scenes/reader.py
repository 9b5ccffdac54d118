"""A small network that scores how well a caption describes a picture.

Convolutions turn a 32 x 32 picture into 8 x 8 cells, to which the caption's words attend. Attention
gates are sigmoids, not softmaxes, so that two red circles add twice what one adds: the network can
count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ttsnap.files.reading import foreign, read_object
from ttsnap.files.settings import Count, Natural, Settings, build

from .grammar import WORDS
from .render import NUM_LABELS

VOCABULARY = ("", *WORDS, ",")
MAX_WORDS = 16
CELLS = 8
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def word_ids(captions: Sequence[str]) -> Tensor:
    """(N, MAX_WORDS) long, 0 for padding. ValueError for a word that is not in the vocabulary, or
    too many of them."""
    ids = torch.zeros(len(captions), MAX_WORDS, dtype=torch.long)
    for i, text in enumerate(captions):
        words = re.findall(r"[^\s,]+|,", text.lower())
        if len(words) > MAX_WORDS or any(word not in VOCABULARY for word in words):
            raise ValueError(
                f"cannot read {text!r}: at most {MAX_WORDS} words of {', '.join(WORDS)}"
            )
        ids[i, : len(words)] = torch.tensor([VOCABULARY.index(word) for word in words])
    return ids


class Block(nn.Module):
    """A residual block of two convolutions (N, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(nn.functional.silu(self.norm2(h)))
        return out


class GatedLook(nn.Module):
    """Attention of words (N, T, D) to cells (N, M, C): a sum over cells, gated by a sigmoid per
    head, and its place.

    The place is the gates' mean position, which "left of" needs independently of how much was seen.
    """

    def __init__(self, width: int, cells: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(cells, width)
        self.value = nn.Linear(cells, width)
        self.place = nn.Linear(3 * heads, width)
        self.out = nn.Linear(width, width)

    def forward(self, words: Tensor, cells: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Words (N, T, D) and places (N, T, heads * 2). grid: positions of the cells (M, 2) in [-1,
        1]."""
        n, t, d = words.shape
        split = (n, -1, self.heads, d // self.heads)
        q = self.query(self.norm(words)).view(split).transpose(1, 2)
        k = self.key(cells).view(split).transpose(1, 2)
        v = self.value(cells).view(split).transpose(1, 2)
        # Few cells hold an object: the gates start mostly shut.
        weight = torch.sigmoid(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 - 2)
        mass = weight.sum(-1, keepdim=True)
        place = weight @ grid.to(weight.dtype) / (mass + 0.1)
        seen = (weight @ v).transpose(1, 2).reshape(n, t, d)
        what = torch.cat([place, mass.log1p()], -1).transpose(1, 2).reshape(n, t, -1)
        return words + self.out(seen) + self.place(what), place.transpose(1, 2).reshape(n, t, -1)


class Compare(nn.Module):
    """Displacements between the places of two words, along a direction, as "left of" needs them.

    The words and the direction follow from the text alone, so that the rest is a product, which is
    learned fast. Attention between words alone stayed at chance for hundreds of thousands of
    pictures.
    """

    def __init__(self, width: int, places: int, pairs: int = 16) -> None:
        super().__init__()
        self.pairs = pairs
        self.norm = nn.LayerNorm(width)
        self.ends = nn.Linear(width, 2 * pairs)
        # both ends on all words alike would be a saddle point: no displacement, no gradient
        with torch.no_grad():
            self.ends.weight.mul_(4)
        self.direction = nn.Linear(width, pairs * places)
        self.out = nn.Linear(pairs, width)

    def forward(self, text: Tensor, empty: Tensor, places: Tensor) -> Tensor:
        """text (N, T, D), padding (N, T), places (N, T, P) -> (N, D)."""
        text = self.norm(text)
        ends = self.ends(text).float().masked_fill(empty.unsqueeze(-1), -1e4).softmax(1)
        at = torch.einsum("nte,ntp->nep", ends, places.float())
        apart = at[:, : self.pairs] - at[:, self.pairs :]
        kept = (~empty).unsqueeze(-1).float()
        along = self.direction((text * kept).sum(1) / kept.sum(1)).float().view(apart.shape)
        out: Tensor = self.out((apart * along).sum(-1))
        return out


@dataclass(frozen=True)
class ReaderSize(Settings):
    """The size of a reader."""

    width: Count = 128
    """Channels of words and cells."""
    blocks: tuple[Natural, Natural] = (2, 4)
    """Residual blocks at 16 x 16 and at 8 x 8 cells."""
    layers: Count = 2
    """Of text, and as many of attention to cells."""
    heads: Count = 4


class SceneReader(nn.Module):
    """The network: pictures and captions -> a logit for each pair."""

    def __init__(self, size: ReaderSize) -> None:
        super().__init__()
        width = size.width
        blocks = size.blocks
        layers = size.layers
        heads = size.heads
        self.stem = nn.Conv2d(3, width // 2, 4, 2, 1)
        self.fine = nn.Sequential(*[Block(width // 2) for _ in range(blocks[0])])
        self.down = nn.Conv2d(width // 2, width, 4, 2, 1)
        self.coarse = nn.Sequential(*[Block(width) for _ in range(blocks[1])])
        self.norm = nn.GroupNorm(8, width)
        self.centres = nn.Conv2d(width, NUM_LABELS, 1)
        self.words = nn.Embedding(len(VOCABULARY), width)
        self.places = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        self.text = nn.ModuleList([_layer(width, heads) for _ in range(layers)])
        self.looks = nn.ModuleList([GatedLook(width, width, heads) for _ in range(layers)])
        self.think = nn.ModuleList([_layer(width, heads) for _ in range(layers)])
        self.compare = Compare(width, 2 * heads * layers)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        line = torch.linspace(-1, 1, CELLS)
        places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)
        self.register_buffer("grid", places, persistent=False)

    def see(self, pictures: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] -> cells (N, width, 8, 8)."""
        x = self.coarse(self.down(self.fine(self.stem(pictures))))
        return nn.functional.silu(self.norm(x))

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words (N, T) -> states (N, T, width) and padding mask (N, T)."""
        ids = ids[:, : max(1, int((ids > 0).sum(1).max()))]
        states = self.words(ids) + self.places[: ids.shape[1]]
        empty = ids == 0
        for layer in self.text:
            states = layer(states, src_key_padding_mask=empty)
        return states, empty

    def match(self, cells: Tensor, states: Tensor, empty: Tensor) -> Tensor:
        """Cells (N, width, 8, 8), states and padding mask of captions -> logits (N,) float32."""
        seen = cells.flatten(2).transpose(1, 2)
        text = states
        places = []
        for look, layer in zip(self.looks, self.think, strict=True):
            states, place = look(states, seen, self.grid)
            places.append(place)
            states = layer(states, src_key_padding_mask=empty)
        kept = (~empty).unsqueeze(-1).to(states.dtype)
        pooled = (states * kept).sum(1) / kept.sum(1) + self.compare(
            text, empty, torch.cat(places, -1)
        )
        logits: Tensor = self.head(pooled)[:, 0]
        return logits.float()

    def forward(self, pictures: Tensor, ids: Tensor) -> Tensor:
        """N pictures (N, 3, 32, 32) in [-1, 1] with N captions (N, T) -> logits (N,) float32."""
        return self.match(self.see(pictures), *self.read(ids))


def _layer(width: int, heads: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )


def load_reader(folder: Path) -> SceneReader:
    """A float32 network in evaluation mode. ValueError where the files are missing, damaged or do
    not fit."""
    try:
        config = read_object(folder / CONFIG)
        model = SceneReader(build(ReaderSize, config["model"], "model."))
        with foreign(f"cannot read {folder / WEIGHTS}"):
            state = load_file(folder / WEIGHTS)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{folder} holds no learned reward of the embedded world: {error}"
        ) from error
    return model.eval()
