"""A page of evidence from a model and a reward of one's own: what a search finds beside best-of-N, at equal budgets.

    make showcase MODEL=stabilityai/stable-diffusion-3.5-medium REWARD=imagereward REPORT=hpsv2.1
    python scripts/showcase.py --model embedded  # a rehearsal, in a minute or two on a CPU

Ten prompts are searched by best-of-N, by seed pruning, and by drafts before pruning where a drafter is given, each
with the compute of 20 images. `ttsnap bench` does it, so that the same command goes on after an interruption. The
folder then holds showcase.md, to be published with the pictures beside it: what was found, by the searched reward and
by one that no search saw, with standard errors; what it cost; each prompt's winners side by side; the contact sheets.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ttsnap.cli import main as ttsnap
from ttsnap.options.model import EMBEDDED
from ttsnap.options.sampler import NONE
from ttsnap.pipelines.packaged import MODELS
from ttsnap.version import versions

PROMPTS = Path(__file__).with_name("showcase_prompts.txt")
PLAIN = ("best-of-n", "seed-pruning draft_share=0")
DRAFTED = "seed-pruning"
TITLES = {PLAIN[0]: "best-of-N", PLAIN[1]: "seed pruning", DRAFTED: "drafts, then pruning"}
SIDE = 384
"""Pixels of the longer side of a winner on the page."""


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=EMBEDDED, help="as ttsnap generate takes it")
    p.add_argument("--reward", help="by which searches choose (the embedded model: its checker)")
    p.add_argument("--report", help="a reward that no search sees; hpsv2.1, or imagereward beside hpsv2.1")
    p.add_argument("--draft", help="a drafter of the model, for a third search (the embedded model has one)")
    p.add_argument("--prompts-file", type=Path, help="other prompts than the ten")
    p.add_argument("--budget", help="of each search (20images; the embedded model, which solves all with that: 50nfe)")
    p.add_argument("--out", type=Path, default=Path("showcase"), help="the folder to write, or to go on with")
    a, others = p.parse_known_args()  # the others are options of ttsnap bench, as --height 768 or --offload model
    packaged = MODELS.get(a.model)
    if a.reward is None and packaged is None:
        p.error(f"--reward: by what are images of {a.model} to be chosen? For example imagereward")
    draft = a.draft or (EMBEDDED if a.model == EMBEDDED else None)
    arms = [*PLAIN, *([DRAFTED] if draft not in (None, NONE) else [])]
    a.out.mkdir(parents=True, exist_ok=True)
    report = a.report or (packaged.report if packaged else "imagereward" if a.reward == "hpsv2.1" else "hpsv2.1")
    argv = ["bench", "--model", a.model, "--prompts-file", str(prompts_of(a)), "--algorithms", *arms]
    argv += [
        "--budget",
        a.budget or ("50nfe" if packaged else "20images"),
        "--draft",
        draft or NONE,
        "--sheets",
        "--out",
        str(a.out / "bench"),
        *others,
    ]
    argv += [*(["--report", report] if report else []), *(["--reward", a.reward] if a.reward else [])]
    print(f"ttsnap {shlex.join(argv)}")
    status = ttsnap(argv)
    if status == 0:
        write_page(a.out, a.model, arms)
        print(f"\nthe page: {a.out / 'showcase.md'}, with the pictures in {a.out}")
    return status


def prompts_of(a: argparse.Namespace) -> Path:
    """The file of prompts; for packaged models one of ten held-out captions, which is written."""
    packaged = MODELS.get(a.model)
    if a.prompts_file is not None or packaged is None:
        return a.prompts_file or PROMPTS
    file: Path = a.out / "prompts.txt"
    file.write_text("\n".join(packaged.world.sample_prompts(10, seed=15)) + "\n")
    return file


def write_page(out: Path, model: str, arms: Sequence[str]) -> None:
    """showcase.md and the winners, in JPEG, from the folder of the benchmark."""
    bench = out / "bench"
    rows = [json.loads(line) for line in (bench / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    settings = json.loads((bench / "bench.json").read_text(encoding="utf-8"))
    first = {(row["algorithm"], row["index"]): row for row in rows if row["repeat"] == 0}
    indices = sorted({index for _, index in first})
    (out / "winners").mkdir(exist_ok=True)
    lines = [
        f"# Test-time search on {model}",
        "",
        f"{len(indices)} prompts, each searched with a budget of {settings['budget']}. Searches chose by "
        f"**{settings['reward']}**; no search saw **{settings['report']}**. Nothing was picked: these are all prompts, "
        "from the first seeds on.",
        "",
        f"On {device()}; {', '.join(f'{name} {version}' for name, version in versions('torch', 'diffusers').items())}.",
        "",
        titled((bench / "summary.md").read_text(encoding="utf-8").strip()),
        "",
        "| prompt | " + " | ".join(TITLES[arm] for arm in arms) + " |",
        "|---" * (1 + len(arms)) + "|",
    ]
    for index in indices:
        cells = [cell(out, bench, first[arm, index]) for arm in arms]
        lines.append(f"| {first[arms[0], index]['prompt']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "A picture leads to the contact sheet of its search: what was scored at which step, dropped, finished.",
    ]
    (out / "showcase.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def titled(tables: str) -> str:
    """The tables of the benchmark, with the searches under the names that the page gives them."""
    for arm in sorted(TITLES, key=len, reverse=True):
        tables = re.sub(rf"^\| {re.escape(arm)} +\|", f"| {TITLES[arm]} |", tables, flags=re.M)
    return tables.replace(f"difference to {PLAIN[0]}", f"difference to {TITLES[PLAIN[0]]}")


def cell(out: Path, bench: Path, row: dict[str, Any]) -> str:
    """A winner with its scores and its cost, linked to its contact sheet."""
    source = bench / row["image"]
    small = out / "winners" / f"{row['image'].split('/')[0]}-{row['index']:02d}.jpg"
    with Image.open(source) as picture:
        scale = SIDE / max(picture.size)
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        size = (round(picture.width * scale), round(picture.height * scale))
        picture.convert("RGB").resize(size, how).save(small, quality=90)
    sheet = (source.parents[1] / f"sheet-{source.name}").relative_to(out).as_posix()
    scores = ", ".join(f"{name} {score:.3g}" for name, score in {**row["scores"], **row["metrics"]}.items())
    shown = f"[![]({small.relative_to(out).as_posix()})]({sheet})"
    return f"{shown}<br>{scores}<br>seed {row['seed']}, {row['spent']['nfe']:g} NFE"


def device() -> str:
    """The accelerator's name, or the processor's kind."""
    if not torch.accelerator.is_available():
        return f"a CPU ({platform.machine()})"
    where = torch.accelerator.current_accelerator()
    return torch.cuda.get_device_name() if where is not None and where.type == "cuda" else str(where)


if __name__ == "__main__":
    raise SystemExit(main())
