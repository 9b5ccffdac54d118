"""Service: what `ttsnap serve` answers to several clients at once, and whether its images are those of one alone."""

from __future__ import annotations

import base64
import itertools
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from ttsnap.check.ladder import Figure, Rung, in_short
from ttsnap.check.parity import CLOSE, compared, differs
from ttsnap.core.prompt import Prompt
from ttsnap.files.reading import parse_json, picture_pixels

CLIENTS = (1, 4, 16)
REQUESTS, EACH = 8, 4
"""Requests of one client alone, which all others make as well; and of each of several clients, where time allows."""
ASKED = {"search": "best-of-n", "budget": "2images", "n": 1}
"""What a request says beside its prompt and seed: of its two images one comes back."""


@dataclass
class Service:
    """A service at its address, with or without /v1, and what it answered."""

    url: str
    seconds: float
    """For all that is asked; a round of requests more may be under way then."""
    say: Callable[[str], None] = print
    images: dict[int, dict[int, Any]] = field(default_factory=dict)
    """(3, H, W) by how many clients there were, and by request."""
    prompts: Sequence[Prompt] = ()

    def open(self) -> httpx.Client:
        """A connection with the environment's TTSNAP_API_KEY, as the service takes it."""
        key, url = os.environ.get("TTSNAP_API_KEY"), self.url.rstrip("/").removesuffix("/v1")
        return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=3600)

    def model(self) -> str:
        """The name of the model that it serves. ValueError where nothing like a service answers."""
        try:
            with self.open() as client:
                return in_short(str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"]))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no service answers at {self.url}: {error}; start one by ttsnap serve MODEL") from None

    def check(self, prompts: Sequence[Prompt]) -> Rung:
        """The same requests by one client, by 4 and by 16 at a time."""
        rung, begin, self.prompts = Rung("service"), time.monotonic(), prompts
        with self.open() as client:
            self._ask(client, 0)  # the engine is made
            for part, clients in enumerate(CLIENTS, 1):
                self.say(f"asking as {clients} client{'s' * (clients > 1)}")
                self._load(rung, client, clients, begin + part / len(CLIENTS) * self.seconds)
        alone = self.images[1]
        for clients in CLIENTS[1:] if {0, 1} <= alone.keys() else ():
            pairs = [differs(alone[n], made) for n, made in self.images[clients].items() if n in alone]
            if pairs:
                share = compared(
                    rung, f"one alone against the same among {clients}", pairs, differs(alone[0], alone[1])
                )
                rung.holds = share <= CLOSE and rung.holds is not False
        rung.done, rung.seconds = True, time.monotonic() - begin
        return rung

    def _load(self, rung: Rung, client: httpx.Client, clients: int, end: float) -> None:
        """Requests by so many clients, each of whom asks when it has its answer, and stops at an error."""
        numbers, seconds, found = itertools.count(), list[float](), self.images.setdefault(clients, {})
        most, at = max(REQUESTS, EACH * clients), f"of {clients} client{'s' * (clients > 1)}"

        def ask(_: int) -> None:
            while (number := next(numbers)) < most and (time.monotonic() < end or number < max(2, clients)):
                start = time.monotonic()
                made = self._ask(client, number)
                if isinstance(made, str):
                    rung.missing[f"a request {at}"] = made
                    return
                found[number] = made
                seconds.append(time.monotonic() - start)

        before, begin = self._places(client), time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))
        whole, (nfe, places) = time.monotonic() - begin, self._places(client) - before
        if seconds:
            rung.figures[f"latency {at}"] = Figure(float(np.median(seconds)), min(seconds), max(seconds), "s")
            rung.figures[f"images a second {at}"] = Figure(2 * len(seconds) / whole)
        fill = Figure(100 * nfe / places, unit="%") if places else None
        rung.note(f"batches filled {at}", fill, "its /metrics do not tell")

    def _ask(self, client: httpx.Client, number: int) -> Any:
        """The image of a request (3, H, W) in [0, 1], or the words of its error. Its number says prompt and seed."""
        own = {"prompt": self.prompts[number % len(self.prompts)].text, "seed": 100 * number, **ASKED}
        try:
            reply = client.post("/v1/images/generations", json=own)
            if reply.status_code != 200:
                return f"status {reply.status_code}: {in_short(reply.text[:200])}"
            made: Any = parse_json(reply.content, "its reply")
            pixels = picture_pixels(base64.b64decode(made["data"][0]["b64_json"]), "its reply")
        except httpx.HTTPError as error:
            return f"it did not answer: {in_short(error)}"
        except (LookupError, TypeError, ValueError) as error:
            return f"it answered with no image: {in_short(error)}"
        return pixels.transpose(2, 0, 1) / 255

    def _places(self, client: httpx.Client) -> Any:
        """Evaluations so far, and the places in batches for them; zeros where it does not tell."""
        with suppress(httpx.HTTPError, ValueError):
            text = client.get("/metrics").text
            names = ("ttsnap_nfe_total", "ttsnap_batch_places_total")
            return np.array([float((re.findall(rf"^{name} (\S+)$", text, re.M) or [0])[0]) for name in names])
        return np.zeros(2)
