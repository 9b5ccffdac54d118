"""A decoder for display: it draws the latents of a world four times as large as the autoencoder.

It learns from layouts that are rendered at both sizes: the autoencoder encodes the small picture,
and the large one is what is to be drawn. A model's own latents have no large picture: there the
drawing, averaged over each 4 x 4 pixels, is to be what the autoencoder draws. These are images and
estimates on the way to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from train_worlds import lettering, signs
from train_worlds.evaluate import save_grid
from train_worlds.export import swap_in
from train_worlds.recipes import Call
from train_worlds.stored import kept, training_specs
from train_worlds.training import Trainer
from train_worlds.vae import as_input, decode, scaled
from ttsnap import scenes
from ttsnap import signs as written
from ttsnap.files.settings import Count, Natural, NotNegative, Positive, Settings, to_json
from ttsnap.files.writing import write_json
from ttsnap.pipelines.display import CONFIG, WEIGHTS, DisplayDecoder, DisplaySize
from ttsnap.scenes.render import GRAY_LEVELS, RGB

SCALE = 4
"""How many times the autoencoder's pictures these are larger."""
_BATCH = 32
"""Images that a model makes at once."""
_MIXED = 0.02
"""A pixel farther from every colour of the palette is an edge's, and has no one colour."""


@dataclass(frozen=True)
class Recipe(Settings):
    """How a decoder is trained (40 minutes on an idle core).

    pairs: layouts that are rendered at both sizes.
    made: images that models make, with two estimates of each; made_steps: of their sampling.
    rendered, drawn: rows of a batch that were rendered, and that models made.
    crop: columns of latents in a batch.
    noise: largest noise level of rendered rows' latents, in standard deviations.
    edges: weight of differences between neighbours; classes: of naming each pixel's colour;
        small: of the averaged picture.
    """

    seed: Natural = 0
    pairs: Count = 4096
    made: Count = 1024
    made_steps: Count = 10
    rendered: Count = 8
    drawn: Count = 4
    crop: Count = 8
    steps: Count = 1500
    lr: Positive = 2e-3
    ema: NotNegative = 0.998
    noise: NotNegative = 0.1
    edges: NotNegative = 0.5
    classes: NotNegative = 0.2
    small: NotNegative = 2.0
    bf16: bool = True


@dataclass(frozen=True)
class Shown:
    """What a decoder draws.

    Args:
        palette: colours in [0, 1].
        draw: n layouts at both sizes, uint8 (n, 3, h, w) and (n, 3, H, W).
        prompts: n captions.
        models: folders of what draws them, and their calls.
        folder: where the packaged decoder lies.
    """

    palette: tuple[tuple[float, ...], ...]
    draw: Callable[[int, np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    prompts: Callable[[int, np.random.Generator], list[str]]
    models: tuple[tuple[Path, Call], ...]
    folder: Path


class DisplayTrainer(Trainer[DisplayDecoder]):
    """Trains a decoder.

    Args:
        recipe: how.
        shown: what it draws.
        pairs: rendered "latents" (N, C, h, w), "small" as the autoencoder decodes them, and
            "large" (N, 3, H, W) uint8.
        made: a model's "latents" and "small".
    """

    def __init__(
        self, recipe: Recipe, shown: Shown, pairs: dict[str, Tensor], made: dict[str, Tensor]
    ) -> None:
        self.recipe, self.pairs, self.made = recipe, pairs, made
        torch.manual_seed(recipe.seed)
        net = DisplayDecoder(DisplaySize(shown.palette))
        net = net.to(memory_format=torch.channels_last)
        adam = torch.optim.AdamW(net.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0)
        super().__init__(
            net,
            [adam],
            steps=recipe.steps,
            warmup=100,
            decay_steps=0.5 * recipe.steps,
            floor=0.01,
            ema=recipe.ema,
        )

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        recipe, n = self.recipe, self.recipe.rendered
        dice = torch.Generator().manual_seed(recipe.seed + 1_000_003 * self.step)
        rows = torch.randint(len(self.pairs["large"]), (n,), generator=dice)
        right = self.pairs["large"][rows].float() / 255
        others = torch.randint(len(self.made["latents"]), (recipe.drawn,), generator=dice)
        z, seen = (
            torch.cat([self.pairs[name][rows], self.made[name][others]]).float()
            for name in ("latents", "small")
        )
        z, right, seen = self.cropped(z, right, seen, dice)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            logits = self.net.logits(z, seen)
        drawn = self.net.paint(logits)
        error = drawn[:n] - right
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        every = (slice(n), slice(None), slice(None, None, 2), slice(None, None, 2))
        named = nn.functional.cross_entropy(
            logits[every].float(), self.colors(right[every]), ignore_index=-1
        )
        small = (nn.functional.avg_pool2d(drawn[n:], SCALE) - seen[n:]).abs().mean()
        loss = error.abs().mean() + recipe.edges * edges + recipe.classes * named
        figures = {"l1": error.abs().mean(), "edges": edges, "named": named}
        return loss + recipe.small * small, {**figures, "small": small}

    def cropped(
        self, z: Tensor, right: Tensor, seen: Tensor, dice: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same columns of all three."""
        wide = self.recipe.crop
        left = int(torch.randint(z.shape[-1] - wide + 1, (), generator=dice))
        parts = (
            x[..., left * times : (left + wide) * times]
            for x, times in ((z, 1), (right, 4 * SCALE), (seen, 4))
        )
        return next(parts), next(parts), next(parts)

    def colors(self, images: Tensor) -> Tensor:
        """The palette's colour of each pixel (N, H, W); -1 of those that mix two."""
        squares = (images[:, None] - self.net.palette[:, :, None, None]).square().sum(2)
        found = squares.min(1)
        return torch.where(found.values < _MIXED**2, found.indices, -1)


@torch.no_grad()
def make_pairs(recipe: Recipe, shown: Shown) -> dict[str, Tensor]:
    """Layouts rendered at both sizes: noisy latents of the small one with what is decoded of
    them, and the large one."""
    vae: Any = AutoencoderKL.from_pretrained(shown.models[0][0] / "vae")
    rng, latents, images = np.random.default_rng(recipe.seed), [], []
    dice = torch.Generator().manual_seed(recipe.seed)
    for start in tqdm(range(0, recipe.pairs, _BATCH), desc="pairs", unit_scale=_BATCH):
        n = min(_BATCH, recipe.pairs - start)
        small, large = (torch.from_numpy(x) for x in shown.draw(n, rng))
        mean = vae.encoder(as_input(small, torch.device("cpu"))).chunk(2, 1)[0]
        level = recipe.noise * torch.rand(len(mean), 1, 1, 1, generator=dice)
        latents.append(scaled(vae, mean) + level * torch.randn(mean.shape, generator=dice))
        images.append(large)
    noisy = torch.cat(latents)
    small = decode(vae, noisy, _BATCH).half()
    return {"latents": noisy.half(), "small": small, "large": torch.cat(images)}


@torch.no_grad()
def make_latents(recipe: Recipe, shown: Shown) -> dict[str, Tensor]:
    """Latents (N, C, h, w) of images that the models make, and of two estimates on the way to
    each; and as the autoencoder draws them."""
    rng, rows = np.random.default_rng(recipe.seed), []
    each = recipe.made // len(shown.models)
    prompts = shown.prompts(each, rng)
    for folder, call in shown.models:
        pipe: Any = StableDiffusion3Pipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        for start in tqdm(range(0, each, _BATCH), desc=folder.name, unit_scale=_BATCH):
            states: list[Tensor] = []

            def keep(pipe: Any, i: int, t: Any, now: dict[str, Tensor]) -> dict[str, Tensor]:
                states.append(now["latents"])  # noqa: B023
                return now

            part = prompts[start : start + _BATCH]
            dice = torch.Generator().manual_seed(int(rng.integers(2**62)))
            with torch.autocast("cpu", torch.bfloat16):
                pipe(
                    part,
                    generator=dice,
                    output_type="latent",
                    callback_on_step_end=keep,
                    **asdict(call),
                )
            sigmas = pipe.scheduler.sigmas
            for i in rng.choice(len(states) - 1, min(2, len(states) - 1), replace=False):
                slope = (states[i + 1] - states[i]) / (sigmas[i + 2] - sigmas[i + 1])
                rows.append(states[i + 1] - sigmas[i + 2] * slope)
            rows.append(states[-1])
    latents = torch.cat(rows).float()
    return {"latents": latents.half(), "small": decode(pipe.vae, latents, _BATCH).half()}


def run(
    recipe: Recipe,
    out: Path,
    world: Literal["scenes", "signs"],
    decay_now: int | None = None,
    install: bool = False,
) -> None:
    """Train what is left of the recipe: what the folder already holds is skipped."""
    torch.set_flush_denormal(True)  # of this thread; they cost a multiple of the time
    try:
        _train(recipe, out, world, decay_now, install)
    finally:
        torch.set_flush_denormal(False)


def _train(
    recipe: Recipe,
    out: Path,
    world: Literal["scenes", "signs"],
    decay_now: int | None,
    install: bool,
) -> None:
    shown = WORLDS[world](recipe)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", to_json(recipe))
    seed = {"world": world, "seed": recipe.seed}
    made_by = {**seed, "made": recipe.made, "steps": recipe.made_steps}
    made = kept(out / "made.pt", made_by, partial(make_latents, recipe, shown))
    made_by = {**seed, "pairs": recipe.pairs, "noise": recipe.noise}
    pairs = kept(out / "pairs.pt", made_by, partial(make_pairs, recipe, shown))
    trainer = DisplayTrainer(recipe, shown, pairs, made)

    def look() -> None:
        if trainer.step % 250 == 0 or trainer.step == trainer.steps:
            save(trainer.ema, out / "decoder")
            draw(trainer, out / f"samples_{trainer.step:05d}.png")
            print({k: round(v, 4) for k, v in trainer.figures.items()}, flush=True)

    trainer.run("display", out / "display.pt", 250, decay_now=decay_now, look=look)
    if install:
        save(trainer.ema, shown.folder.with_name("display.new"))
        swap_in(shown.folder.with_name("display.new"), shown.folder)


def save(decoder: DisplayDecoder, folder: Path) -> None:
    """Write a decoder in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: x.contiguous().bfloat16() for name, x in decoder.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)
    write_json(folder / CONFIG, to_json(decoder.size))


@torch.no_grad()
def draw(trainer: DisplayTrainer, path: Path, columns: int = 8) -> None:
    """Four rows: rendered and drawn, then a model's as the autoencoder draws it and as this
    does."""
    made, small = (trainer.made[name][-columns:].float() for name in ("latents", "small"))
    nearest = partial(nn.functional.interpolate, scale_factor=float(SCALE))
    rows = [
        trainer.pairs["large"][:columns].float() / 255,
        trainer.ema(*(trainer.pairs[name][:columns].float() for name in ("latents", "small"))),
        nearest(small),
        trainer.ema(made, small),
    ]
    save_grid(torch.cat(rows).numpy(), columns, path, scale=1)


def _scenes(recipe: Recipe) -> Shown:
    def layouts(n: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        specs, seed = training_specs(n, rng), int(rng.integers(2**62))
        small, large = (
            np.rint(255 * scenes.render(specs, np.random.default_rng(seed), scale=scale))
            for scale in (1, SCALE)
        )
        return small.astype(np.uint8), large.astype(np.uint8)

    grays = tuple((round(float(level), 4),) * 3 for level in GRAY_LEVELS)
    return Shown(
        (*_palette(RGB), *grays),
        layouts,
        lambda n, rng: [scenes.caption(spec) for spec in training_specs(n, rng)],
        (
            (scenes.weights_path(), Call(recipe.made_steps)),
            (scenes.turbo_path(), Call(4, 0.0)),
        ),
        scenes.FOLDER / "display",
    )


def _signs(recipe: Recipe) -> Shown:
    def layouts(n: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        words, seed = lettering.training_signs(n, rng), int(rng.integers(2**62))
        small, large = (
            lettering.render(words, np.random.default_rng(seed), scale)[0] for scale in (1, SCALE)
        )
        return small, large

    return Shown(
        _palette(np.array(list(written.RGB.values()), np.float32) / 255),
        layouts,
        lambda n, rng: [written.caption(sign) for sign in lettering.training_signs(n, rng)],
        ((written.weights_path(), signs.SignCall(recipe.made_steps)),),
        written.weights_path().with_name("display"),
    )


def _palette(colors: NDArray[np.float32]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(x), 4) for x in color) for color in colors)


WORLDS: dict[str, Callable[[Recipe], Shown]] = {"scenes": _scenes, "signs": _signs}
