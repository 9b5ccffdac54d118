"""The learned reward: what the exact checker says, learned by a network.

The exact checker judges any picture with any caption, so there is no end of labelled pairs: renders
and generated pictures, each with its own caption and others that differ in a thing or two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from train_worlds.near_captions import TRAINED, other_caption
from train_worlds.stored import join, kept, training_specs
from train_worlds.training import Trainer
from ttsnap.core.arrays import IntArray
from ttsnap.files.settings import (
    Count,
    Decay,
    Json,
    Natural,
    NotNegative,
    Positive,
    Settings,
    Share,
    to_json,
)
from ttsnap.recordings.folder import load_recording, read_images
from ttsnap.scenes.checker import Objects, detect, judge
from ttsnap.scenes.grammar import RELATIONS, SHAPES, Spec, caption, is_held_out, parse
from ttsnap.scenes.reader import (
    CELLS,
    CONFIG,
    MAX_WORDS,
    VOCABULARY,
    WEIGHTS,
    ReaderSize,
    SceneReader,
    load_reader,
    word_ids,
)
from ttsnap.scenes.render import IMAGE_SIZE, render

_RELATION_IDS = [VOCABULARY.index(relation.split()[0]) for relation in RELATIONS]
_SEE = ("stem", "fine", "down", "coarse", "norm", "centres")
"""What reads pictures: frozen once it can, while relations are learned."""
_CHUNK = 2000
"""Pictures that are judged at once."""


@dataclass(frozen=True)
class RewardData(Settings):
    """Pictures to learn from, each with so many captions.

    renders: ground-truth pictures.
    prompts: the first so many of the recording.
    first_step: recorded estimates from this step on.
    """

    renders: Count = 120_000
    prompts: Count = 240
    first_step: Natural = 7
    captions: Count = 4


@dataclass(frozen=True)
class Phase(Settings):
    """A part of the training, which begins with the weights that the part before left.

    recorded: share of pictures that the generator made.
    relations: share of renders of relations, in addition.
    centres: weight of naming the object in each cell.
    ranking: weight of preferring the own caption to the first other one.
    compare: the rate of the part that compares places, as a multiple of the others'.
    frozen: parts of the network that stay as they are.
    """

    steps: Count
    lr: Positive
    recorded: Share
    relations: Share
    centres: NotNegative
    ranking: NotNegative
    compare: NotNegative
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class Recipe(Settings):
    """How the reward is trained. batch: pictures in a step, each with all its captions."""

    seed: Natural = 0
    data: RewardData = RewardData()
    model: ReaderSize = ReaderSize()
    batch: Count = 64
    warmup: Count = 100
    weight_decay: NotNegative = 0.01
    ema: Decay = 0.998
    bf16: bool = True
    phases: tuple[Phase, ...] = (
        Phase(
            3000,
            2e-3,
            recorded=0.4,
            relations=0.0,
            centres=0.3,
            ranking=0.0,
            compare=1.0,
            frozen=("compare",),
        ),
        Phase(
            800,
            1e-3,
            recorded=0.0,
            relations=1.0,
            centres=0.0,
            ranking=2.0,
            compare=4.0,
            frozen=_SEE,
        ),
        Phase(
            800,
            5e-4,
            recorded=0.4,
            relations=0.3,
            centres=0.0,
            ranking=1.0,
            compare=1.0,
            frozen=_SEE,
        ),
    )


@dataclass(frozen=True)
class Pairs:
    """N pictures with K captions each.

    images (N, 3, 32, 32) uint8; centres (N, 8, 8) uint8, the label (render.NUM_LABELS) of the
    object whose centre lies in a cell; ids (N, K, MAX_WORDS) uint8; soft (N, K) float32, the
    checker's verdict in [0, 1].
    """

    images: Tensor
    centres: Tensor
    ids: Tensor
    soft: Tensor


def pairs(
    images: NDArray[np.uint8], specs: Sequence[Spec], captions: int, rng: np.random.Generator
) -> Pairs:
    """Judge pictures (N, 3, 32, 32), made for these specifications, with their own caption and
    captions - 1 others.

    The others have one or two things changed, or say what is in the picture. None of them is held
    out.
    """
    objects = detect(images.astype(np.float32) / 255)
    soft, texts = np.zeros((len(images), captions), np.float32), []
    for i, spec in enumerate(specs):
        options = [
            spec,
            *(other_caption(objects, i, spec, rng, first=k == 0) for k in range(captions - 1)),
        ]
        soft[i] = [judge(objects, i, option)[0] for option in options]
        texts += [caption(option) for option in options]
    ids = word_ids(texts).to(torch.uint8).view(len(images), captions, MAX_WORDS)
    return Pairs(
        torch.from_numpy(images), _centres(objects, len(images)), ids, torch.from_numpy(soft)
    )


def rendered(n: int, captions: int, rng: np.random.Generator) -> Pairs:
    """n ground-truth pictures."""
    parts = []
    for start in tqdm(range(0, n, _CHUNK), desc="renders", unit_scale=_CHUNK, unit="img"):
        specs = training_specs(min(_CHUNK, n - start), rng, TRAINED)
        parts.append(
            pairs(np.rint(render(specs, rng) * 255).astype(np.uint8), specs, captions, rng)
        )
    return join(parts)


def recorded(folder: Path, wanted: RewardData, rng: np.random.Generator) -> Pairs:
    """The pictures of a recording (`ttsnap record --images`): the first prompts, estimates from a
    step on.

    Each is judged by what it shows itself, so a late estimate is one more picture. ValueError for a
    held-out prompt.
    """
    specs = [parse(prompt) for prompt in load_recording(folder).prompts[: wanted.prompts]]
    held = [caption(spec) for spec in specs if is_held_out(caption(spec))]
    if held:
        raise ValueError(f"{folder} was made with held-out captions ({held[0]!r}); train on others")
    shown = [
        (picture.pixels.transpose(2, 0, 1), specs[picture.prompt])
        for picture in tqdm(read_images(folder), desc="recording", unit="img")
        if picture.prompt < wanted.prompts and picture.step >= wanted.first_step
    ]
    chunks = [shown[start : start + _CHUNK] for start in range(0, len(shown), _CHUNK)]
    return join(
        [
            pairs(np.stack([p for p, _ in c]), [s for _, s in c], wanted.captions, rng)
            for c in chunks
        ]
    )


def _centres(found: Objects, n: int) -> Tensor:
    size = IMAGE_SIZE // CELLS
    out = np.zeros((n, CELLS, CELLS), np.uint8)
    row, column = (np.clip(a / size, 0, CELLS - 1).astype(int) for a in (found.y, found.x))
    out[found.image, row, column] = 1 + found.color * len(SHAPES) + found.overlap.argmax(1)
    return torch.from_numpy(out)


class PhaseTrainer(Trainer[SceneReader]):
    """One phase: what is drawn, and what is minimised.

    Args:
        model: the network, which is trained in channels-last format.
        recipe: of the whole training.
        number: of the phase.
        data: what is drawn from.
        renders: so many of `data`, the first ones, are ground truth.
    """

    def __init__(
        self, model: SceneReader, recipe: Recipe, number: int, data: Pairs, renders: int
    ) -> None:
        torch.manual_seed(recipe.seed + number)
        self.recipe, self.phase, self.data, self.renders = (
            recipe,
            recipe.phases[number],
            data,
            renders,
        )
        self.rng = np.random.default_rng([recipe.seed, number, 1])
        self.relations = np.flatnonzero(
            np.isin(data.ids[:renders, 0].numpy(), _RELATION_IDS).any(1)
        )
        model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups: list[dict[str, Any]] = [
            {"params": [], "rate": 1.0},
            {"params": [], "rate": self.phase.compare},
        ]
        for name, parameter in model.named_parameters():
            part = name.partition(".")[0]
            parameter.requires_grad_(part not in self.phase.frozen)
            if parameter.requires_grad:
                groups[part == "compare"]["params"].append(parameter)
        groups = [group for group in groups if group["params"]]
        adam = torch.optim.AdamW(
            groups, self.phase.lr, (0.9, 0.98), weight_decay=recipe.weight_decay
        )
        super().__init__(
            model, [adam], steps=self.phase.steps, warmup=recipe.warmup, ema=recipe.ema
        )

    def learning_rate(self, peak: float) -> float:
        """Of step number `step`: warm-up, and a fall to 0 that gets steeper."""
        return peak * min(1.0, (self.step + 1) / self.warmup) * (1 - (self.step / self.steps) ** 2)

    def draw(self) -> IntArray:
        """Rows of `data` for a step: renders of relations, other renders, recorded pictures."""
        batch, renders = self.recipe.batch, self.renders
        made, related = round(batch * self.phase.recorded), round(batch * self.phase.relations)
        parts = [
            self.relations[self.rng.integers(len(self.relations), size=related)]
            if related
            else np.empty(0, int),
            self.rng.integers(renders, size=batch - made - related),
            self.rng.integers(renders, len(self.data.ids), size=made),
        ]
        return np.concatenate(parts)

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the captions' verdicts, of the order of two captions, of the objects' centres."""
        rows, data, captions = torch.from_numpy(self.draw()), self.data, self.data.ids.shape[1]
        x = data.images[rows].float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        ids = data.ids[rows].long().flatten(0, 1)
        soft = data.soft[rows].flatten()
        # The CPU's fused attention takes longer backward than the plain one.
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16),
            sdpa_kernel(SDPBackend.MATH),
        ):
            cells = self.net.see(x)
            labels = self.net.centres(cells)
            repeated = cells.repeat_interleave(captions, 0)
            logits = self.net.match(repeated, *self.net.read(ids))
        pair = nn.functional.binary_cross_entropy_with_logits(logits, soft)
        centres = data.centres[rows].long()
        centre = (
            nn.functional.cross_entropy(labels.float(), centres, reduction="none")
            .sum((1, 2))
            .mean()
        )
        # Its own and the first other caption only: of a relation that is the relation turned
        # around.
        rank = ranking(logits.view(-1, captions)[:, :2], soft.view(-1, captions)[:, :2])
        loss = pair + self.phase.ranking * rank + self.phase.centres * centre
        return loss, {"pair": pair, "rank": rank, "centre": centre}


def ranking(logits: Tensor, soft: Tensor) -> Tensor:
    """Bradley-Terry on the captions of a picture, (N, K) each: -log sigmoid of the better one's
    lead, mean over pairs.

    What is told apart already adds little here, so that what is hardest, relations, gets the
    gradient.
    """
    lead = logits.unsqueeze(2) - logits.unsqueeze(1)
    better = (soft.unsqueeze(2) - soft.unsqueeze(1) > 0.05).float()
    return (better * nn.functional.softplus(-lead)).sum() / better.sum().clamp(min=1)


def train(recipe: Recipe, renders: Pairs, recorded: Pairs, out: Path) -> SceneReader:
    """The trained network (its average over the last steps), in evaluation mode.

    Phase after phase; each begins with what the one before left in out/phase-N, so that a run may
    stop in between.
    """
    data = join([renders, recorded])
    torch.manual_seed(recipe.seed)
    model = SceneReader(recipe.model)
    for number in range(len(recipe.phases)):
        folder = out / f"phase-{number}"
        if not (folder / WEIGHTS).exists():
            folder.mkdir(parents=True, exist_ok=True)
            trainer = PhaseTrainer(model, recipe, number, data, len(renders.ids))
            trainer.run(f"phase {number}")
            save_reader(
                trainer.ema.to(memory_format=torch.contiguous_format), to_json(recipe), folder
            )  # type: ignore[call-overload]
        model = load_reader(folder)
    return model


def save_reader(model: SceneReader, recipe: Mapping[str, Json], folder: Path) -> None:
    """Write config.json (the whole recipe, with the reader's size as "model") and model.safetensors
    (bfloat16, vectors float16)."""
    (folder / CONFIG).write_text(json.dumps(recipe, indent=2) + "\n")
    tensors = {
        name: value.to(torch.bfloat16 if value.ndim > 1 else torch.float16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)


def run(recipe: Recipe, out: Path, recording: Path) -> None:
    """Make what is missing in `out`: the data, every phase's network, and the last one's.

    recording: made with images (`ttsnap record --images`), of captions that are not held out.
    """
    data = recipe.data
    made_by: dict[str, Any] = {"seed": recipe.seed, **to_json(data)}
    makers: list[tuple[str, Callable[[np.random.Generator], Mapping[str, Any]]]] = [
        ("renders", lambda rng: vars(rendered(data.renders, data.captions, rng))),
        ("recorded", lambda rng: vars(recorded(recording, data, rng))),
    ]
    made = [
        Pairs(**kept(out / f"{name}.pt", made_by, make, np.random.default_rng([recipe.seed, i])))
        for i, (name, make) in enumerate(makers)
    ]
    model = train(recipe, made[0], made[1], out)
    save_reader(model, to_json(recipe), out)
