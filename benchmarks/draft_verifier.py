"""A verifier that reads a draft inside the drafter: what its hidden states tell of the finished
image's score.

    python benchmarks/draft_verifier.py --out verifier --compile

A draft is scored by decoding it and asking the reward, which was made for finished images. Here a
small network learns to predict the finished image's score (the checker's soft score) from what the
drafter's one call leaves behind anyway: the hidden states of its last block, in which the caption
is mixed in already, or the guessed latent, or both. That takes no decode. It learns from
trajectories as `ttsnap distill-draft` makes them: drafts of their noises, and the scores of their
ends.

1. Rank correlation (Spearman) within held-out prompts of what each verifier says with the finished
   image's score, beside that of the decoded draft; and of both together, weighted as predicts best
   on trajectories that were held back.
2. Searches of a recording by pruning with drafts (benchmarks/distilled_drafts.py), ranked by each
   of these.

The folder keeps trajectories, verifiers and the recording, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilled_drafts import with_looks
from embedded_curve import REWARDS, SOFT, rows_of, table
from torch import Tensor, nn
from torch.nn.functional import mse_loss, unfold
from tqdm.auto import tqdm

from ttsnap import Budget, SeedPruning
from ttsnap.core.arrays import FloatArray
from ttsnap.core.looks import EstimatorAt
from ttsnap.core.metrics import spearman
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import TrajectoryConfig
from ttsnap.distill.draft.prompts import SceneCaptions
from ttsnap.distill.draft.student import DraftStudent, start_from
from ttsnap.distill.draft.trajectories import Trajectories, begin
from ttsnap.options.model import EMBEDDED
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines import defaults, load
from ttsnap.pipelines.memory.acceleration import compile_denoiser
from ttsnap.recordings.record import record
from ttsnap.reward_models.registry import make_reward
from ttsnap.sampling.drafts import read_draft
from ttsnap.scenes import draft_path, sample_prompts
from ttsnap.simulation.simulate import curve

LOOK = EstimatorAt("draft:1", 0)
KINDS = ("features", "latents", "both")
HELD, BATCH, RANK, STATES = 1024, 128, 32, 5


@dataclass(frozen=True)
class Drafted:
    """What drafts of N noises leave behind: the guessed latents (N, C, h, w), and the hidden states
    of the drafter's last block (N, h w, D), both float16; and the scores (N,) that a verifier is to
    predict of them."""

    latents: Tensor
    features: Tensor
    scores: Tensor

    def part(self, rows: Tensor | slice) -> Drafted:
        return Drafted(self.latents[rows], self.features[rows], self.scores[rows])


class Drafts:
    """The packaged drafter, with what its last block puts out."""

    def __init__(self, pipe: Any, call: dict[str, Any]) -> None:
        folder = Path(draft_path())
        first_time = read_draft(folder).first_time
        self.student = DraftStudent(pipe, call, states=STATES, first_time=first_time, rank=RANK)
        start_from(self.student, folder)
        self.hidden = torch.empty(0)
        self.student.net.transformer_blocks[-1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, given: Any, out: Any) -> None:
        self.hidden = out[1]  # (the text's, the image's)

    @torch.no_grad()
    def __call__(self, noise: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Initial noises (N, ...) in the sampler's scaling -> latents, features, float16."""
        student, first = self.student, torch.zeros(len(noise), dtype=torch.long)
        wanted = list(dict.fromkeys(texts))
        student.encode(wanted)
        x = student.on_path(noise.float(), first)
        told, cond = (
            student.times[first] * student.first_time,
            torch.tensor([wanted.index(text) for text in texts]),
        )
        return student.estimate(x, told, cond).half(), self.hidden.half()


class Verifier(nn.Module):
    """Two transformer blocks over the places of a guess; the mean and the maximum over places
    decide.

    (N, C, h, w) latents and (N, h w, D) features, of which it reads one or both -> (N,) scores, in
    deviations.
    """

    def __init__(
        self, kind: str, width: int = 192, places: int = 64, channels: int = 8, dim: int = 192
    ) -> None:
        super().__init__()
        self.features = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width)) if kind != "latents" else None
        )
        self.latents = nn.Linear(9 * channels, width) if kind != "features" else None
        self.place = nn.Parameter(0.02 * torch.randn(places, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        x = self.place.expand(len(latents), -1, -1)
        if self.features is not None:
            x = x + self.features(features)
        if self.latents is not None:
            # a place and its neighbours
            x = x + self.latents(unfold(latents, 3, padding=1).transpose(1, 2))
        x = self.mix(x)
        score: Tensor = self.out(torch.cat([x.mean(1), x.amax(1)], 1))[:, 0]
        return score


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--out", type=Path, required=True, help="folder to keep everything in; one for each setting"
    )
    p.add_argument("--trajectories", type=int, default=24_576)
    p.add_argument(
        "--epochs", type=float, default=6.0, help="how often a verifier sees each trajectory"
    )
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    p.add_argument("--prompts", type=int, default=30)
    p.add_argument(
        "--seeds", type=int, default=60, help="recorded per prompt; no search can start more"
    )
    p.add_argument("--prompt-seed", type=int, default=15)
    p.add_argument("--budgets", type=int, nargs="+", default=[25, 50, 100], help="NFE per prompt")
    p.add_argument("--repeats", type=int, default=20, help="searches per prompt and budget")
    p.add_argument(
        "--compile",
        action="store_true",
        help="compile the network first: half a minute, then faster",
    )
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    pipe, call = load(), defaults()
    drafts, denoiser = Drafts(pipe, call), pipe.denoiser(**call)
    if a.compile:
        compile_denoiser(pipe)
    config = TrajectoryConfig(
        count=a.trajectories,
        seed=30_000_000,
        skipped=(11, 12, 14, 15, 17, 18, 19),
        batch=64,
        compile=a.compile,
    )
    captions = SceneCaptions(config.seed)
    settings = trajectories.settings_of(config, EMBEDDED, call, captions, pipe.dtype)
    made = trajectories.make(
        pipe.denoiser(**call), captions, config, settings, a.out / "trajectories"
    )
    data = Trajectories.read(made, settings)
    reward = make_reward(REWARDS[0])
    known = drafted_of(drafts, data, denoiser, reward)
    mean, spread = known.scores.mean(), known.scores.std()
    verifiers = {kind: trained(kind, known, (known.scores - mean) / spread, a) for kind in a.kinds}

    held = known.part(slice(0, HELD))
    parts = torch.arange(HELD).split(BATCH)
    looked = torch.cat(
        [scored(reward, denoiser, held.latents[i], [data.prompts[j] for j in i]) for i in parts]
    )
    prompts = sample_prompts(a.prompts, a.prompt_seed)
    engine = pipe.engine(list(REWARDS), batch_size=64, **call)
    test = record(
        engine, prompts, a.out / "test", RecordOptions(a.seeds), info=call, progress_bar=True
    )
    drafting = pipe.engine(list(REWARDS), batch_size=64, draft=EMBEDDED, **call)
    test = with_looks(test, drafting, [LOOK], 0)
    decoded = SOFT(test.looks[LOOK])
    columns = {"the decoded draft": decoded}
    for kind, verifier in verifiers.items():
        said = said_of(verifier, drafts, denoiser, prompts, a.seeds)
        columns[f"verifier of {kind}"] = said
        weights = fitted(looked, predict(verifier, held), held.scores)
        print(
            f"{kind}: together {weights[0]:.2f} of the decoded draft's score and {weights[1]:.2f}"
            " of what is predicted"
        )
        columns[f"both, {kind}"] = weights[0] * decoded + weights[1] * said
    final, rows, base = SOFT(test.final), [], spearman(decoded, SOFT(test.final))
    for name, column in columns.items():
        ranks = spearman(column, final)
        ok = np.isfinite(ranks) & np.isfinite(base)
        gain = (ranks - base)[ok]
        rows.append(
            {
                "look": name,
                "spearman": float(ranks[ok].mean()),
                "se": error_of(ranks[ok]),
                "gain": float(gain.mean()),
                "gain_se": error_of(gain),
            }
        )
        print(
            f"{name}: Spearman {ranks[ok].mean():.3f} ± {rows[-1]['se']:.3f}, {gain.mean():+.3f} ±"
            f" {error_of(gain):.3f}"
        )
    curves = []
    for name, column in columns.items():
        # searches choose by the first; the second is only reported
        scores = np.repeat(column[..., None], 2, -1)
        ranked = dataclasses.replace(test, looks={LOOK: scores})
        found = curve(
            ranked,
            SeedPruning(draft_calls=1),
            [Budget(nfe=b) for b in a.budgets],
            a.repeats,
            utility=SOFT,
        )
        curves += rows_of(name, found)
    print(f"\n{table(curves)}")
    if a.json:
        setting = {k: str(v) for k, v in vars(a).items()}
        a.json.write_text(
            json.dumps({"setting": setting, "ranks": rows, "curves": curves}, indent=1)
        )


@torch.no_grad()
def scored(reward: Any, denoiser: Any, latents: Tensor, texts: Sequence[str]) -> Tensor:
    """The reward's scores (N,) of decoded latents (N, ...)."""
    return torch.as_tensor(
        reward(denoiser.decode(latents.float()), texts, torch.zeros(len(latents)))
    )


@torch.no_grad()
def drafted_of(drafts: Drafts, data: Trajectories, denoiser: Any, reward: Any) -> Drafted:
    """Drafts of all trajectories' noises, and the scores of their ends."""
    latents, features, scores = [], [], []
    for rows in tqdm(torch.arange(len(data)).split(BATCH), desc="drafts", mininterval=10):
        texts = [data.prompts[i] for i in rows]
        guess, hidden = drafts(data.states[rows, 0], texts)
        latents.append(guess)
        features.append(hidden)
        scores.append(scored(reward, denoiser, data.ends[rows], texts))
    return Drafted(torch.cat(latents), torch.cat(features), torch.cat(scores))


def trained(kind: str, known: Drafted, target: Tensor, a: argparse.Namespace) -> Verifier:
    """Train the verifier of this kind, unless it is there; its running average over steps."""
    torch.manual_seed(0)
    verifier, average, file = Verifier(kind), Verifier(kind), a.out / f"{kind}.pt"
    if file.exists():
        average.load_state_dict(torch.load(file, weights_only=True))
        return average.eval()
    average.load_state_dict(verifier.state_dict())
    steps = int(a.epochs * (len(target) - HELD) / BATCH)
    optimizer = torch.optim.AdamW(
        verifier.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, a.lr, total_steps=steps, pct_start=0.1
    )
    bar = tqdm(range(steps), desc=kind, mininterval=10)
    for step in bar:
        rows = torch.randint(HELD, len(target), (BATCH,))
        batch = known.part(rows)
        loss = mse_loss(verifier(batch.latents.float(), batch.features.float()), target[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(verifier.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        pairs = [average.parameters(), verifier.parameters()]
        torch._foreach_lerp_(
            *([p.detach() for p in part] for part in pairs), 1 - min(0.99, (1 + step) / (10 + step))
        )
        if step % 100 == 99:
            held = mse_loss(predict(average, known.part(slice(0, HELD))), target[:HELD])
            bar.write(
                f"{kind}, step {step + 1}: error on trajectories that were held back {held:.3f} of"
                " their variance"
            )
    torch.save(average.state_dict(), file)
    return average.eval()


@torch.no_grad()
def predict(verifier: Verifier, drafted: Drafted) -> Tensor:
    """What the verifier says of these drafts, (N,)."""
    verifier.eval()
    rows = torch.arange(len(drafted.scores)).split(BATCH)
    return torch.cat(
        [verifier(drafted.latents[i].float(), drafted.features[i].float()) for i in rows]
    )


def said_of(
    verifier: Verifier, drafts: Drafts, denoiser: Any, prompts: Sequence[str], seeds: int
) -> FloatArray:
    """What the verifier says of drafts of seeds 0, 1, ... of each prompt, (P, S)."""
    denoiser.encode([prompts[0]])  # which decides the noise's dtype
    said, noise = [], begin(denoiser, range(seeds))[0]
    for prompt in prompts:
        guess, hidden = drafts(noise, [prompt] * seeds)
        said.append(predict(verifier, Drafted(guess, hidden, torch.zeros(seeds))).numpy())
    return np.stack(said).astype(float)


def fitted(looked: Tensor, said: Tensor, scores: Tensor) -> FloatArray:
    """The weights (2,) of the decoded draft's score and of the verifier's that predict the finished
    score best."""
    known = torch.stack([looked.double(), said.double(), torch.ones(len(said)).double()], 1)
    found: FloatArray = torch.linalg.lstsq(known, scores.double()[:, None]).solution[:2, 0].numpy()
    return found


def error_of(values: FloatArray) -> float:
    """The standard error of their mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
