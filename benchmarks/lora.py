"""Post-training plus search: the embedded model with and without a LoRA, single samples and searches.

    python scripts/train_worlds preference --out preference
    python benchmarks/lora.py --lora preference --json lora.json

Hard held-out prompts are searched with the reward that the LoRA was trained to please (`scenes-learned`); the exact
checker, which nothing here optimises, judges what comes back. A budget of n images is n times the steps in denoiser
calls. Figures are means over prompts of the mean over seeds, with the standard error over prompts; differences are
paired by prompt, for both models start from the same noise. Diversity is the mean distance (root mean square over
pixels) between the winners of a prompt's seeds. OUT is written after every run, and runs that it holds are not made
again, so that an interrupted benchmark goes on, and that another LoRA is compared with the same frozen runs.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import SETTINGS, diversity, parser, read, winners, write

from ttsnap import Budget, make_algorithm, search
from ttsnap.files.writing import markdown
from ttsnap.pipelines import load
from ttsnap.pipelines.lora import load_lora, parse_lora
from ttsnap.reward_models.registry import make_rewards
from ttsnap.scenes import sample_prompts

# What is searched, and its budget in images.
METHODS = {
    "one sample": ("best-of-n", 1),
    "best of 4": ("best-of-n", 4),
    "best of 10": ("best-of-n", 10),
    "seed pruning": ("seed-pruning", 10),
}


def main() -> None:
    p = parser(__doc__)
    p.add_argument(
        "--lora", help="folder of the LoRA, with its scale as FOLDER:0.5; without one, the frozen model only"
    )
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    a = p.parse_args()
    settings = {k: getattr(a, k) for k in SETTINGS}
    done = read(a.json, settings)
    pipes = {"frozen": load(dtype=getattr(torch, a.dtype))}
    if a.lora is not None:
        tuned = pipes[f"LoRA {fingerprint(a.lora)}"] = load(dtype=getattr(torch, a.dtype))
        load_lora(tuned, a.lora)
    call = {"num_inference_steps": a.steps}
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    reward, metrics = make_rewards(a.reward), make_rewards(a.held_out)
    # Seed by seed, so that what is there when it is interrupted compares everything.
    for seed, method, (model, pipe) in itertools.product(range(a.seeds), a.methods, pipes.items()):
        key = f"{method}|{model}|{seed}"
        if key in done:
            continue
        engine = pipe.engine(reward, batch_size=a.batch_size, **call)
        name, images = METHODS[method]
        begin = time.perf_counter()
        budget = Budget(nfe=images * engine.grid.nfe)
        results = search(prompts, make_algorithm(name), engine, budget, seed=seed * 100_000)
        done[key] = {**winners(results, metrics), "seconds": time.perf_counter() - begin}
        print(f"{key}: {np.mean(done[key]['reward']):.3f} reward, {done[key]['seconds']:.0f} s", flush=True)
        write(a.json, settings, done)
    print(table(done, ["reward", *a.held_out]))


def fingerprint(lora: str) -> str:
    """The scale, and a hash of the weights of a local LoRA (a name, for one on the hub)."""
    where, scale = parse_lora(lora)
    path = Path(where).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return f"{hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()[:12] if files else where}:{scale}"


def table(runs: dict[str, Any], names: list[str]) -> str:
    """Markdown: a line for each search and model, and one for what a LoRA adds, over the seeds that all models have."""
    lines = []
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for key, run in runs.items():
        method, model, seed = key.split("|")
        found.setdefault(method, {}).setdefault(model, {})[seed] = run
    for method, models in found.items():
        seeds = sorted(set.intersection(*map(set, models.values())))  # an interrupted benchmark has more of some
        if not seeds:
            continue
        by_model = {model: [by_seed[seed] for seed in seeds] for model, by_seed in models.items()}
        means = {m: {n: np.mean([run[n] for run in group], axis=0) for n in names} for m, group in by_model.items()}
        for model, group in by_model.items():
            nfe, flops = (np.mean([run[k] for run in group]) for k in ("nfe", "flops"))
            cells = [figure(means[model][n]) for n in names]
            lines.append([method, model, *cells, diversity(group), f"{nfe:.0f}", f"{flops / 1e12:.3f}"])
            if model != "frozen" and "frozen" in means:
                cells = [figure(means[model][n] - means["frozen"][n], "+") for n in names]
                lines.append([method, f"{model} - frozen", *cells, "", "", ""])
    return markdown(["search", "model", *names, "diversity", "NFE", "TFLOPs"], lines, left=(0, 1))


def figure(by_prompt: Any, sign: str = "") -> str:
    """Mean and standard error over prompts."""
    error = by_prompt.std(ddof=1) / len(by_prompt) ** 0.5 if len(by_prompt) > 1 else float("nan")
    return f"{by_prompt.mean():{sign}.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
