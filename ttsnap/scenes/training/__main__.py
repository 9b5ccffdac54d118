"""Trains the models of the embedded world, and measures them. The same command goes on with an interrupted run.

A recipe is trained as the packaged models were, unless --recipe names a YAML file with what differs, such as
"generator: {steps: 100}". docs/embedded_model.md tells what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from ttsnap.files.plain_yaml import read_yaml
from ttsnap.files.settings import build
from ttsnap.scenes.training.base.recipe import BaseRecipe, Call
from ttsnap.scenes.training.preference.recipe import PreferenceRecipe
from ttsnap.scenes.training.preview.recipe import PreviewRecipe
from ttsnap.scenes.training.reward.recipe import RewardRecipe
from ttsnap.scenes.training.turbo.recipe import TurboRecipe
from ttsnap.scenes.weights_folder import turbo_path, weights_path

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
R = TypeVar("R", BaseRecipe, TurboRecipe, PreviewRecipe, RewardRecipe, PreferenceRecipe)


def main(argv: Sequence[str] | None = None) -> None:
    """ValueError for a recipe that does not fit. Each command imports what it alone needs, such as peft."""
    parser = argparse.ArgumentParser(
        prog="python -m ttsnap.scenes.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_base, _add_turbo, _add_preview, _add_reward, _add_preference, _add_evaluate, _add_evaluate_reward):
        add(commands)
    args = parser.parse_args(argv)
    args.run(args)


def recipe_of(kind: type[R], path: Path | None, seed: int | None) -> R:
    """The recipe of a file, or the packaged one; seed: in place of the recipe's."""
    recipe = kind() if path is None else build(kind, read_yaml(path, "recipe"))
    return recipe if seed is None else dataclasses.replace(recipe, seed=seed)


def _training(commands: Commands, name: str, text: str, out: str) -> argparse.ArgumentParser:
    """A command that trains: its text of help, and what it puts into the folder --out."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--recipe", type=Path, metavar="FILE", help="YAML with what differs from the packaged recipe")
    command.add_argument("--seed", type=int, help="in place of the recipe's")
    command.add_argument("--out", type=Path, required=True, help=f"folder for {out}")
    return command


def _add_base(commands: Commands) -> None:
    text = "the base model: data, autoencoder, generator, export, evaluation"
    command = _training(commands, "base", text, "data, checkpoints, samples, and in pipeline/ the result")
    command.add_argument("--device", default="cpu")
    command.add_argument("--decay-now", type=int, metavar="M", help="finish early: decay from here over M steps")
    command.add_argument("--install", action="store_true", help="copy the result over the packaged weights")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.base import train as base

        recipe = recipe_of(BaseRecipe, a.recipe, a.seed)
        folder = base.train(recipe, a.out, torch.device(a.device), a.decay_now)
        if a.install:
            base.install(folder, weights_path())

    command.set_defaults(run=run)


def _add_turbo(commands: Commands) -> None:
    text = "scenes-turbo, the base model distilled to a few steps without guidance"
    command = _training(commands, "turbo", text, "pairs, checkpoints, and in pipeline/ the result")
    command.add_argument("--decay-now", type=int, metavar="M", help="finish early: decay from here over M steps")
    command.add_argument("--install", action="store_true", help="copy the result over the packaged weights")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.base.train import install
        from ttsnap.scenes.training.turbo import train as turbo

        folder = turbo.train(recipe_of(TurboRecipe, a.recipe, a.seed), a.out, a.decay_now)
        if a.install:
            install(folder, turbo_path())

    command.set_defaults(run=run)


def _add_preview(commands: Commands) -> None:
    text = "the preview VAE, a small decoder that imitates the base model's own"
    command = _training(commands, "preview", text, "the data, and in preview/ the result")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.preview import train as preview

        preview.run(recipe_of(PreviewRecipe, a.recipe, a.seed), a.out)

    command.set_defaults(run=run)


def _add_reward(commands: Commands) -> None:
    text = "the learned reward, which learns what the exact checker says"
    command = _training(commands, "reward", text, "data, phases, config.json and model.safetensors")
    command.add_argument("--recording", type=Path, required=True, help="folder of a finished recording with images")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.reward import train as reward

        reward.run(recipe_of(RewardRecipe, a.recipe, a.seed), a.recording, a.out)

    command.set_defaults(run=run)


def _add_preference(commands: Commands) -> None:
    text = "a preference LoRA of the base model, by Diffusion-DPO"
    command = _training(commands, "preference", text, "the pairs, the LoRA and metrics.json")
    command.add_argument("--reward", default="scenes-learned", help="what prefers, as `ttsnap generate --reward`")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.preference import train as preference

        preference.run(recipe_of(PreferenceRecipe, a.recipe, a.seed), a.reward, a.out)

    command.set_defaults(run=run)


def _add_evaluate(commands: Commands) -> None:
    text = "the accuracy of a base model on held-out captions"
    command = commands.add_parser("evaluate", help=text, description=text)
    command.add_argument("folder", nargs="?", type=Path, help="diffusers folder (default: the packaged weights)")
    command.add_argument("--steps", type=int, default=20)
    command.add_argument("--guidance", type=float, default=4.0)
    command.add_argument("--max-sequence-length", type=int, default=1, help="zero tokens of the stock call (1 to 256)")
    command.add_argument("--per-kind", type=int, default=32, help="captions of each kind")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--trained-captions", action="store_true", help="captions seen in training, not held-out ones")
    command.add_argument("--grid", type=Path, help="PNG to write, one row per kind")

    def run(a: argparse.Namespace) -> None:
        from ttsnap.scenes.training.base.evaluate import evaluate, load, table

        call = Call(a.steps, a.guidance, a.max_sequence_length)
        held_out = not a.trained_captions
        print(table(evaluate(load(a.folder), call, a.per_kind, seed=a.seed, held_out=held_out, grid=a.grid)))

    command.set_defaults(run=run)


def _add_evaluate_reward(commands: Commands) -> None:
    text = "how often a reward prefers a picture's own caption to one with a single thing changed"
    command = commands.add_parser("evaluate-reward", help=text, description=text)
    command.add_argument("reward", nargs="?", default="scenes-learned", help="any, as --reward of ttsnap takes it")
    command.add_argument("--recording", type=Path, help="folder of a recording with images: those that are right count")
    command.add_argument("--pictures", type=int, default=2000)
    command.add_argument("--seed", type=int, default=0)

    def run(a: argparse.Namespace) -> None:
        from ttsnap.rewards.registry import make_reward
        from ttsnap.scenes.training.reward.evaluate import evaluate

        print(evaluate(make_reward(a.reward), a.pictures, a.recording, a.seed))

    command.set_defaults(run=run)


if __name__ == "__main__":
    main()
