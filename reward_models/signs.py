"""A noise-aware reward of the world that writes: a small network reads latents and predicts what an
OCR will say.

The OCR is the teacher (`ttsnap distill --reward ocr:line`), and scores finished images. Estimates
are read as latents: neither a decode nor the OCR is run for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from ttsnap.core.protocols import Reward, Scores
from ttsnap.files.settings import Json
from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.noise_aware.files import fill, read_header, write_adapter
from ttsnap.reward_models.noise_aware.network import LevelEmbedding
from ttsnap.reward_models.ocr import OCR
from ttsnap.reward_models.weights import read_state
from ttsnap.rewards.reward_model import RewardModel, adapted
from ttsnap.scenes.reader import Block
from ttsnap.signs import noise_aware_path, parse
from ttsnap.signs.grammar import LETTERS, MAX_LETTERS

KIND = "sign-reader"
"""The kind that adapter.json names."""
CHANNELS = 8
ROWS = 8
COLUMNS = 24
"""Of the latents."""
WIDTH = 64


class SignReader(nn.Module):
    """Latents (N, 8, 8, 24) and words (N, 8) -> a logit for each letter, whether it will be right
    in its place.

    Every cell is named as a letter or as the plate. A letter of the word begins with how likely it
    is in each column, and looks at the other letters and the cells.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, WIDTH // 2, 3, 1, 1)
        self.fine = Block(WIDTH // 2)
        self.down = nn.Conv2d(WIDTH // 2, WIDTH, (4, 3), (2, 1), 1)
        self.coarse = nn.Sequential(*[Block(WIDTH) for _ in range(3)])
        self.norm = nn.GroupNorm(8, WIDTH)
        self.names = nn.Conv2d(WIDTH, 1 + len(LETTERS), 1)
        self.columns = nn.Linear(COLUMNS, WIDTH)
        self.cells = nn.Parameter(0.02 * torch.randn(WIDTH, ROWS // 2, COLUMNS))
        self.letters = nn.Embedding(1 + len(LETTERS), WIDTH)
        self.places = nn.Embedding(MAX_LETTERS, WIDTH)
        self.lengths = nn.Embedding(1 + MAX_LETTERS, WIDTH)
        self.looks = nn.ModuleList(
            [
                nn.TransformerDecoderLayer(
                    WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(2)
            ]
        )
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def see(self, latents: Tensor) -> Tensor:
        """(N, 8, 8, 24) -> cells (N, WIDTH, 4, 24)."""
        return nn.functional.silu(self.norm(self.coarse(self.down(self.fine(self.stem(latents))))))

    def forward(self, latents: Tensor, words: Tensor) -> Tensor:
        """words: letter_ids. The logits (N, 8) of places without a letter mean nothing."""
        seen = self.see(latents)
        there = words > 0
        likely = self.names(seen).log_softmax(1).amax(2)  # (N, 27, columns)
        columns = likely.gather(1, words[..., None].expand(-1, -1, COLUMNS))
        asked = (
            self.columns(columns)
            + self.letters(words)
            + self.places.weight
            + self.lengths(there.sum(1))[:, None]
        )
        cells = (seen + self.cells).flatten(2).transpose(1, 2)
        for look in self.looks:
            asked = look(asked, cells, tgt_key_padding_mask=~there)
        logits: Tensor = self.head(asked)[..., 0]
        return logits


def letter_ids(prompts: Sequence[str]) -> Tensor:
    """(N, 8) long: 1 for A to 26 for Z, 0 after the word's last letter. ValueError for a prompt
    outside the grammar."""
    ids = torch.zeros(len(prompts), MAX_LETTERS, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        word = parse(prompt).word
        row[: len(word)] = torch.tensor([1 + LETTERS.index(letter) for letter in word])
    return ids


class SignsNoiseAware(RewardModel):
    """What the OCR will say of the finished image: the share of the word's letters that will be
    right.

    A student (distill.student.Student) for `--student.kind
    ttsnap.reward_models.signs:SignsNoiseAware`.

    Args:
        base: the OCR, or another reward of the same world.
        start: a file of weights of SignReader to start from, at random without.
        seed: of random weights.
    """

    name = "signs-noise-aware"
    estimates = space = "latents"
    example = 'a red sign that says "HELLO"'
    network: nn.ModuleDict
    base: RewardModel

    def __init__(self, base: Reward | None = None, *, start: str = "", seed: int = 0) -> None:
        self.base = adapted(base or OCR("line"))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.reader = SignReader()
            sites = {"stem": WIDTH // 2, "down": WIDTH, **{f"coarse.{i}": WIDTH for i in range(3)}}
            self.level = LevelEmbedding(sites)
        self.level.attach(self.reader)
        if start:
            self.reader.load_state_dict(read_state(Path(start)))
        self.network = nn.ModuleDict({"reader": self.reader, "level": self.level}).eval()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for a prompt outside the grammar."""
        letter_ids(prompts)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """Finished images, by the base."""
        return self.base(images, prompts)

    @torch.no_grad()
    def score_estimates(
        self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        return self.predict(x, prompts, torch.zeros(len(x)) if level is None else level)

    def predict(self, x: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """Scores (N,) float32 of latents (N, 8, 8, 24) at noise levels (N,), with a graph."""
        words = letter_ids(prompts).to(self.device)
        with self.level.at(level.to(self.device, torch.float32)) as features:
            right = self.reader(x.to(self.device, torch.float32), words).sigmoid() * (words > 0)
            return self.level.rescale(right.sum(1) / (words > 0).sum(1), features)

    @cached_property
    def flops(self) -> float:
        """FLOPs of an estimate."""
        latents = torch.zeros(1, CHANNELS, ROWS, COLUMNS)
        return count_flops(lambda: self.predict(latents, [self.example], torch.tensor([0.5])))

    @cached_property
    def base_flops(self) -> float:
        return max(0.0, self.base.flops - self.flops)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def begin_stage(self, level: float) -> None:
        """Nothing to prepare: all levels share the network."""

    def save_pretrained(self, folder: str | Path, info: Mapping[str, Json] | None = None) -> None:
        """Write adapter.safetensors and adapter.json (noise_aware/files.py)."""
        write_adapter(
            Path(folder),
            {"kind": KIND, "base": "ocr:line", "info": dict(info or {})},
            self.trainable(),
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        base: Reward | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """What `save_pretrained` wrote, the packaged one by default. ValueError where it is
        damaged."""
        folder = folder or noise_aware_path()
        header = read_header(folder, (KIND,))
        made = cls(base)
        fill(made.trainable(), folder, header)
        made.network.to(device)
        return made
