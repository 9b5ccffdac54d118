"""How fifty clients who want different things share `ttsnap serve`, against one at a time: fill,
latency, fairness.

    python benchmarks/service_mix.py                              # nine kinds of requests by 50 official openai clients
    python benchmarks/service_mix.py --requests 50 --json mix.json
    python benchmarks/service_mix.py --burst                      # 50 clients at once where few places are free

Requests differ in size, steps, reward, LoRA and picture (KINDS). The same requests are made one at
a time, half of them before the crowd and half after it, so that a machine that is busy with other
work slows both alike. Slowdown is the latency of a request in the crowd by its latency alone.
Jain's index of fairness, of slowdowns, is 1 where all are slowed alike, and 1/50 where one is
slowed alone. Seconds are those of the processor in this process, where clients and the server run:
what else runs on the machine counts little. `--burst` counts how many clients get their image that
ask again twice, as by default.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
from openai import OpenAI
from PIL import Image
from service_load import PROMPTS, metric, save_lora

from ttsnap.files.writing import markdown
from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice, loras_in
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

CLIENTS = 50
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "4 steps": {"steps": 4},
    "10 steps": {"steps": 10},
    "another reward": {"reward": "brightness"},
    "another size": {"size": "32x16", "reward": "brightness"},
    "LoRA a": {"lora": "a"},
    "LoRA b": {"lora": {"name": "b", "scale": 0.5}},
    "edit": {"picture": (32, 32), "strength": 0.7},
    "edit of another size": {"picture": (24, 32), "strength": 0.7},
}


@dataclass(frozen=True)
class Answer:
    kind: str
    number: int
    seconds: float


def server_of(pipe: Any, loras: Path, limits: ServiceLimits) -> GenerationServer:
    """A server of images and edits by the embedded model, on any free port."""
    rewards = {name: make_rewards(name)[0] for name in ("scenes", "brightness")}
    engines = OneDevice(pipe, rewards, loras_in(loras))
    offered = engines.loras.offered
    offer = ServingCatalog("embedded", tuple(rewards), recommended, edits=True, loras=offered)
    return GenerationServer(engines, offer, limits, None, ("127.0.0.1", 0))


def ask(client: OpenAI, number: int) -> Answer:
    """Request number so and so: its kind, prompt and seed follow from that."""
    kind = list(KINDS)[number % len(KINDS)]
    own = {"steps": 6, "search": "best-of-n", "seed": 100 * number, **KINDS[kind]}
    own["budget"] = f"{3 * own['steps']}nfe"
    prompt, picture, begin = (
        PROMPTS[number % len(PROMPTS)],
        own.pop("picture", None),
        time.process_time(),
    )
    if picture is None:
        client.images.generate(prompt=prompt, extra_body=own)
    else:
        file = io.BytesIO()
        Image.effect_noise(picture, 80).convert("RGB").save(file, format="PNG")
        client.images.edit(image=("a.png", file.getvalue()), prompt=prompt, extra_body=own)
    return Answer(kind, number, time.process_time() - begin)


def made(url: str, clients: Sequence[Sequence[int]]) -> tuple[list[list[Answer]], float, float]:
    """Requests by number, of each client one after the other: the answers of each, batch fill, and
    seconds in all."""
    nfe, places, begin = (
        metric(url, "ttsnap_nfe_total"),
        metric(url, "ttsnap_batch_places_total"),
        time.process_time(),
    )

    def one(numbers: Sequence[int]) -> list[Answer]:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600) as client:
            return [ask(client, number) for number in numbers]

    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(one, clients))
    seconds = time.process_time() - begin
    used = metric(url, "ttsnap_nfe_total") - nfe, metric(url, "ttsnap_batch_places_total") - places
    return answers, used[0] / used[1], seconds


def mixed(url: str, requests: int) -> dict[str, Any]:
    """The figures of one run."""
    made(url, [range(len(KINDS))])  # engines and LoRAs are there
    numbers = range(requests)
    before = made(url, [numbers[::2]])
    crowd = made(url, [numbers[i::CLIENTS] for i in range(min(CLIENTS, requests))])
    after = made(url, [numbers[1::2]])
    alone = {each.number: each.seconds for each in (*before[0][0], *after[0][0])}
    together = list(itertools.chain.from_iterable(crowd[0]))
    slowdowns = {each.number: each.seconds / alone[each.number] for each in together}
    rows = {}
    for kind in (*KINDS, "all"):
        mine = [each for each in together if kind in (each.kind, "all")]
        latencies = np.percentile([each.seconds for each in mine], [50, 90, 99])
        slow = np.percentile([slowdowns[each.number] for each in mine], [50, 99])
        rows[kind] = {
            "requests": len(mine),
            "alone": float(np.median([alone[each.number] for each in mine])),
            **dict(zip(("p50", "p90", "p99"), latencies, strict=True)),
            **dict(zip(("slowdown", "slowdown_p99"), slow, strict=True)),
        }
    each = np.array(list(slowdowns.values()))
    return {
        "kinds": rows,
        "fill": {"alone": (before[1] + after[1]) / 2, "crowd": crowd[1]},
        "requests_per_second": {
            "alone": requests / (before[2] + after[2]),
            "crowd": requests / crowd[2],
        },
        "jain": float(each.sum() ** 2 / (len(each) * (each**2).sum())),
        "load": os.getloadavg()[0],
    }


def burst(serve: Callable[[ServiceLimits], GenerationServer]) -> dict[str, float]:
    """How many of 50 clients get their image who all come at once, where 4 searches run and 4
    wait."""
    with serve(ServiceLimits(active=4, queue=4, per_key=100)) as server:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            for _ in range(3):
                ask(client, 0)

            def one(_: int, client: OpenAI = client) -> bool:
                try:
                    ask(client, 0)
                except openai.RateLimitError:
                    return False
                return True

            begin = time.monotonic()
            with ThreadPoolExecutor(CLIENTS) as pool:
                answered = sum(pool.map(one, range(CLIENTS)))
            seconds = time.monotonic() - begin
        refused = metric(server.url, 'ttsnap_requests_total{outcome="refused"}')
    return {"answered": answered, "refusals": refused, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", type=int, default=180, help="of the crowd; and as many one at a time"
    )
    parser.add_argument("--burst", action="store_true")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipe = load(task="image-to-image")
        pipe.set_progress_bar_config(disable=True)
        for seed, name in enumerate("ab"):
            save_lora(pipe, Path(folder) / name, seed)
        if a.burst:
            found: dict[str, Any] = burst(lambda limits: server_of(pipe, Path(folder), limits))
            print(markdown(list(found), [list(found.values())]))
        else:
            with server_of(
                pipe, Path(folder), ServiceLimits(per_key=100, queue=100, active=64)
            ) as server:
                found = mixed(server.url, a.requests)
            rows = [
                [
                    kind,
                    row["requests"],
                    *(f"{row[name]:.2f}" for name in ("alone", "p50", "p90", "p99")),
                    *(f"{row[name]:.1f}" for name in ("slowdown", "slowdown_p99")),
                ]
                for kind, row in found["kinds"].items()
            ]
            columns = [
                "kind",
                "requests",
                "alone s",
                "p50 s",
                "p90 s",
                "p99 s",
                "slowdown",
                "its p99",
            ]
            print(markdown(columns, rows))
            for name in ("fill", "requests_per_second"):
                one, many = found[name]["alone"], found[name]["crowd"]
                print(
                    f"{name}: {one:.3g} one at a time, {many:.3g} by {CLIENTS} clients"
                    f" ({many / one:.2f} times)"
                )
            print(
                f"Jain's index of slowdowns: {found['jain']:.3f}; load of the machine:"
                f" {found['load']:.1f}"
            )
    if a.json is not None:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
