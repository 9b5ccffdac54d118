"""What the benchmarks of searches share: runs kept in a JSON file, winners compared, cells of a
table."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_dtype

from ttsnap import __version__
from ttsnap.core.results import Result
from ttsnap.loop.budget import Budget

SETTINGS = ("prompts", "prompt_seed", "steps", "reward", "held_out", "dtype")
"""Arguments that all runs of one file have in common."""


def parser(description: str | None, seeds: int = 3) -> argparse.ArgumentParser:
    """Arguments that the benchmarks of searches share."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--prompts", type=int, default=30)
    p.add_argument(
        "--seeds", type=int, default=seeds, help="searches of every prompt, from different seeds"
    )
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--reward", default="scenes-learned")
    p.add_argument("--held-out", nargs="+", default=["scenes", "scenes-strict"])
    p.add_argument("--batch-size", type=int, default=64)
    add_dtype(p)
    p.add_argument("--json", type=Path, help="file to keep runs in, and to go on from")
    return p


def read(path: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Runs that were made before, with the same settings; ValueError for a file of other
    settings."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found.get("settings") != settings:
        raise ValueError(
            f"{path} holds runs with {found.get('settings')}, not {settings}; choose another --json"
        )
    return dict(found["runs"])


def write(path: Path | None, settings: dict[str, Any], runs: dict[str, Any]) -> None:
    """Whole or not at all."""
    if path is not None:
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps({"ttsnap": __version__, "settings": settings, "runs": runs}))
        beside.replace(path)


def flops_of(nfe: int, engine: Any) -> Budget:
    """The FLOPs of best-of-N with n calls, its decodes and rewards included."""
    rates, images = engine.price.flops, nfe // engine.grid.nfe
    return Budget(flops=nfe * rates.nfe + images * (rates.decodes + rates.reward_calls))


def winners(results: list[Result], metrics: Any) -> dict[str, Any]:
    """Per prompt: the winner's first reward and metrics, what was spent, and a small copy for
    `diversity`."""
    images = torch.stack([r.best.image for r in results]).float()
    prompts, level = [r.prompt for r in results], torch.zeros(len(results))
    small = torch.nn.functional.interpolate(images, 16, mode="area")
    return {
        "reward": [next(iter(r.best.scores.values())) for r in results],
        **{m.name: [float(v) for v in m(images, prompts, level)] for m in metrics},
        **{
            k: [r.spent.to_json()[k] for r in results]
            for k in ("nfe", "flops", "decodes", "gradients", "finished")
        },
        "winner": (small * 255).round().int().flatten(1).tolist(),
    }


def cell(runs: list[dict[str, Any]], metric: str) -> str:
    """Mean over prompts of the mean over seeds, with the standard error over prompts."""
    by_prompt = np.mean([run[metric] for run in runs], axis=0)
    error = by_prompt.std(ddof=1) / len(by_prompt) ** 0.5 if len(by_prompt) > 1 else float("nan")
    return f"{by_prompt.mean():.3f} ± {error:.3f}"


def diversity(runs: list[dict[str, Any]]) -> str:
    """Mean distance (root mean square over pixels) between the winners of a prompt's seeds; "" for
    one seed."""
    if len(runs) < 2:
        return ""
    seen = np.array([run["winner"] for run in runs], float) / 255  # (S, P, D)
    pairs = itertools.combinations(range(len(seen)), 2)
    return f"{np.mean([np.sqrt(((seen[i] - seen[j]) ** 2).mean(-1)).mean() for i, j in pairs]):.3f}"
