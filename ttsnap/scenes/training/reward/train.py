"""Trains the learned reward of the embedded world (docs/embedded_model.md).

The exact checker judges any picture with any caption, so there is no end of labelled pairs: renders and generated
pictures, each with its own caption and others that differ in a thing or two.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ttsnap.core.arrays import IntArray
from ttsnap.files.settings import to_json
from ttsnap.scenes.grammar import RELATIONS
from ttsnap.scenes.reader import VOCABULARY, SceneReader
from ttsnap.scenes.reward_files import WEIGHTS, load_reader, save_reader
from ttsnap.scenes.training.reward.data import Pairs, join, recorded, rendered
from ttsnap.scenes.training.reward.recipe import Phase, RewardRecipe

_RELATION_IDS = [VOCABULARY.index(relation.split()[0]) for relation in RELATIONS]


def make_data(recipe: RewardRecipe, recording: Path, out: Path) -> tuple[Pairs, Pairs]:
    """Rendered and recorded pictures, kept in `out` for the next run.

    recording: made with images (`ttsnap record --images`), of captions that are not held out.
    """
    data = recipe.data
    made = {
        "renders": lambda rng: rendered(data.renders, data.captions, rng),
        "recorded": lambda rng: recorded(recording, data, rng),
    }
    parts = []
    for i, (name, make) in enumerate(made.items()):
        cache = out / f"{name}.npz"
        if not cache.exists():
            new = out / f"{name}.new.npz"
            np.savez(new, **vars(make(np.random.default_rng([recipe.seed, i]))))
            new.replace(cache)
        with np.load(cache) as stored:
            parts.append(Pairs(**{key: stored[key] for key in stored.files}))
    return parts[0], parts[1]


def train(recipe: RewardRecipe, renders: Pairs, recorded: Pairs, out: Path) -> SceneReader:
    """The trained network (its average over the last steps), in evaluation mode.

    Phase after phase; each begins with what the one before left in out/phase-N, so that a run may stop in between.
    """
    data = join([renders, recorded])
    torch.manual_seed(recipe.seed)
    model = SceneReader(recipe.model)
    for number, phase in enumerate(recipe.phases):
        folder = out / f"phase-{number}"
        if not (folder / WEIGHTS).exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(recipe.seed + number)
            rng = np.random.default_rng([recipe.seed, number, 1])
            trained = _Phase(recipe, phase, data, len(renders)).train(model, rng, f"phase {number}")
            save_reader(trained, to_json(recipe), folder)
        model = load_reader(folder)
    return model


@dataclass(frozen=True)
class _Phase:
    """One phase: what is drawn, and what is minimised. The first `renders` pictures of `data` are ground truth."""

    recipe: RewardRecipe
    phase: Phase
    data: Pairs
    renders: int

    def train(self, model: SceneReader, rng: np.random.Generator, text: str) -> SceneReader:
        """The average of the network over the last steps, in evaluation mode; text: what the progress bar says."""
        recipe, phase = self.recipe, self.phase
        model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = copy.deepcopy(model)
        optimizer = _optimizer(model, recipe, phase)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        draw = self._draws(rng)
        bar = tqdm(range(phase.steps), desc=text, unit_scale=recipe.batch, unit="img")
        mean = dict.fromkeys(("pair", "rank", "centre"), 0.0)
        for step in bar:
            progress = step / phase.steps
            lr = phase.lr * min(1.0, (step + 1) / recipe.warmup) * (1 - progress**2)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["rate"]
            pair, rank, centre = self._losses(model, next(draw))
            loss = pair + phase.ranking * rank + phase.centres * centre
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                keep = min(recipe.ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
            now = {"pair": pair.item(), "rank": rank.item(), "centre": centre.item()}
            mean = {k: v if step == 0 else 0.98 * mean[k] + 0.02 * v for k, v in now.items()}
            if step % 50 == 0:
                bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()})
        return ema.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]

    def _draws(self, rng: np.random.Generator) -> Iterator[IntArray]:
        """Rows of `data` for step after step: renders of relations, other renders, recorded pictures."""
        batch, renders = self.recipe.batch, self.renders
        made, related = round(batch * self.phase.recorded), round(batch * self.phase.relations)
        relations = np.flatnonzero(np.isin(self.data.ids[:renders, 0], _RELATION_IDS).any(1))
        while True:
            yield np.concatenate(
                (
                    relations[rng.integers(len(relations), size=related)] if related else np.empty(0, int),
                    rng.integers(renders, size=batch - made - related),
                    rng.integers(renders, len(self.data), size=made),
                )
            )

    def _losses(self, model: SceneReader, rows: IntArray) -> tuple[Tensor, Tensor, Tensor]:
        """Of these pictures: of their captions' verdicts, of the order of two captions, of the objects' centres."""
        data, captions = self.data, self.data.ids.shape[1]
        x = torch.from_numpy(data.images[rows]).float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        ids = torch.from_numpy(data.ids[rows]).long().flatten(0, 1)
        soft = torch.from_numpy(data.soft[rows]).flatten()
        centres = torch.from_numpy(data.centres[rows]).long()
        # The CPU's fused attention takes longer backward than the plain one.
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16), sdpa_kernel(SDPBackend.MATH):
            cells = model.see(x)
            labels = model.centres(cells)
            repeated = cells.repeat_interleave(captions, 0)
            logits = model.match(repeated, *model.read(ids))
        pair = nn.functional.binary_cross_entropy_with_logits(logits, soft)
        centre = nn.functional.cross_entropy(labels.float(), centres, reduction="none").sum((1, 2)).mean()
        # Its own and the first other caption only: of a relation that is the relation turned around.
        rank = _ranking(logits.view(-1, captions)[:, :2], soft.view(-1, captions)[:, :2])
        return pair, rank, centre


def _optimizer(model: SceneReader, recipe: RewardRecipe, phase: Phase) -> torch.optim.Optimizer:
    """AdamW over what the phase does not freeze, in two groups; "rate" is a group's multiple of the learning rate."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in phase.frozen)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.startswith("compare.")], "rate": 1.0},
        {"params": [p for name, p in named if name.startswith("compare.")], "rate": phase.compare},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, phase.lr, (0.9, 0.98), weight_decay=recipe.weight_decay)


def _ranking(logits: Tensor, soft: Tensor) -> Tensor:
    """Bradley-Terry on the captions of a picture, (N, K) each: -log sigmoid of the better one's lead, mean over pairs.

    What is told apart already adds little here, so that what is hardest, relations, gets the gradient.
    """
    lead = logits.unsqueeze(2) - logits.unsqueeze(1)
    better = (soft.unsqueeze(2) - soft.unsqueeze(1) > 0.05).float()
    return (better * nn.functional.softplus(-lead)).sum() / better.sum().clamp(min=1)


def run(recipe: RewardRecipe, recording: Path, out: Path) -> None:
    """Make what is missing in `out`: the data, every phase's network, and the last one's."""
    out.mkdir(parents=True, exist_ok=True)
    data = make_data(recipe, recording, out)
    began = time.perf_counter()
    model = train(recipe, *data, out)
    save_reader(model, to_json(recipe), out)
    print(f"trained in {time.perf_counter() - began:.0f} s on {sum(map(len, data))} pictures; wrote {out}")
