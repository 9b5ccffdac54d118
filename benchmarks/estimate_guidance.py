"""At which guidance x0 estimates rank seeds best, while the sampler keeps its own. On the embedded model.

    python benchmarks/estimate_guidance.py --scales 1 2 3 --json guidance.json

With classifier-free guidance both passes of an evaluation are there, so that the estimate that is scored can be made
at any scale at no cost. Held-out hard prompts are recorded once for each scale, from the same seeds; the finished
images are the same. Shown are the rank correlation (Spearman) within prompts with the finished image's soft score, by
step, and what seed pruning finds, by its default schedule and by one that `tune` fits to the first half of the prompts,
on the second half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded_curve import REWARDS, SOFT, rows_of, table
from ttsnap.pipelines import defaults, load

from ttsnap import Budget, SeedPruning, __version__
from ttsnap.core.metrics import spearman
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording
from ttsnap.scenes import HARD_KINDS, sample_prompts
from ttsnap.simulation.simulate import curve
from ttsnap.simulation.tune import tune


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="beside the sampler's own")
    p.add_argument("--score-steps", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5, 6, 8, 10])
    p.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200], help="NFE per prompt")
    p.add_argument("--prompts", type=int, default=40)
    p.add_argument("--seeds", type=int, default=32)
    p.add_argument("--prompt-seed", type=int, default=0)
    p.add_argument("--repeats", type=int, default=20)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--dtype", default="bfloat16", help="bfloat16 is twice as fast as float32 on CPUs that have it")
    p.add_argument("--recordings", type=Path, help="folder to keep the recordings in, and to go on from")
    p.add_argument("--json", type=Path)
    a = p.parse_args()

    pipe, call = load(dtype=getattr(torch, a.dtype)), {**defaults()}
    prompts = sample_prompts(a.prompts, a.prompt_seed, HARD_KINDS)
    recordings: dict[str, Recording] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.recordings or Path(temporary)
        for scale in (None, *a.scales):
            name = f"guidance {scale:g}" if scale is not None else f"the sampler's own ({call['guidance_scale']:g})"
            engine = pipe.engine(list(REWARDS), batch_size=a.batch_size, estimate_guidance=scale, **call)
            options = RecordOptions(a.seeds, steps=a.score_steps)
            info = {**call, "estimate_guidance": scale}
            recordings[name] = record(
                engine, prompts, folder / f"estimates-{scale}", options, info=info, progress_bar=True
            )
    out: dict[str, Any] = {"ttsnap": __version__, "spearman": {}, "rows": []}
    print("\n| step | " + " | ".join(recordings) + " |\n" + "|---" * (1 + len(recordings)) + "|")
    for k in a.score_steps:
        cells = []
        for name, r in recordings.items():
            each = spearman(r.scores[:, :, k, 0], r.final[..., 0])
            each = each[np.isfinite(each)]
            mean, error = float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)
            out["spearman"].setdefault(name, {})[k] = [mean, error]
            cells.append(f"{mean:.3f} ± {error:.3f}")
        print(f"| {k} | " + " | ".join(cells) + " |")
    budgets, half = [Budget(nfe=b) for b in a.budgets], slice(a.prompts // 2, None)
    for name, r in recordings.items():
        fitted = tune(r.select(slice(a.prompts // 2)), budgets, holdout=0, utility=SOFT).schedule
        for label, schedule in (("default", SeedPruning()), ("tuned", fitted)):
            found = curve(r.select(half), schedule, budgets, a.repeats, utility=SOFT)
            out["rows"] += rows_of(f"{name}, {label}", found)
        print(f"{name}: tuned to {fitted}")
    print(f"\n{table(out['rows'])}")
    if a.json:
        a.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
