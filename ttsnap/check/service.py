"""Service: what `ttsnap serve` answers to several clients at once, and whether its images are those of one alone."""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ttsnap.check.ladder import Figure, Rung
from ttsnap.check.parity import CLOSE, in_255ths, words
from ttsnap.core.prompt import Prompt

CLIENTS = (1, 4, 16)
REQUESTS, EACH = 8, 4
"""Requests of one client alone, which all others make as well; and of each of several clients, where time allows."""
ASKED = {"search": "best-of-n", "budget": "2images", "n": 1}
"""What a request says beside its prompt and seed: of its two images one comes back."""


@dataclass
class Service:
    """A service at its address, and what it answered."""

    url: str
    seconds: float
    """For all that is asked."""
    say: Callable[[str], None] = print
    images: dict[int, dict[int, Any]] = field(default_factory=dict)
    """(H, W, 3) by how many clients there were, and by request."""
    refused: dict[str, str] = field(default_factory=dict)
    """The last error, by how many clients there were."""
    prompts: Sequence[Prompt] = ()

    def open(self) -> httpx.Client:
        """A connection with the environment's TTSNAP_API_KEY, as the service takes it."""
        key = os.environ.get("TTSNAP_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=3600, limits=httpx.Limits(max_connections=99))

    def model(self) -> str:
        """The name of the model that it serves. ValueError where nothing like a service answers."""
        try:
            with self.open() as client:
                return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no service answers at {self.url}: {error}; start one by ttsnap serve MODEL") from None

    def check(self, prompts: Sequence[Prompt]) -> Rung:
        """The same requests by one client, by 4 and by 16 at a time."""
        rung, begin, self.prompts = Rung("service"), time.monotonic(), prompts
        end = begin + self.seconds
        with self.open() as client:
            self._ask(client, 0)  # the engine is made
            for left, clients in zip((3, 2, 1), CLIENTS, strict=True):
                self.say(f"asking as {clients} client{'s' * (clients > 1)}")
                self._load(rung, client, clients, time.monotonic() + (end - time.monotonic()) / left)
        self._compare(rung)
        rung.done, rung.seconds = True, time.monotonic() - begin
        return rung

    def _ask(self, client: httpx.Client, number: int) -> Any:
        """The image of a request (H, W, 3), or the words of its error. Prompt and seed follow from its number."""
        own = {"prompt": self.prompts[number % len(self.prompts)].text, "seed": 100 * number, **ASKED}
        reply = client.post("/v1/images/generations", json=own)
        if reply.status_code != 200:
            return f"status {reply.status_code}: {reply.text[:200]}"
        with Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][0]["b64_json"]))) as image:
            return np.asarray(image.convert("RGB"))

    def _load(self, rung: Rung, client: httpx.Client, clients: int, end: float) -> None:
        """Requests by so many clients, each of whom asks when it has its answer."""
        numbers, lock = itertools.count(), threading.Lock()
        most, found, seconds = max(REQUESTS, EACH * clients), self.images.setdefault(clients, {}), list[float]()
        at, before, begin = f"of {clients} client{'s' * (clients > 1)}", self._places(client), time.monotonic()

        def ask() -> None:
            while (number := next(numbers)) < most and (time.monotonic() < end or number < max(2, clients)):
                start = time.monotonic()
                made = self._ask(client, number)
                with lock:
                    if isinstance(made, str):
                        self.refused[at] = made
                        return
                    found[number] = made
                    seconds.append(time.monotonic() - start)

        with ThreadPoolExecutor(clients) as pool:
            for waited in [pool.submit(ask) for _ in range(clients)]:
                waited.result()
        whole, after = time.monotonic() - begin, self._places(client)
        if at in self.refused:
            rung.missing[f"a request {at}"] = self.refused[at]
        if seconds:
            rung.figures[f"latency {at}"] = Figure(float(np.median(seconds)), min(seconds), max(seconds), "s")
            rung.figures[f"images a second {at}"] = Figure(2 * len(seconds) / whole)
        nfe, places = (b - a for a, b in zip(before, after, strict=True))
        fill = Figure(100 * nfe / places, unit="%") if places else None
        rung.note(f"batches filled {at}", fill, "its /metrics do not tell")

    def _places(self, client: httpx.Client) -> tuple[float, float]:
        """Evaluations so far, and the places in batches for them."""
        text = client.get("/metrics").text
        found = [
            re.search(rf"^{name} (\S+)$", text, re.M) for name in ("ttsnap_nfe_total", "ttsnap_batch_places_total")
        ]
        nfe, places = (float(each[1]) if each else 0.0 for each in found)
        return nfe, places

    def _compare(self, rung: Rung) -> None:
        """Images of one client alone against the same ones among others."""
        alone = self.images[1]
        if len(alone) < 2:
            return
        other = float(in_255ths(np.abs(alone[0].astype(int) - alone[1])).value)
        worst = 0.0
        for clients in CLIENTS[1:]:
            pairs = [np.abs(alone[n].astype(int) - made) for n, made in self.images[clients].items() if n in alone]
            if pairs:
                most = max(pairs, key=lambda pair: float(pair.mean()))
                title, share = f"one alone against the same among {clients}", float(most.mean()) / max(other, 1e-9)
                rung.figures[title], worst = in_255ths(most), max(worst, share)
                rung.said.append(f"{title}: {words(int(most.max()), share)}")
                rung.holds = worst <= CLOSE
