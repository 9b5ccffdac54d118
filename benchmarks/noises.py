"""Do initial noises of low discrepancy help best-of-N? On the embedded model.

    python benchmarks/noises.py --json OUT

Hard held-out prompts; the learned reward (`scenes-learned`) chooses among n seeds, the exact checker, which takes no
part in it, judges what is chosen. Every repetition has seeds of its own, cut into sets of n consecutive ones. Figures
are means over prompts of the mean over sets; ± is the standard error over prompts, for the gain over independent noises
that of the differences within prompts. "correlation": of the rewards of neighbouring seeds (2i, 2i + 1) within a
prompt, which is below 0 where one of them being bad says that the other is good. OUT is written after every repetition,
and repetitions that it holds are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dtypes import add_dtype
from ttsnap.pipelines import load

from ttsnap import BestOfN, __version__, search
from ttsnap.rewards.registry import make_rewards
from ttsnap.sampling.noises import NOISES
from ttsnap.scenes import sample_prompts


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--noises", nargs="+", default=list(NOISES), choices=NOISES)
    p.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16], help="n of best-of-n; powers of two")
    p.add_argument("--prompts", type=int, default=30)
    p.add_argument("--seeds", type=int, default=4, help="repetitions, of as many seeds as the largest n each")
    p.add_argument("--prompt-seed", type=int, default=0, help="another seed, other held-out prompts of the same kinds")
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--reward", default="scenes-learned")
    p.add_argument("--held-out", nargs="+", default=["scenes", "scenes-strict"])
    p.add_argument("--batch-size", type=int, default=64)
    add_dtype(p)
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    pipe, prompts = load(dtype=getattr(torch, a.dtype)), sample_prompts(a.prompts, a.prompt_seed)
    call = {"num_inference_steps": a.steps}
    rewards, setting = make_rewards([a.reward, *a.held_out]), {k: str(v) for k, v in vars(a).items() if k != "json"}
    scores: dict[str, list[Any]] = {kind: [] for kind in a.noises} | read(a.json, setting)
    for repetition in range(a.seeds):  # by turns, so that what is there when it is interrupted compares all kinds
        for kind in [k for k in a.noises if len(scores[k]) <= repetition]:
            engine, begin = pipe.engine(rewards, batch_size=a.batch_size, noises=kind, **call), time.perf_counter()
            results = search(prompts, BestOfN(max(a.sizes)), engine, seed=repetition * max(a.sizes))
            scores[kind].append(np.stack([r.particles.scores[:, -1] for r in results]).round(5).tolist())
            print(f"{kind}, repetition {repetition + 1}: {time.perf_counter() - begin:.0f} s", flush=True)
            if a.json is not None:
                a.json.write_text(json.dumps({"ttsnap": __version__, "setting": setting, "scores": scores}))
    print(table({kind: np.concatenate(found, axis=1) for kind, found in scores.items()}, a))


def read(path: Path | None, setting: dict[str, str]) -> dict[str, list[Any]]:
    """Repetitions that were made before, by kind; ValueError for a file of other settings."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["setting"] != setting:
        raise ValueError(f"{path} holds runs with {found['setting']}, not {setting}; choose another --json")
    return dict(found["scores"])


def best(scores: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """(prompts, R) scores of the best of n by the first reward, mean over sets of n consecutive seeds."""
    sets = scores.reshape(len(scores), -1, n, scores.shape[-1])
    won = sets[..., 0].argmax(axis=2)
    return np.take_along_axis(sets, won[:, :, None, None], 2)[:, :, 0].mean(axis=1)


def pairs(scores: np.ndarray[Any, Any]) -> float:
    """Correlation of the rewards of seeds 2i and 2i + 1 within prompts."""
    centred = scores[..., 0] - scores[..., 0].mean(axis=1, keepdims=True)
    return float((centred[:, ::2] * centred[:, 1::2]).mean() / (centred**2).mean())


def table(scores: dict[str, np.ndarray[Any, Any]], a: argparse.Namespace) -> str:
    """Markdown."""
    names = [a.reward, *a.held_out]
    lines = [f"| n | noises | {' | '.join(names)} | gain | correlation |", "|---|---|" + "---|" * (len(names) + 2)]
    for n in a.sizes:
        first = best(scores[a.noises[0]], n)
        for kind, values in scores.items():
            found = best(values, n)
            cells = [spread(found[:, r]) for r in range(len(names))]
            gain = spread(found[:, 0] - first[:, 0]) if kind != a.noises[0] else ""
            lines.append(f"| {n} | {kind} | {' | '.join(cells)} | {gain} | {pairs(values):.3f} |")
    return "\n".join(lines)


def spread(values: np.ndarray[Any, Any]) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    main()
