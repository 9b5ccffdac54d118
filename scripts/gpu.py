"""What only a GPU can show, in one command: under nine minutes, offline, with the packages that are there.

    python scripts/gpu.py                         # or: make gpu
    python scripts/gpu.py --device cpu --tiny     # a rehearsal of the same code in small, where there is no GPU

It runs, in this order, each part with a time limit of its own:

tests      The tests that are marked `gpu` (tests/gpu). They need pytest; without it this part is skipped, and says so.
sdxl, flux SDXL and FLUX.1-dev at full size with random weights: the search loop against the stock call at 1, 4 and 16
           candidates (benchmarks/overhead.py). FLUX at 16 candidates takes a card of 80 GB.
batching   Many prompts at once against one at a time, on the embedded model (benchmarks/overhead.py).
quality    Images per second of seed pruning against best-of-N at equal quality (benchmarks/kept_quality.py).

OUT/gpu.json and OUT/gpu.md are written after every part, and a part that is cut off still leaves the figures that it
had by then. The exit status is 1 where a test or a part failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
LIMITS = {"tests": 150, "sdxl": 90, "flux": 150, "batching": 50, "quality": 80}
"""Seconds that each part may take: 520 in all."""
NAMED = ("cuda", "xpu")
"""Kinds of devices that have a name; ROCm's are called cuda, too."""


@dataclass(frozen=True)
class Options:
    """device: as torch names it; tiny: small networks and few runs, to try the script; out: a folder that exists."""

    device: str
    tiny: bool
    out: Path


# --- the parts ----------------------------------------------------------------------------------------------------


def tests(o: Options) -> list[str]:
    marked = "not gpu" if o.device == "cpu" else "gpu"
    return ["-m", "pytest", str(ROOT / "tests" / "gpu"), "-m", marked, "-v", "-p", "no:cacheprovider", "--tb=short"]


def full_size(family: str, o: Options) -> list[str]:
    size = ["--size", "tiny", "--candidates", "1", "2", "--steps", "2", "--repeats", "1"]
    if not o.tiny:
        size = ["--size", "full", "--candidates", "1", "4", "16", "--steps", "4", "--repeats", "2"]
    return [*benchmark("overhead", family, o), "--parts", "loop", "--families", family, *size]


def batching(o: Options) -> list[str]:
    size = ["--prompts", "2", "--seeds", "4", "--batching-steps", "4", "--batch-size", "4"] if o.tiny else []
    return [*benchmark("overhead", "batching", o), "--parts", "batching", *size]


def quality(o: Options) -> list[str]:
    size = ["--prompts", "3", "--steps", "4", "--budget", "20nfe", "--images", "3", "6", "--repeats", "1"]
    return [*benchmark("kept_quality", "quality", o), *(size if o.tiny else [])]


def benchmark(script: str, part: str, o: Options) -> list[str]:
    return [str(ROOT / "benchmarks" / f"{script}.py"), "--device", o.device, "--json", str(o.out / f"{part}.json")]


PARTS = {
    "tests": tests,
    "sdxl": lambda o: full_size("sdxl", o),
    "flux": lambda o: full_size("flux", o),
    "batching": batching,
    "quality": quality,
}


def run_part(name: str, o: Options) -> dict[str, Any]:
    """Run one part; its seconds, how it ended, and its figures as far as it got."""
    if name == "tests" and importlib.util.find_spec("pytest") is None:
        return {"seconds": 0.0, "ended": "skipped: pytest is not installed", "figures": None}
    begin, log = time.perf_counter(), o.out / f"{name}.log"
    status = launch(PARTS[name](o), log, LIMITS[name])
    ended = {None: f"cut off after {LIMITS[name]} s", 0: "done"}.get(status, f"failed with status {status}")
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "ended": ended}
    said = log.read_text(encoding="utf-8", errors="replace")
    figures = o.out / f"{name}.json"
    if name == "tests":
        found["figures"] = outcomes(said)
    else:
        found["figures"] = json.loads(figures.read_text()) if figures.is_file() else None
    if status != 0:
        found["said"] = said[-2000:]
    return found


def launch(command: list[str], log: Path, limit: float) -> int | None:
    """Run Python with these arguments, its output in `log`; the exit status, None where it was stopped at the limit."""
    with log.open("wb") as out:
        running = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **OFFLINE, **package()},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return running.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if running.poll() is None:  # also on Ctrl-C: the part and whatever it started
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def package() -> dict[str, str]:
    """The environment in which ttsnap can be imported: as it is where it is installed, else from the checkout."""
    if importlib.util.find_spec("ttsnap") is not None and importlib.util.find_spec("ttsnap.pipelines") is not None:
        return {}
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


def outcomes(said: str) -> dict[str, Any]:
    """How many tests passed, failed, were skipped, and which failed, from what `pytest -v` printed so far."""
    ends = dict(re.findall(r"^(tests/\S+(?: [^\n]*?)?) (PASSED|FAILED|ERROR|SKIPPED)\b", said, re.M))
    counts = {word.lower(): sum(end == word for end in ends.values()) for word in ("PASSED", "FAILED", "SKIPPED")}
    failed = sorted(name for name, end in ends.items() if end in ("FAILED", "ERROR"))
    return {**counts, "failed": len(failed), "names_of_failed": failed}


# --- the report ---------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """What the figures hold for."""
    place = torch.device(device)
    named = place.type in NAMED
    module = torch.get_device_module(place)
    found = {
        "card": module.get_device_name(place) if named else place.type,
        "memory_gib": module.get_device_properties(place).total_memory / 2**30 if named else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    for name in ("diffusers", "transformers", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as a page: what ran, and a table a part."""
    m, parts = found["machine"], found["parts"]
    memory = "" if m["memory_gib"] is None else f", {m['memory_gib']:.0f} GiB"
    versions = ", ".join(
        f"{name} {m[name]}" for name in ("torch", "cuda", "hip", "diffusers", "transformers") if m[name]
    )
    lines = [f"# {m['card']}{memory}", "", f"{versions}, Python {m['python']}.", ""]
    if found["tiny"]:
        lines += ["**A rehearsal with tiny networks: no figure here says anything about a real model.**", ""]
    lines += ["| part | ended | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {part['ended']} | {part['seconds']:.0f} |" for name, part in parts.items()]
    figures = {name: part["figures"] or {} for name, part in parts.items()}
    if figures.get("tests"):
        t = figures["tests"]
        lines += ["", f"Tests: {t['passed']} passed, {t['failed']} failed, {t['skipped']} skipped."]
        lines += [f"- failed: `{name}`" for name in t["names_of_failed"]]
    loop = [row for name in ("sdxl", "flux") for row in figures.get(name, {}).get("loop", ())]
    if loop:
        lines += ["", "| | candidates | stock s | ratio (min to max) | network | added | memory | differ |"]
        lines += ["|---|---|---|---|---|---|---|---|", *map(loop_row, loop)]
    rows = figures.get("batching", {}).get("batching", ())
    if rows:
        lines += ["", "| prompts | seconds | denoiser batch in use |", "|---|---|---|"]
        lines += [f"| {row['how']} | {row['seconds']:.2f} | {row['occupancy']:.0%} |" for row in rows]
    rows = figures.get("quality", {}).get("runs", ())
    if rows:
        lines += ["", "| search | images/s | reward | strictly right | NFE a prompt |", "|---|---|---|---|---|"]
        lines += [f"| {r['method']} | {r['images_per_second']:.2f} | {r['reward']:.4f} | {r['strictly_right']:.3f} | "
                  f"{r['nfe']:.0f} |" for r in rows]  # fmt: skip
        ratio = figures["quality"]["at_equal_quality"]["ratio"]
        faster = (
            f"At equal reward seed pruning makes {ratio:.2f} times the images per second of best-of-N." if ratio else ""
        )
        lines += ["", faster or "Best-of-N was not run at the reward of pruning."]
    return "\n".join([*lines, ""])


def loop_row(row: dict[str, Any]) -> str:
    if "candidates" not in row:
        return f"| {row['family']} | {row.get('failed', row.get('skipped'))} | | | | | | |"
    memory = f"{row['memory_ratio']:.3f}" if "memory_ratio" in row else ""
    return (
        f"| {row['family']} | {row['candidates']} | {row['stock_seconds']:.2f} | {row['ratio']:.3f} "
        f"({row['ratio_min']:.3f} to {row['ratio_max']:.3f}) | {row['network_share']:.1%} | {row['added']:+.2%} | "
        f"{memory} | {row['difference']:.1g} |"
    )


# --- the command --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="auto (the accelerator of this machine), cuda, cuda:1, xpu, cpu")
    p.add_argument("--tiny", action="store_true", help="small networks and few runs, to try the script")
    p.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    p.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder to write to (default: build/gpu)")
    a = p.parse_args(argv)
    device = a.device
    if device == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None:
            p.error("PyTorch finds no accelerator here; --device cpu --tiny rehearses the same code without one")
        device = str(found)
    if device == "cpu" and not a.tiny:
        p.error("full-size networks take hours on a CPU; add --tiny")
    a.out.mkdir(parents=True, exist_ok=True)
    o = Options(device, a.tiny, a.out.resolve())
    report: dict[str, Any] = {"machine": machine(device), "tiny": a.tiny, "parts": {}}
    for name in a.parts:
        (o.out / f"{name}.json").unlink(missing_ok=True)  # of an earlier run
        print(f"{name}: up to {LIMITS[name]} s, output in {o.out / name}.log", flush=True)
        report["parts"][name] = run_part(name, o)
        (o.out / "gpu.json").write_text(json.dumps(report, indent=1))
        (o.out / "gpu.md").write_text(markdown(report))
    print(f"\n{markdown(report)}\nwritten to {o.out / 'gpu.json'} and {o.out / 'gpu.md'}")
    return int(any(part["ended"].startswith("failed") for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
