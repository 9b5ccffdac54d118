"""Drafts that are finished, in place of the noise of their seeds: what searches find, and what
becomes of the images.

    python benchmarks/finished_drafts.py --json finished.json
    python benchmarks/finished_drafts.py --kinds crowd arrangement medley binding --finish noise noise@6 0.4:3
    python benchmarks/finished_drafts.py --model signs --prompts 20 --finish noise@6 0.4:3

Held-out prompts are recorded once for each way to finish: "noise" is the model's own call,
"noise@6" the same in six steps, "0.4:3" puts the draft back to noise level .4 and takes three steps
from there. All have the same seeds. Searches choose by the checker's soft score, or by the
similarity of what an OCR reads with the word. Whether winners are right is only reported, as are
the distance of pixels to the nearest colour of a clean render, and how unlike each other images of
a prompt are: the root mean square distance of thumbnails. `--live` searches live as well, from
other seeds, and reports a reward that no search sees.

Of each way: best-of-N, pruning with its defaults, and drafts of which the best are finished.
`--share` says how much of the cost goes to drafts; the shares were chosen by `--prompt-seed 4711
--prompts 36`, other prompts than the default's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import add_recording
from distilled_drafts import least
from embedded_curve import plot, rows_of

from ttsnap import BestOfN, Budget, SeedPruning, __version__, scenes, search, signs
from ttsnap.core.metrics import spearman
from ttsnap.core.plans import image_cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.selection import Selection
from ttsnap.core.utility import weighted
from ttsnap.files.writing import markdown
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.sampling.rng import seeded
from ttsnap.scenes.render import GRAY_LEVELS, RGB
from ttsnap.simulation.simulate import Curve, best_of_n_curve, curve

SOFT = weighted([1.0, 0.0, 0.0])
PALETTE = np.concatenate([RGB.reshape(-1, 3), np.repeat(GRAY_LEVELS[:, None], 3, 1)]).astype(
    np.float32
)


class Clean:
    """Less the mean distance of pixels to the nearest colour that a clean render may have."""

    name = "clean"

    def __call__(self, images: torch.Tensor, prompts: list[str], level: Any) -> torch.Tensor:
        pixels = images.float().movedim(1, -1)[..., None, :]
        return -(pixels - torch.from_numpy(PALETTE)).square().sum(-1).sqrt().amin(-1).mean((1, 2))


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="embedded", choices=["embedded", "signs"])
    p.add_argument("--draft", default="embedded", help="as pipe(draft=...) takes it")
    p.add_argument("--finish", nargs="+", default=["noise", "noise@6", "0.4:3"])
    p.add_argument(
        "--share", type=float, nargs="+", default=[0.5], help="of the cost that goes to drafts"
    )
    p.add_argument(
        "--budgets", type=int, nargs="+", default=[12, 25, 50, 100], help="NFE per prompt"
    )
    add_recording(p, prompts=60, seeds=64)
    p.add_argument(
        "--prompt-seed",
        type=int,
        default=15,
        help="another seed, other held-out prompts of the same kinds",
    )
    p.add_argument(
        "--kinds",
        nargs="+",
        default=list(scenes.HARD_KINDS),
        help="of captions, of the embedded model",
    )
    p.add_argument(
        "--alike",
        type=int,
        default=12,
        help="seeds of each prompt whose images are compared; 0: none",
    )
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument("--plot", type=Path, help="the share of winners that are right")
    p.add_argument(
        "--live",
        action="store_true",
        help="search live, too, and say what a reward that no search saw thinks",
    )
    p.add_argument(
        "--sheet",
        type=Path,
        help="wrong drafts of seed 0, with noise, and what right images they become",
    )
    a = p.parse_args()
    pipe = load(a.model, dtype=getattr(torch, a.dtype))
    if a.model == "signs":
        prompts, rewards = signs.sample_prompts(a.prompts, a.prompt_seed), ["ocr:line"]
    else:
        prompts, rewards = (
            scenes.sample_prompts(a.prompts, a.prompt_seed, a.kinds),
            ["scenes", "scenes-strict", Clean()],
        )
    made, rows = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        for way in a.finish:
            made[way], row = recorded(
                pipe, way, prompts, rewards, (a.recordings or Path(temporary)), a
            )
            rows.append(row)
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]))
    found: dict[str, Any] = {"images": rows}
    for unit in ("nfe", "flops"):
        curves = compared(made, unit, a)
        found[unit] = [
            row | {"budget": n}
            for name, (caps, c) in curves.items()
            for n, row in zip(caps, rows_of(name, c), strict=True)
        ]
        heads = [
            f"right, {'NFE' if unit == 'nfe' else 'at the FLOPs of as many NFE'}",
            *map(str, a.budgets),
        ]
        told = {
            name: dict(zip(caps, rows_of(name, c), strict=True))
            for name, (caps, c) in curves.items()
        }
        cells = [
            [
                f"{row[b]['strict']:.3f} ± {row[b]['strict_se']:.3f}" if b in row else ""
                for b in a.budgets
            ]
            for row in told.values()
        ]
        print(
            "\n" + markdown(heads, [[name, *each] for name, each in zip(told, cells, strict=True)]),
            flush=True,
        )
    if a.live:
        found["live"] = [live(pipe, way, prompts, cap, a) for way in a.finish for cap in a.budgets]
        rows = [row for row in found["live"] if row]
        print("\n" + markdown(list(rows[0]), [list(row.values()) for row in rows]))
    if a.sheet:
        last = made[a.finish[-1]]
        (draft,) = last.looks.values()
        repaired = np.flatnonzero((draft[:, 0, 1] < 1) & (last.final[:, 0, 1] == 1))
        print(f"{len(repaired)} drafts of seed 0 are wrong, and right once they are finished")
        sheet(pipe, a.finish[-1], [prompts[i] for i in repaired[:6]], rewards, a)
    if a.plot:
        rows = [
            {**row, "algorithm": shown(row["algorithm"])}
            for row in found["nfe"]
            if shown(row["algorithm"])
        ]
        plot(rows, a.plot, {"strict": "share of winners that are right"})
    if a.json:
        setting = {
            k: str(v) if isinstance(v, Path) else v
            for k, v in vars(a).items()
            if k not in ("json", "plot")
        }
        a.json.write_text(
            json.dumps({"ttsnap": __version__, "setting": setting, **found}, indent=1)
        )


def recorded(
    pipe: Any, way: str, prompts: list[str], rewards: list[Any], folder: Path, a: argparse.Namespace
) -> tuple[Recording, dict[str, Any]]:
    """The recording of a way to finish, and what one image by it is."""
    finish, _, steps = way.partition("@")
    call = {**defaults(a.model), **({"num_inference_steps": int(steps)} if steps else {})}
    engine = pipe.engine(rewards, batch_size=a.batch_size, draft=a.draft, finish=finish, **call)
    steps_scored = None if engine.grid.steps < 8 else [2, 4, 6, 8, 11, 14]
    options = RecordOptions(
        a.seeds, seed=0, steps=steps_scored, looks=(f"draft:{engine.draft_calls}@0",)
    )
    there = folder / f"{a.model}-{a.prompt_seed}-{way.replace(':', '-')}"
    made = record(
        engine, prompts, there, options, info={**call, "finish": finish}, progress_bar=True
    )
    if a.model == "signs":
        alone = np.concatenate([made.scores, made.scores == 1, made.scores * 0], -1)
        looks = {k: np.concatenate([v, v == 1, v * 0], -1) for k, v in made.looks.items()}
        made = Recording(
            made.prompts,
            alone,
            made.grid,
            ("similarity", "right", "none"),
            made.first_seed,
            made.scored,
            made.price,
            made.info,
            looks,
        )
    (draft,) = made.looks.values()
    ranks = spearman(SOFT(draft), SOFT(made.final))
    row = {
        "one image by": way,
        "NFE": round(made.price.evaluations(_image(made)), 2),
        "right": told(made.final[..., 1].mean(1)),
        "any seed right": told(made.final[..., 1].max(1)),
        "distance to clean colours": told(-made.final[..., 2].mean(1)),
        "rank correlation with its draft": told(ranks[np.isfinite(ranks)]),
    }
    if a.alike:
        many = search(prompts, BestOfN(a.alike), engine, selection=Selection(keep=a.alike))
        row["distance between images"] = told(
            np.array([apart([c.pixels for c in r.images]) for r in many])
        )
    return made, row


def live(
    pipe: Any, way: str, prompts: list[str], cap: int, a: argparse.Namespace
) -> dict[str, Any]:
    """Live searches from seeds of their own. They see the checker's soft score alone; empty where
    no image fits."""
    finish, _, steps = way.partition("@")
    call = {**defaults(a.model), **({"num_inference_steps": int(steps)} if steps else {})}
    engine = pipe.engine(
        ["scenes", "scenes-strict", "scenes-learned"],
        batch_size=a.batch_size,
        draft=a.draft,
        finish=finish,
        **call,
    )
    if cap < engine.price.evaluations(image_cost(engine.grid, 3, engine.price)):
        return {}
    results = search(
        prompts,
        SeedPruning(),
        engine,
        Budget(nfe=cap),
        selection=Selection(utility=SOFT),
        seed=10_000,
    )
    return {
        "one image by": way,
        "NFE": cap,
        "right": told([r.best.scores["scenes-strict"] for r in results]),
        "scenes-learned, which no search saw": told(
            [r.best.scores["scenes-learned"] for r in results]
        ),
        "NFE spent": round(float(np.mean([r.spent.nfe for r in results])), 2),
    }


def _image(made: Recording) -> Any:
    return image_cost(made.grid, len(made.reward_names), made.price)


def shown(name: str) -> str:
    """What the curve of a search is called; empty for one that is not plotted."""
    way, _, search = name.partition(": ")
    kind, _, steps = way.partition("@")
    begun = f"{steps or 'all'} steps from noise" if kind == "noise" else f"drafts finished, {way}"
    return {
        "best-of-n": f"best-of-N, {begun}",
        "pruning": begun + (", drafts rank" if kind == "noise" else ""),
    }.get(search, "")


def told(values: Any) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


def apart(images: list[torch.Tensor]) -> float:
    """Mean root mean square distance between thumbnails of images (3, H, W), half as large."""
    small = torch.nn.functional.avg_pool2d(torch.stack(images).float(), 2).flatten(1)
    distances = torch.pdist(small) / small.shape[1] ** 0.5
    return float(distances.mean())


def sheet(
    pipe: Any, finish: str, prompts: list[str], rewards: list[Any], a: argparse.Namespace
) -> None:
    """One seed of some prompts: the draft, the draft with noise, what that ends in, and what the
    noise ends in."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    engines = [
        pipe.engine(rewards, draft=a.draft, finish=f, **defaults(a.model))
        for f in (finish, "noise")
    ]
    ends = [[r.best.pixels for r in search(prompts, BestOfN(1), engine)] for engine in engines]
    denoiser: Any = engines[0].denoiser
    denoiser.encode([Prompt(prompt) for prompt in prompts])
    noise = denoiser.init_latents([seeded(0) for _ in prompts])
    begun, _, guess = denoiser.starter.begin(noise, torch.arange(len(prompts)), (), ())
    level = denoiser.grid.levels[0]
    rows = {
        "draft": denoiser.decode(guess),
        f"with noise, {level:.2g}": denoiser.decode(begun),
        f"finished, {denoiser.grid.nfe} steps": ends[0],
        f"from noise, {engines[1].grid.nfe} steps": ends[1],
    }
    figure, axes = plt.subplots(
        len(rows), len(prompts), figsize=(1.7 * len(prompts), 1.9 * len(rows)), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image, prompt in zip(line, images, prompts, strict=True):
            axis.imshow(
                torch.as_tensor(image).float().clamp(0, 1).movedim(0, -1).detach().numpy(),
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
            if name == "draft":
                axis.set_title("\n".join(textwrap.wrap(prompt, 18)), fontsize=7)
        line[0].set_ylabel(name, fontsize=8)
    figure.tight_layout()
    figure.savefig(a.sheet, dpi=120)


def compared(
    made: dict[str, Recording], unit: str, a: argparse.Namespace
) -> dict[str, tuple[list[int], Curve]]:
    """Curves of each search over each recording, with the numbers of evaluations that its budgets
    are worth."""
    curves: dict[str, tuple[list[int], Curve]] = {}
    one = next(iter(made.values())).price.flops.nfe
    for way, recording in made.items():
        price = recording.price
        if unit == "nfe":
            caps = {
                b: Budget(nfe=b) for b in a.budgets if b >= price.evaluations(_image(recording))
            }
        else:
            caps = {b: Budget(flops=b * one) for b in a.budgets if b * one > least(recording)}
        if not caps:
            continue
        budgets = list(caps.values())
        if not price.start.cost.draft_calls:
            curves[f"{way}: best-of-n"] = (
                list(caps),
                best_of_n_curve(recording, budgets, utility=SOFT),
            )
        searches = {"pruning": SeedPruning()}
        searches |= {
            f"drafts {share:g}": SeedPruning(keep=(), levels=(), draft_share=share)
            for share in a.share
        }
        for name, algorithm in searches.items():
            curves[f"{way}: {name}"] = (
                list(caps),
                curve(recording, algorithm, budgets, a.repeats, utility=SOFT),
            )
    return curves


if __name__ == "__main__":
    main()
