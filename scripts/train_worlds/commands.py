"""Trains the models of the embedded world, and measures them. The same command resumes an
interrupted run.

A recipe is trained as the packaged models were, unless --recipe names a YAML file with what
differs, such as "generator: {steps: 100}". docs/journal says what came out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from train_worlds.recipes import Call, read

Option: TypeAlias = dict[str, Any]
DECAY_NOW: Option = {
    "type": int,
    "metavar": "M",
    "help": "finish early: decay from here over M steps",
}
INSTALL: Option = {"action": "store_true", "help": "copy the result over the packaged weights"}
TRAINERS: dict[str, tuple[str, str, dict[str, Option]]] = {
    "base": (
        "the base model: data, autoencoder, generator, export, evaluation",
        "data, checkpoints, samples, and in pipeline/ the result",
        {"--device": {"default": "cpu"}, "--decay-now": DECAY_NOW, "--install": INSTALL},
    ),
    "signs": (
        "signs, the model that writes: as base",
        "data, checkpoints, samples, and in pipeline/ the result",
        {"--device": {"default": "cpu"}, "--decay-now": DECAY_NOW, "--install": INSTALL},
    ),
    "things": (
        "things on grass, sand and snow: as base",
        "data, checkpoints, samples, and in pipeline/ the result",
        {"--device": {"default": "cpu"}, "--decay-now": DECAY_NOW, "--install": INSTALL},
    ),
    "turbo": (
        "scenes-turbo, the base model distilled to a few steps without guidance",
        "pairs, checkpoints, and in pipeline/ the result",
        {"--decay-now": DECAY_NOW, "--install": INSTALL},
    ),
    "reward": (
        "the learned reward, which learns what the exact checker says",
        "data, phases, config.json and model.safetensors",
        {
            "--recording": {
                "type": Path,
                "required": True,
                "help": "folder of a finished recording with images",
            }
        },
    ),
    "sign_reader": (
        "the reader of words in latents, from which the noise-aware reward of signs is distilled",
        "renders, and reader.safetensors",
        {},
    ),
}
"""By command, which is the name of the trainer's module: help, what it puts into --out, and
keywords of its `run`."""


def main(argv: Sequence[str] | None = None) -> None:
    """ValueError for a recipe that does not fit. A trainer's module, with its `Recipe`, is imported
    when it is run."""
    parser = argparse.ArgumentParser(
        prog="python scripts/train_worlds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (text, out, options) in TRAINERS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--recipe",
            type=Path,
            metavar="FILE",
            help="YAML with what differs from the packaged one",
        )
        command.add_argument("--seed", type=int, help="in place of the recipe's")
        command.add_argument("--out", type=Path, required=True, help=f"folder for {out}")
        for flag, option in options.items():
            command.add_argument(flag, **option)
    _add_evaluate(commands)
    _add_evaluate_reward(commands)
    _add_pack(commands)
    given = vars(parser.parse_args(argv))
    name = given.pop("command")
    if "measure" in given:
        print(given.pop("measure")(**given))
    else:
        trainer = import_module(f"train_worlds.{name}")
        trainer.run(read(trainer.Recipe, given.pop("recipe"), given.pop("seed")), **given)


def _add_evaluate(commands: Any) -> None:
    text = "the accuracy of a base model on held-out captions"
    command = commands.add_parser("evaluate", help=text, description=text)
    command.add_argument(
        "folder", nargs="?", type=Path, help="diffusers folder (default: the packaged weights)"
    )
    command.add_argument("--steps", type=int, default=20)
    command.add_argument("--guidance", type=float, default=4.0)
    command.add_argument(
        "--max-sequence-length",
        type=int,
        default=1,
        help="zero tokens of the stock call (1 to 256)",
    )
    command.add_argument("--per-kind", type=int, default=32, help="captions of each kind")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--trained-captions",
        action="store_true",
        help="captions seen in training, not held-out ones",
    )
    command.add_argument("--grid", type=Path, help="PNG to write, one row per kind")

    def measure(
        folder: Path,
        steps: int,
        guidance: float,
        max_sequence_length: int,
        trained_captions: bool,
        **how: Any,
    ) -> str:
        from train_worlds.evaluate import accuracy_table, evaluate, load

        call = Call(steps, guidance, max_sequence_length)
        return accuracy_table(evaluate(load(folder), call, held_out=not trained_captions, **how))

    command.set_defaults(measure=measure)


def _add_evaluate_reward(commands: Any) -> None:
    text = "how often a reward prefers a picture's own caption to one with a single thing changed"
    command = commands.add_parser("evaluate-reward", help=text, description=text)
    command.add_argument(
        "reward", nargs="?", default="scenes-learned", help="any, as --reward of ttsnap takes it"
    )
    command.add_argument(
        "--recording",
        type=Path,
        help="folder of a recording with images: those that are right count",
    )
    command.add_argument("--pictures", type=int, default=2000)
    command.add_argument("--seed", type=int, default=0)

    def measure(reward: str, **how: Any) -> str:
        from train_worlds.near_captions import evaluate
        from ttsnap.reward_models.registry import make_reward

        return evaluate(make_reward(reward), **how)

    command.set_defaults(measure=measure)


def _add_pack(commands: Any) -> None:
    text = "store a new draft or noise-aware reward as the package has it, in eight bits"
    command = commands.add_parser("pack", help=text, description=text)
    command.add_argument("folder", type=Path, help="what distill or distill-draft made; rewritten")

    def measure(folder: Path) -> str:
        from train_worlds.pack import eight_bits, pack

        pack(folder, eight_bits)
        return f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*'))} bytes"

    command.set_defaults(measure=measure)
