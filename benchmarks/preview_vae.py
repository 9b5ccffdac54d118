"""The preview VAE on the embedded model: how rewards rank its decodes, and what searching with it
gains.

    python benchmarks/preview_vae.py --vae DIR --prompt-seed 0 --json preview_vae.json

DIR holds a diffusers AutoencoderTiny for the denoiser's latents as they are (scale 1, shift 0). On
held-out captions:

1. What a preview takes beside a decode by the real VAE, in FLOPs and in seconds, and how far their
   pixels differ.
2. By step, rank correlation within a prompt of a reward's score on previews and on real decodes of
   the same estimates; and of each with the reward's score of the finished image, which the real VAE
   decodes: what pruning goes by.
3. Seed pruning with and without previews at equal total FLOPs (denoiser, decodes, previews,
   rewards), simulated on the recorded scores, beside real decodes that cost nothing: the most that
   any preview could gain. And a few live searches, to hold the simulation and the ledger to them.

What is recorded stays in --work, if given, and is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_dtype
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm

from ttsnap import Budget, __version__
from ttsnap.algorithms import make_algorithm
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Rates
from ttsnap.core.metrics import rank_correlation
from ttsnap.core.price import Price
from ttsnap.core.results import Event
from ttsnap.engine.live import LiveEngine
from ttsnap.files.writing import markdown
from ttsnap.loop.search import fit, search
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.reward_models.registry import make_reward
from ttsnap.scenes import sample_prompts
from ttsnap.simulation.simulate import best_of_n_curve, curve
from ttsnap.simulation.sizing import sized_for

REWARDS = ("scenes", "scenes-learned", "scenes-noise-aware")
SCORED = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 14]
SIDES = ("decode", "preview", "free decode")
BLOCK, PIXELS = 4, 8
"""Captions recorded at a time; captions whose pixels are compared."""
SCHEDULES = {
    "one late cut": SeedPruning(),
    "three checks": make_algorithm("ttsnap"),
    "five checks": SeedPruning(keep=(0.75,) * 5, steps=(4, 5, 6, 7, 8)),
}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        help="another seed, other held-out captions of the same kinds",
    )
    p.add_argument("--prompts", type=int, default=48, help="held-out captions")
    p.add_argument(
        "--seeds", type=int, default=16, help="recorded per caption; no search can start more"
    )
    p.add_argument(
        "--images",
        type=float,
        nargs="+",
        default=[2, 2.5, 3, 3.5, 4, 4.5],
        help="budgets, in images' FLOPs",
    )
    p.add_argument(
        "--repeats", type=int, default=100, help="simulated searches per caption and budget"
    )
    p.add_argument("--live", type=int, default=8, help="captions of the live searches")
    p.add_argument("--vae", type=Path, required=True, help="folder of a trained preview VAE")
    p.add_argument("--batch-size", type=int, default=64)
    add_dtype(p)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--work", type=Path, help="folder to keep the recording in, and to go on from")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = a.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        pipe = load(dtype=getattr(torch, a.dtype))
        real, latents = recorded(a, pipe, work)
        pipe.preview_vae = AutoencoderTiny.from_pretrained(a.vae, torch_dtype=pipe.dtype).eval()
        seen, apart = previewed(pipe, real, latents)
    costs = {"pixels": apart, **prices(pipe)}
    print(cost_table(costs))
    ranks = correlations(real, seen)
    print(rank_table(ranks))
    both = {"decode": real, "preview": seen}
    pruned = pruning(a, both, costs)
    print(pruning_table(pruned))
    live = lived(a, pipe, seen, costs)
    print(live_line(live))
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items() if k != "json"
        }
        found = {
            "ttsnap": __version__,
            "setting": setting,
            "costs": costs,
            "scored": SCORED,
            "ranks": ranks,
        }
        a.json.write_text(json.dumps(found | {"pruning": pruned, "live": live}, indent=1))


@torch.no_grad()
def recorded(a: argparse.Namespace, pipe: Any, work: Path) -> tuple[Recording, Tensor]:
    """Every reward's scores of estimates and finished images by the real VAE; latents (P, S,
    len(SCORED), C, h, w).

    Blocks of prompts, each kept when it is done.
    """
    engine = LiveEngine(
        pipe.denoiser(**defaults()),
        [make_reward(n) for n in REWARDS],
        EngineOptions(a.batch_size, keep=["latents"]),
    )
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    scores, latents = [], []
    for start in tqdm(range(0, a.prompts, BLOCK), desc="record", unit="block"):
        path = work / f"test{a.prompt_seed}-{a.prompts}x{a.seeds}-{start}.pt"
        if not path.exists():
            torch.save(
                block(engine, prompts[start : start + BLOCK], a.seeds), path.with_suffix(".new")
            )
            path.with_suffix(".new").replace(path)
        stored = torch.load(path, weights_only=True)
        scores.append(stored["scores"].numpy()), latents.append(stored["latents"])
    known = tuple(k in SCORED or k == engine.grid.steps for k in range(engine.grid.steps + 1))
    names = engine.reward_names
    return Recording(
        tuple(prompts), np.concatenate(scores), engine.grid, names, scored=known
    ), torch.cat(latents)


def block(engine: LiveEngine, prompts: list[str], seeds: int) -> dict[str, Tensor]:
    """All seeds of a few prompts, denoised to the end."""
    kept: dict[tuple[int, int, int], Tensor] = {}

    def listen(event: Event) -> None:
        if event.kind == "score" and event.step in SCORED:
            kept[event.job, event.uids[0], event.step] = event.kept["latent"].cpu()

    results = search(prompts, KeepAll(seeds, tuple(SCORED)), engine, on_event=listen)
    order = [
        kept[job, uid, step]
        for job in range(len(prompts))
        for uid in range(seeds)
        for step in SCORED
    ]
    latents = torch.stack(order).unflatten(0, (len(prompts), seeds, len(SCORED)))
    return {
        "scores": torch.from_numpy(np.stack([r.particles.scores for r in results])),
        "latents": latents,
    }


@torch.no_grad()
def previewed(pipe: Any, real: Recording, latents: Tensor) -> tuple[Recording, dict[str, float]]:
    """The recording with the estimates scored on previews; by step, mean absolute difference of the
    pixels."""
    denoiser, rewards = pipe.denoiser(**defaults()), [make_reward(n) for n in REWARDS]
    denoiser.encode(["a red circle"])
    scores, apart = real.scores.copy(), {}
    for i, step in enumerate(tqdm(SCORED, desc="previews", unit="step")):
        level = torch.full((real.seeds,), real.grid.levels[step])
        apart[str(step)] = 0.0
        for p, prompt in enumerate(real.prompts):
            images = denoiser.preview(latents[p, :, i])
            scores[p, :, step] = np.stack(
                [np.asarray(r(images, [prompt] * real.seeds, level)) for r in rewards], 1
            )
            if p < PIXELS:
                difference = images - denoiser.decode(latents[p, :, i])
                apart[str(step)] += float(difference.abs().mean()) / min(PIXELS, len(real.prompts))
    return dataclasses.replace(real, scores=scores), apart


# --- part 1 ---------------------------------------------------------------------------------------


@torch.no_grad()
def prices(pipe: Any) -> dict[str, float]:
    """FLOPs of an evaluation, a decode, a preview and each reward; seconds of the decode and of the
    preview."""
    denoiser = pipe.denoiser(**defaults())
    costs = denoiser.costs()
    found = {"nfe": costs.nfe, "decode": costs.decode, "preview": costs.preview}
    found |= {name: make_reward(name).flops for name in REWARDS}
    denoiser.encode(["a red circle"])
    x = denoiser.init_latents([torch.Generator().manual_seed(i) for i in range(32)])
    for name, call in (("decode", denoiser.decode), ("preview", denoiser.preview)):
        call(x)
        seconds = []
        for _ in range(20):
            begin = time.perf_counter()
            call(x)
            seconds.append(time.perf_counter() - begin)
        found[f"{name}_seconds"] = float(np.median(seconds)) / len(x)
    return found


def cost_table(c: dict[str, Any]) -> str:
    lines = []
    for what, unit, scale, end in (
        ("MFLOP", "", 1e-6, ".1f"),
        ("ms, batches of 32", "_seconds", 1e3, ".3f"),
    ):
        real, seen = c[f"decode{unit}"], c[f"preview{unit}"]
        lines.append([what, f"{real * scale:{end}}", f"{seen * scale:{end}}", f"{real / seen:.1f}"])
    differences = ["mean absolute difference", *(f"{value:.4f}" for value in c["pixels"].values())]
    costs = markdown(["", "decode", "preview", "ratio"], lines)
    return f"\n{costs}\n\n{markdown(['step', *c['pixels']], [differences])}"


# --- part 2 ---------------------------------------------------------------------------------------


def correlations(real: Recording, seen: Recording) -> dict[str, dict[str, list[float]]]:
    """Per reward: by step, of the scores on previews with those on real decodes, and of each with
    the final ones."""
    found: dict[str, dict[str, list[float]]] = {}
    for r, name in enumerate(REWARDS):
        decode, preview = real.scores[..., r], seen.scores[..., r]
        final = np.broadcast_to(decode[:, :, -1:], decode.shape)
        pairs = {"preview with decode": (preview, decode), "decode with final": (decode, final)}
        pairs["preview with final"] = (preview, final)
        found[name] = {
            f"{what}, {kind}": [rank_correlation(x[:, :, k], y[:, :, k], kind=kind) for k in SCORED]
            for kind in ("spearman", "kendall")
            for what, (x, y) in pairs.items()
        }
    return found


def rank_table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = []
    for name, rows in found.items():
        lines.append([f"**{name}**", *[""] * len(SCORED)])
        lines += [[what, *(f"{v:.2f}" for v in row)] for what, row in rows.items()]
    return (
        "\nRank correlation within a prompt, held-out"
        f" captions\n{markdown(['step', *map(str, SCORED)], lines)}"
    )


# --- part 3 ---------------------------------------------------------------------------------------


def priced(recording: Recording, name: str, costs: dict[str, Any], *, estimates: str) -> Recording:
    """One reward's column, at the price of a search with it; `estimates` as in Price."""
    rates = Rates(costs["nfe"], costs["decode"], costs[name], previews=costs["preview"])
    scores = recording.scores[..., [REWARDS.index(name)]]
    price = Price(rates, passes_per_nfe=2, estimates=estimates)
    return dataclasses.replace(recording, scores=scores, reward_names=(name,), price=price)


def image_flops(costs: dict[str, Any], name: str, steps: int) -> float:
    return float(steps * costs["nfe"] + costs["decode"] + costs[name])


def pruning(
    a: argparse.Namespace, both: dict[str, Recording], costs: dict[str, Any]
) -> list[dict[str, Any]]:
    """Per reward and schedule: the final reward at each budget with real decodes, with previews,
    and with decodes that cost nothing, which no preview VAE can surpass but by luck; gains over
    real decodes, mean over the budgets."""
    rows = []
    kinds = {
        "decode": ("decode", "decode"),
        "preview": ("preview", "preview"),
        "free decode": ("decode", "nothing"),
    }
    for name in REWARDS:
        one = image_flops(costs, name, both["decode"].grid.steps)
        budgets = [Budget(flops=n * one) for n in a.images]
        sides = {
            what: priced(both[of], name, costs, estimates=paid)
            for what, (of, paid) in kinds.items()
        }
        best = best_of_n_curve(sides["decode"], budgets)
        for label, algorithm in SCHEDULES.items():
            row: dict[str, Any] = {
                "reward": name,
                "schedule": label,
                "images": a.images,
                "best-of-N": mean_of(best.rewards),
            }
            curves = {
                what: curve(side, algorithm, budgets, a.repeats) for what, side in sides.items()
            }
            for what, found in curves.items():
                row[what] = {
                    "mean": mean_of(found.rewards),
                    "by budget": found.mean.tolist(),
                    "seeds": [sized_for(sides[what], algorithm, budget)[1].n for budget in budgets],
                    "share spent": (
                        (found.spent * costs["nfe"] / (np.array(a.images) * one)).tolist()
                    ),
                    "gain": mean_of(found.rewards - curves["decode"].rewards),
                }
            rows.append(row)
    return rows


def mean_of(rewards: FloatArray) -> tuple[float, float]:
    """(P, B) -> mean and its standard error over prompts."""
    each = rewards.mean(1)
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


def pruning_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for r in rows:
        cells = [r["reward"], r["schedule"]]
        cells.append(
            " ".join(
                "/".join(str(r[what]["seeds"][i]) for what in SIDES)
                for i in range(len(r["images"]))
            )
        )
        cells.append(f"{r['best-of-N'][0]:.3f}")
        cells += ["{:.3f} ± {:.3f}".format(*r[what]["mean"]) for what in SIDES[:2]]
        cells += ["{:+.4f} ± {:.4f}".format(*r[what]["gain"]) for what in SIDES[1:]]
        lines.append(cells)
    head = [
        "reward",
        "schedule",
        "seeds",
        "best-of-N",
        "decode",
        "preview",
        "gain",
        "gain of free decodes",
    ]
    table = markdown(head, lines, left=(0, 1))
    budgets = ", ".join(f"{n:g}" for n in rows[0]["images"])
    title = f"Seed pruning at equal FLOPs, mean final reward over budgets of {budgets} images"
    return f"\n{title}; seeds with decodes/previews/free decodes\n{table}"


def lived(
    a: argparse.Namespace, pipe: Any, seen: Recording, costs: dict[str, Any]
) -> dict[str, Any]:
    """A few live searches with previews, and the same ones replayed on the recording: do they
    agree?"""
    name, algorithm = REWARDS[1], SCHEDULES["five checks"]
    side = priced(seen, name, costs, estimates="preview").select(slice(0, a.live))
    budget = Budget(flops=a.images[-1] * image_flops(costs, name, seen.grid.steps))
    engine = LiveEngine(
        pipe.denoiser(**defaults()), [make_reward(name)], EngineOptions(a.batch_size, preview=True)
    )
    sized: Any = fit(algorithm, engine, budget, most=seen.seeds)
    results = search(side.prompts, sized, engine, budget, seed=side.first_seed)
    replayed = search(side.prompts, sized, ReplayEngine(side), budget, seed=side.first_seed)
    return {
        "searches": len(results),
        "seeds": sized.n,
        "same winner": sum(
            x.best.seed == y.best.seed for x, y in zip(results, replayed, strict=True)
        ),
        "same cost": sum(
            x.spent.flops == y.spent.flops for x, y in zip(results, replayed, strict=True)
        ),
        "live": float(np.mean([r.best.reward for r in results])),
        "replayed": float(np.mean([r.best.reward for r in replayed])),
        "spent": results[0].spent.to_json(),
        "ran": dict(engine.stats),
    }


def live_line(found: dict[str, Any]) -> str:
    spent = found["spent"]
    return (
        f"\n{found['searches']} live searches with previews: mean reward {found['live']:.3f},"
        f" replayed on the recording {found['replayed']:.3f}; same winner in"
        f" {found['same winner']}, same ledger in {found['same cost']}.\nEach took {spent['nfe']}"
        f" evaluations, {spent['decodes']} decodes and {spent['previews']} previews; together the"
        f" engine ran {found['ran']['nfe']}, {found['ran']['decodes']} and"
        f" {found['ran']['previews']}."
    )


if __name__ == "__main__":
    main()
