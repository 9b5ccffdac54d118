"""The reader of words in latents, from rendered pictures: where the noise-aware reward of signs
begins.

It names the letter of each cell, and learns which letters of a word are in the picture: of its own
word, or of one that is changed in a letter or more. Distillation (`ttsnap distill`) then tells it
of the OCR and of unfinished pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from train_worlds.base import pool_labels
from train_worlds.lettering import NUM_LABELS, render, training_signs
from train_worlds.stored import kept
from train_worlds.training import Trainer
from ttsnap.files.settings import Count, Decay, Natural, NotNegative, Positive, Settings, Share
from ttsnap.pipelines import load
from ttsnap.reward_models.signs import ROWS, SignReader, letter_ids
from ttsnap.signs.grammar import LETTERS, MAX_LETTERS, MIN_LETTERS, Sign, caption

_CHUNK = 250
"""Pictures that are encoded at once."""


@dataclass(frozen=True)
class Recipe(Settings):
    """How the reader is trained.

    own: share of pictures that are asked for their own word.
    noise: the most noise that latents get, in standard deviations.
    """

    seed: Natural = 0
    pictures: Count = 12_000
    batch: Count = 48
    steps: Count = 900
    warmup: Count = 50
    lr: Positive = 2e-3
    weight_decay: NotNegative = 0.01
    ema: Decay = 0.99
    own: Share = 0.3
    noise: NotNegative = 0.4


def rendered(n: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Latents (N, 8, 8, 24) float16, labels of cells (N, 4, 24) uint8 and letters (N, 8) uint8 of n
    pictures."""
    vae = load("signs", dtype=torch.float32).vae
    parts: list[tuple[Tensor, ...]] = []
    for start in tqdm(range(0, n, _CHUNK), desc="renders", unit_scale=_CHUNK, unit="img"):
        signs = training_signs(min(_CHUNK, n - start), rng)
        images, maps = render(signs, rng)
        with torch.no_grad():
            latents = vae.encode(
                torch.from_numpy(images).float().div(127.5).sub(1)
            ).latent_dist.mode()
        pooled = (
            torch.from_numpy(pool_labels(maps, 4, NUM_LABELS)).unflatten(1, (ROWS // 2, 2)).amax(2)
        )
        parts.append(
            (latents.half(), pooled, letter_ids([caption(sign) for sign in signs]).to(torch.uint8))
        )
    columns = map(torch.cat, zip(*parts, strict=True))
    return dict(zip(("latents", "labels", "words"), columns, strict=True))


def changed(word: str, rng: np.random.Generator) -> str:
    """Another word: one with a letter less, one more, some replaced, or two of these."""
    letters, kind = list(word), rng.random()
    if kind < 0.25 and len(word) > MIN_LETTERS:
        del letters[int(rng.integers(len(word)))]
    elif kind < 0.5 and len(word) < MAX_LETTERS:
        letters.insert(int(rng.integers(len(word) + 1)), str(rng.choice(list(LETTERS))))
    if kind > 0.4:
        share = 0.8 * rng.random()
        letters = [
            str(rng.choice(list(LETTERS))) if rng.random() < share else letter for letter in letters
        ]
    return "".join(letters)


def right(shown: str, asked: str) -> Tensor:
    """(8,) 1 for letters of `asked` that are in `shown` in their place, by the longest common
    parts."""
    found = torch.zeros(MAX_LETTERS)
    for part in SequenceMatcher(None, shown, asked, autojunk=False).get_matching_blocks():
        found[part.b : part.b + part.size] = 1
    return found


class ReaderTrainer(Trainer[SignReader]):
    """A letter for each cell, and the letters of a word.

    Args:
        recipe: of the training.
        data: what `rendered` made.
    """

    def __init__(self, recipe: Recipe, data: dict[str, Tensor]) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.rng = recipe, data, np.random.default_rng([recipe.seed, 1])
        net = SignReader()
        net.names.register_forward_hook(self._note)
        adam = torch.optim.AdamW(
            net.parameters(), recipe.lr, (0.9, 0.98), weight_decay=recipe.weight_decay
        )
        super().__init__(net, [adam], steps=recipe.steps, warmup=recipe.warmup, ema=recipe.ema)

    def _note(self, module: nn.Module, given: Any, names: Tensor) -> None:
        self.names = names

    def learning_rate(self, peak: float) -> float:
        """Of step number `step`: warm-up, and a fall to 0 that gets steeper."""
        return peak * min(1.0, (self.step + 1) / self.warmup) * (1 - (self.step / self.steps) ** 2)

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the names of cells, and of the letters."""
        rows = self.rng.integers(len(self.data["words"]), size=self.recipe.batch)
        shown = [
            "".join(LETTERS[i - 1] for i in word if i) for word in self.data["words"][rows].tolist()
        ]
        asked = [
            word if self.rng.random() < self.recipe.own else changed(word, self.rng)
            for word in shown
        ]
        words = letter_ids([caption(Sign(word, "red")) for word in asked])
        there = words > 0
        truth = torch.stack([right(a, b) for a, b in zip(shown, asked, strict=True)])
        x = self.data["latents"][rows].float()
        x = x + self.recipe.noise * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        logits = self.net(x, words)[there]
        word = nn.functional.binary_cross_entropy_with_logits(logits, truth[there])
        cell = nn.functional.cross_entropy(self.names, self.data["labels"][rows].long())
        accuracy = ((logits > 0) == (truth[there] > 0)).float().mean()
        return word + cell, {"word": word, "cell": cell, "right": accuracy}


def run(recipe: Recipe, out: Path) -> None:
    """Render what is missing in `out`, train, and write reader.safetensors."""
    made_by = {"seed": recipe.seed, "pictures": recipe.pictures}
    rng = np.random.default_rng(recipe.seed)
    data = kept(out / "renders.pt", made_by, rendered, recipe.pictures, rng)
    trainer = ReaderTrainer(recipe, data)
    trainer.run("reader", out / "training.pt", 100)
    save_file(
        {name: value.contiguous() for name, value in trainer.ema.state_dict().items()},
        out / "reader.safetensors",
    )
