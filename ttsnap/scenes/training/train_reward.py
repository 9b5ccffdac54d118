"""Train the learned reward of the embedded world (docs/embedded_model.md).

``python -m ttsnap.scenes.training.train_reward --recording FOLDER --out DIR``

FOLDER is a recording with images (`ttsnap record --images`) of captions that are not held out. The exact checker judges
any picture with any caption, so there is no end of labelled pairs: renders and generated pictures, each with its own
caption and others that differ in a thing or two.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from ttsnap.scenes.grammar import RELATIONS
from ttsnap.scenes.reader import VOCABULARY, SceneReader
from ttsnap.scenes.reward_files import WEIGHTS, load_reader, save_reader
from ttsnap.scenes.training.reward_data import Pairs, join, recorded, rendered

_RELATION_IDS = [VOCABULARY.index(relation.split()[0]) for relation in RELATIONS]
RECIPE = Path(__file__).with_name("reward_recipe.yaml")


def make_data(config: dict[str, Any], recording: Path, out: Path) -> tuple[Pairs, Pairs]:
    """Rendered and recorded pictures, kept in `out` for the next run."""
    d = config["data"]
    made = {
        "renders": lambda rng: rendered(d["renders"], d["captions"], rng),
        "recorded": lambda rng: recorded(recording, d["prompts"], d["first_step"], d["captions"], rng),
    }
    parts = []
    for i, (name, make) in enumerate(made.items()):
        cache = out / f"{name}.npz"
        if not cache.exists():
            new = out / f"{name}.new.npz"
            np.savez(new, **vars(make(np.random.default_rng([config["seed"], i]))))
            new.replace(cache)
        with np.load(cache) as stored:
            parts.append(Pairs(**{key: stored[key] for key in stored.files}))
    return parts[0], parts[1]


def train(config: dict[str, Any], renders: Pairs, recorded: Pairs, out: Path) -> SceneReader:
    """The trained network (its average over the last steps), in evaluation mode.

    Phase after phase; each begins with what the one before left in out/phase-N, so that a run may stop in between.
    """
    data = join([renders, recorded])
    torch.manual_seed(config["seed"])
    model = SceneReader(**config["model"])  # type: ignore[arg-type]
    for number, phase in enumerate(config["phases"]):
        folder = out / f"phase-{number}"
        if not (folder / WEIGHTS).exists():
            folder.mkdir(parents=True, exist_ok=True)
            save_reader(_phase(config | phase, model, data, len(renders), number), config, folder)
        model = load_reader(folder)
    return model


def _phase(config: dict[str, Any], model: SceneReader, data: Pairs, renders: int, number: int) -> SceneReader:
    torch.manual_seed(config["seed"] + number)
    rng = np.random.default_rng([config["seed"], number, 1])
    model = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in config["frozen"])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.startswith("compare.")], "rate": 1.0},
        {"params": [p for name, p in named if name.startswith("compare.")], "rate": config["compare"]},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, config["lr"], (0.9, 0.98), weight_decay=config["weight_decay"])
    steps, batch, captions = config["steps"], config["batch"], data.ids.shape[1]
    made, related = round(batch * config["recorded"]), round(batch * config["relations"])
    relations = np.flatnonzero(np.isin(data.ids[:renders, 0], _RELATION_IDS).any(1))
    bar = tqdm(range(steps), desc=f"phase {number}", unit_scale=batch, unit="img")
    mean = dict.fromkeys(("pair", "rank", "centre"), 0.0)
    for step in bar:
        progress = step / steps
        lr = config["lr"] * min(1.0, (step + 1) / config["warmup"]) * (1 - progress**2)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        drawn = (
            relations[rng.integers(len(relations), size=related)] if related else np.empty(0, int),
            rng.integers(renders, size=batch - made - related),
            rng.integers(renders, len(data), size=made),
        )
        rows = np.concatenate(drawn)
        x = torch.from_numpy(data.images[rows]).float().div_(127.5).sub_(1).to(memory_format=torch.channels_last)
        ids = torch.from_numpy(data.ids[rows]).long().flatten(0, 1)
        soft = torch.from_numpy(data.soft[rows]).flatten()
        centres = torch.from_numpy(data.centres[rows]).long()
        # The CPU's fused attention takes longer backward than the plain one.
        with torch.autocast("cpu", torch.bfloat16, enabled=config["bf16"]), sdpa_kernel(SDPBackend.MATH):
            cells = model.see(x)
            labels = model.centres(cells)
            repeated = cells.repeat_interleave(captions, 0)
            logits = model.match(repeated, *model.read(ids))
        pair = nn.functional.binary_cross_entropy_with_logits(logits, soft)
        centre = nn.functional.cross_entropy(labels.float(), centres, reduction="none").sum((1, 2)).mean()
        # Its own and the first other caption only: of a relation that is the relation turned around.
        rank = _ranking(logits.view(batch, captions)[:, :2], soft.view(batch, captions)[:, :2])
        loss = pair + config["ranking"] * rank + config["centres"] * centre
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(config["ema"], (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - keep)
        now = {"pair": pair.item(), "rank": rank.item(), "centre": centre.item()}
        mean = {k: v if step == 0 else 0.98 * mean[k] + 0.02 * v for k, v in now.items()}
        if step % 50 == 0:
            bar.set_postfix({k: f"{v:.4f}" for k, v in mean.items()})
    return ema.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def _ranking(logits: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry on the captions of a picture, (N, K) each: -log sigmoid of the better one's lead, mean over pairs.

    What is told apart already adds little here, so that what is hardest, relations, gets the gradient.
    """
    lead = logits.unsqueeze(2) - logits.unsqueeze(1)
    better = (soft.unsqueeze(2) - soft.unsqueeze(1) > 0.05).float()
    return (better * nn.functional.softplus(-lead)).sum() / better.sum().clamp(min=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ttsnap.scenes.training.train_reward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--recording", type=Path, required=True, help="folder of a finished recording with images")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to: config.json, model.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = yaml.safe_load(args.config.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    data = make_data(config, args.recording, args.out)
    began = time.perf_counter()
    model = train(config, *data, args.out)
    save_reader(model, config, args.out)
    print(f"trained in {time.perf_counter() - began:.0f} s on {sum(map(len, data))} pictures; wrote {args.out}")


if __name__ == "__main__":
    main()
