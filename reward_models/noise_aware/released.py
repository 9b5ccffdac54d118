"""Rewards with whole weights for some noise levels, as the authors of DOG-Trim release them.

Source: arXiv 2511.22242, its later version; weights TerryYu/DOGTrim. A folder holds step{N}.pt: a
state dict of the reward's whole network, for x0 estimates after N of 35 steps of FLUX.1 dev at 512
x 512 pixels. Names of tensors are those of the published reward, with or without the trainer's
prefix "model.". What N means elsewhere stands in the spec (`FOLDER@28`: of 28 steps), or in
levels.json beside the files, which `export` writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.core.protocols import Reward, Scores
from ttsnap.files.hub import folder_of
from ttsnap.files.reading import read_object
from ttsnap.files.settings import Share, check
from ttsnap.files.writing import write_json, write_whole
from ttsnap.reward_models.noise_aware.schedule import STEPS, level_of
from ttsnap.reward_models.noise_aware.student import NoiseAware, level_of_rows
from ttsnap.reward_models.preprocess import check_images
from ttsnap.reward_models.registry import CHOSEN, make_reward
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import merge_adapters, read_state
from ttsnap.rewards.reward_model import RewardModel, adapted

BASES = {"hpsv2": "hpsv2.1", "pickscore": "pickscore", "imagereward": "imagereward"}
"""The reward whose training the folders of a name continue."""
FILE = re.compile(r"(?:step|Ct)(\d+)\.(?:pt|safetensors)")
"""A released file, or one that the authors' trainer writes."""
AT = re.compile(r"(.*?)(?:@(?:([1-9]\d{0,3})/)?([1-9]\d{0,3}))?", re.DOTALL)
"""A source, and what its steps mean: @STEPS, or @N/STEPS of a single file."""
NOTES = "levels.json"
MATCHED = 0.99
"""The least share of a network's tensors that a file must hold."""


class ReleasedNoiseAware(RewardModel):
    """Scores an x0 estimate by the weights of the nearest noise level, and a finished image by the
    base's own.

    scorer: the published reward, on its device; its network's tensors are exchanged from now on, so
    that it must not be called by others. weights: by level in (0, 1], the tensors in which the
    network differs, on the CPU. The weights of one level are on the device at a time. Its own count
    as level 0: nearly clean estimates are scored by them.
    """

    heavy = True

    def __init__(self, scorer: Scorer, weights: Mapping[float, Mapping[str, Tensor]]) -> None:
        if not weights or not all(0 < level <= 1 for level in weights):
            raise ValueError(
                f"weights are for noise levels in (0, 1], at least one; got levels {list(weights)}"
            )
        self.name = f"{scorer.name}-na"
        self.scorer = scorer
        self.example = scorer.example
        self.network = scorer.network
        self.embed_images = scorer.embed_images
        tensors = scorer.network.state_dict()
        own = {n: tensors[n].cpu() for n in chain(*weights.values())}
        self.weights = {0.0: own} | {level: {**own, **weights[level]} for level in sorted(weights)}
        self.base = Own(self)
        self._lock = RLock()
        self._at = 0.0

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | float | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1], N prompts, levels (N,) in [0, 1] or None for finished
        images -> (N,)."""
        check_images(images, prompts)
        return self._scored(self.scorer, images, prompts, level)

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | float | None = None
    ) -> Scores:
        """As a call, with a graph back to the images, which keeps the weights of its level."""
        return self._scored(self.scorer.differentiable, images, prompts, level)

    def _scored(
        self, score: Any, images: Tensor, prompts: Sequence[str], level: Tensor | float | None
    ) -> Tensor:
        """One call of `score` for each level, so that weights are exchanged once for each."""
        levels = level_of_rows(level, len(images)).tolist()
        nearest = [min(self.weights, key=lambda known: abs(known - value)) for value in levels]
        parts = [images.new_zeros(0)]
        order = torch.zeros(0, dtype=torch.long)
        with self._lock:
            for at in sorted(set(nearest), key=lambda known: known != self._at):
                self._load(at)
                rows = torch.tensor([i for i, of in enumerate(nearest) if of == at])
                parts.append(
                    score(images[rows.to(images.device)], [prompts[i] for i in rows.tolist()])
                )
                order = torch.cat([order, rows])
        return torch.cat([part.to(parts[-1]) for part in parts])[
            order.argsort().to(parts[-1].device)
        ]

    def _load(self, level: float) -> None:
        if level != self._at:
            for name, value in self.weights[level].items():
                module, _, leaf = name.rpartition(".")
                place = self.scorer.network.get_submodule(module)
                # Another tensor, not other values in the old one, which a graph may still need.
                there = value.to(getattr(place, leaf).device)
                setattr(
                    place, leaf, nn.Parameter(there, False) if leaf in place._parameters else there
                )
            self._at = level

    def check(self, prompts: Sequence[str]) -> None:
        self.scorer.check(prompts)

    @property
    def scores_estimates_apart(self) -> bool:
        return True

    @cached_property
    def flops(self) -> float:
        return self.scorer.flops

    def without_alpha(self, images: Tensor) -> Tensor:
        return self.scorer.without_alpha(images)

    def trial_image(self) -> Tensor:
        return self.scorer.trial_image()

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        base: Reward | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A folder of step{N}.pt, or OWNER/NAME/FOLDER of the hub; with @STEPS, N counts steps of
        so many.

        Also one file of weights after N of so many steps, as FILE@N/STEPS. ValueError where a file
        is damaged, or is for another network than the base's.
        """
        plain, one, total = AT.fullmatch(source).groups()  # type: ignore[union-attr]  # it matches any text
        steps = int(total or STEPS)
        path = folder_of(plain)
        notes = (
            read_object(path / NOTES, what="notes on noise levels")
            if (path / NOTES).is_file()
            else {}
        )
        files = {path: level_of(int(one), steps)} if one else levels_of(path, steps, notes)
        known = base or notes.get("base", BASES.get(path.name))
        if known is None or (base is None and known not in CHOSEN):
            raise ValueError(
                f"{source} does not say whose weights it continues; write 'noise-aware:{source} on"
                f" REWARD', such as {', '.join(BASES.values())}"
            )
        scorer = adapted(base) if base else make_reward(str(known), device=device, dtype=dtype)
        if not isinstance(scorer, Scorer):
            raise ValueError(
                f"{source} continues the weights of a network, and {scorer.name!r} has none"
            )
        return cls(scorer, {level: differing(file, scorer) for file, level in files.items()})


class Own(RewardModel):
    """The reward that a released one continues, by its own weights."""

    def __init__(self, of: ReleasedNoiseAware) -> None:
        self.of = of
        self.name = of.scorer.name
        self.example = of.scorer.example

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        return self.of(images, prompts)

    @cached_property
    def flops(self) -> float:
        return self.of.flops


def levels_of(folder: Path, steps: int, notes: Mapping[str, Any]) -> dict[Path, float]:
    """The noise level of each released file. ValueError for a folder without any."""
    files = {
        path: found for path in sorted(folder.glob("*")) if (found := FILE.fullmatch(path.name))
    }
    if not files:
        raise ValueError(
            f"{folder} holds no adapter.json of a noise-aware reward, and no released step7.pt or"
            " alike"
        )
    said = check("levels", notes.get("levels", {}), dict[str, Share])
    return {
        path: said.get(path.name, level_of(int(found[1]), steps)) for path, found in files.items()
    }


def differing(path: Path, scorer: Scorer) -> dict[str, Tensor]:
    """The tensors of a file that are not the network's own, by the network's names and in its
    dtypes.

    ValueError unless the file holds nearly all tensors of the network, each in its shape.
    """
    own = {published: name for name, published in scorer.published.items()}
    given = {name.removeprefix("model."): tensor for name, tensor in read_state(path).items()}
    state = {own.get(name, name): tensor for name, tensor in given.items()}
    tensors = scorer.network.state_dict()
    odd = [
        name for name in tensors.keys() & state.keys() if tensors[name].shape != state[name].shape
    ]
    matched = len(tensors.keys() & state.keys()) - len(odd)
    if odd or matched < MATCHED * len(tensors):
        example = min(odd or tensors.keys() - state.keys())
        raise ValueError(
            f"{path} is for another network than {scorer.name}'s: {matched} of {len(tensors)}"
            f" tensors fit; {example}, say, {'has another shape' if odd else 'is missing'}"
        )
    cast = {name: state[name].to(tensor.dtype) for name, tensor in tensors.items() if name in state}
    return {
        name: value for name, value in cast.items() if not torch.equal(value, tensors[name].cpu())
    }


def export(student: NoiseAware, folder: str | Path, steps: int = STEPS) -> dict[Path, float]:
    """Write a reward that was distilled here as the authors' loader reads it: step{N}.pt for each
    of its levels.

    Gives the files with their levels, which levels.json notes. Levels up to base_below get the
    base's own weights, as the student scores by. ValueError for a student that is no whole network
    a level: one without levels, or of a network of another reward.
    """
    if not student.levels or student.scores_estimates_apart:
        raise ValueError(
            "only students with levels (per-level, or full with per_level) on their own base's"
            f" network are whole networks for noise levels; this one is {student.kind} on"
            f" {student.scorer.name}"
        )
    named = {
        min(range(1, steps + 1), key=lambda n: abs(level_of(n, steps) - level)): level
        for level in student.levels
    }
    if len(named) < len(student.levels):
        raise ValueError(
            f"levels {student.levels} are nearer to each other than {steps} steps of FLUX.1 dev"
        )
    scorer = student.scorer
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    files = {out / f"step{n}.pt": level for n, level in named.items()}
    for copy, path in zip(
        student.network.copies, (out / f"step{n}.pt" for n in named), strict=True
    ):
        network = scorer.network if files[path] <= student.base_below + 1e-6 else copy
        merged = merge_adapters(network.state_dict(), scale=1.0)
        plain = {name.replace(".in_proj.", ".in_proj_"): value for name, value in merged.items()}
        state = {
            scorer.published.get(name, name): plain[name].contiguous()
            for name in scorer.network.state_dict()
        }
        write_whole(path, partial(torch.save, state))
    write_json(
        out / NOTES,
        {"base": student.spec, "levels": {path.name: level for path, level in files.items()}},
    )
    return files
