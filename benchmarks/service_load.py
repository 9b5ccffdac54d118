"""Rough use of `ttsnap serve` by the official openai client, on the embedded model: what
service_mix.py and service_soak.py share, and what the slow tests run.

`rough`: a third of the clients goes away at random moments, some send what is no request, some ask
for too much. service_soak.py does that for long, to a server in a process of its own.
"""

from __future__ import annotations

import copy
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import peft
import torch
from openai import OpenAI

from ttsnap.pipelines import load, recommended
from ttsnap.request.offer import ServingCatalog
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice
from ttsnap.service.limits import ServiceLimits
from ttsnap.service.server import GenerationServer

PROMPTS = (
    "two green crosses",
    "a red circle",
    "three blue squares",
    "a yellow triangle above a red square",
)
ASKED = {"search": "best-of-n", "budget": "12nfe", "steps": 4}


def server_of(limits: ServiceLimits) -> GenerationServer:
    """A server for the embedded model, on any free port."""
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    rewards = {"scenes": make_rewards("scenes")[0]}
    offer = ServingCatalog("embedded", tuple(rewards), recommended)
    return GenerationServer(
        OneDevice(pipe, rewards),
        offer,
        limits,
        address=("127.0.0.1", 0),
    )


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600)


def save_lora(pipe: Any, folder: Path, seed: int) -> None:
    """A random LoRA: the time that it takes does not depend on its weights."""
    net = copy.deepcopy(pipe.transformer)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, net, "made")
    layers = peft.get_peft_model_state_dict(net, adapter_name="made")
    type(pipe).save_lora_weights(folder, transformer_lora_layers=layers)


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def generate(client: OpenAI, number: int, **more: object) -> dict[str, Any]:
    """Request number so and so: which prompt and seed follows from it."""
    own = {**ASKED, "seed": 100 * number, **more}
    return client.images.generate(prompt=PROMPTS[number % len(PROMPTS)], extra_body=own).to_dict()


def rough(
    url: str, requests: int = 200, clients: int = 50, seed: int = 0, **more: object
) -> tuple[Counter[str], dict[int, Any]]:
    """So many requests, a third of which is left at a random moment, a tenth malformed, a tenth too
    large.

    more: fields of those that are well formed. Returns how often each outcome came, and the seed
    and reward of the images that came, by the number of the request.
    """
    rng, lock = random.Random(seed), threading.Lock()
    kinds = [
        rng.choices(("whole", "left", "malformed", "large"), (7, 5, 1.5, 1.5))[0]
        for _ in range(requests)
    ]
    patience = [rng.uniform(0.01, 2.0) for _ in range(requests)]
    outcomes: Counter[str] = Counter()
    found: dict[int, Any] = {}
    client = client_of(url)

    def whole(number: int) -> str:
        try:
            image = generate(client, number, **more)["data"][0]
        except openai.RateLimitError:
            return "too many"
        with lock:
            found[number] = (image["seed"], round(image["reward"], 4))
        return "done"

    def left(number: int) -> str:
        try:
            own = {"prompt": PROMPTS[number % 4], **ASKED, "budget": "120nfe", **more}
            httpx.post(f"{url}/v1/images/generations", json=own, timeout=patience[number])
        except httpx.TimeoutException:
            return "left"
        return "done before it was left"

    def refused(body: dict[str, Any]) -> str:
        reply = httpx.post(f"{url}/v1/images/generations", json=body, timeout=300)
        assert reply.json()["error"]["message"], reply.text
        return f"refused {reply.status_code}"

    ways: dict[str, Callable[[int], str]] = {
        "whole": whole,
        "left": left,
        "malformed": lambda number: refused({"prompt": 7}),
        "large": lambda number: refused({"prompt": PROMPTS[0], "budget": "9000nfe"}),
    }

    def one(number: int) -> None:
        outcome = ways[kinds[number]](number)
        with lock:
            outcomes[outcome] += 1

    with ThreadPoolExecutor(clients) as pool, client:
        list(pool.map(one, range(requests)))
    return outcomes, found
