"""Service: what `ttsnap serve` answers to several clients at once, and whether its images are those
of one alone."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import httpx
import numpy as np

from ttsnap.check.ladder import Figure, Rung, in_short
from ttsnap.check.parity import CLOSE, compared, differs
from ttsnap.core.prompt import Prompt
from ttsnap.files.reading import parse_json, picture_pixels
from ttsnap.reward_models.http import finished, read_key, read_proxies, read_reply

CLIENTS = (1, 4, 16)
REQUESTS, EACH = 8, 4
"""Requests of one client alone, which all others make as well; and of each of several clients,
where time allows."""
BRANCHING, FIRST = "svdd", 1000
"""The search of requests from this number on, which goes on from the best children of a step."""
ASKED = {"search": "best-of-n", "budget": "2images", "n": 1}
"""What a request says beside its prompt and seed: of its two images one comes back."""
PIXELS, REPLY_BYTES = 2**23, 2**25
"""Most pixels of an image (3840 x 2160 and more), and bytes of a reply, which noise of that
takes."""
PATIENCE = 60.0
"""Seconds that a request may take at least, from connecting to the last byte of its reply."""


@dataclass
class Service:
    """A service at its address, with or without /v1, and what it answered."""

    url: str
    seconds: float
    """For all that is asked, and for one request; a round of requests more may be under way
    then."""
    say: Callable[[str], None] = print
    images: dict[int, dict[int, Any]] = field(default_factory=dict)
    """(H, W, 3) uint8 by how many clients there were, and by request."""
    prompts: Sequence[Prompt] = ()
    decoding: Lock = field(default_factory=Lock)
    """Held while a reply is decoded, which takes several times its size."""

    @contextmanager
    def open(self) -> Iterator[httpx.AsyncClient]:
        """Connections with the environment's TTSNAP_API_KEY, as the service takes it."""
        key, url = read_key("TTSNAP_API_KEY"), self.url.rstrip("/").removesuffix("/v1")
        headers = {"accept-encoding": "identity"}  # what is compressed would have no bound
        if key:
            headers["authorization"] = f"Bearer {key}"
        with read_proxies():
            client = httpx.AsyncClient(base_url=url, headers=headers, timeout=None)
        try:
            yield client
        finally:
            finished(client.aclose())

    def model(self) -> str:
        """The name of the model that it serves. ValueError where nothing like a service answers."""
        try:
            with self.open() as client:
                status, text = _reply(client, "/v1/models", PATIENCE)
            if status != 200:
                raise ValueError(f"status {status}")
            made: Any = parse_json(text, "its reply")
            return in_short(str(made["data"][0]["id"]))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            what = f"no service answers at {self.url}: {in_short(error)}"
            raise ValueError(f"{what}; start one by ttsnap serve MODEL") from None

    def _compare_branched(self, rung: Rung, other: Any) -> None:
        """Images of a search that branches, alone and among others: told, as rounding may flip its
        choices."""
        name, asked = f"branching:{BRANCHING}:{EACH}", range(FIRST, FIRST + EACH)
        with self.open() as client, ThreadPoolExecutor(EACH) as pool:
            alone = [self._ask(client, number) for number in asked]
            among = list(pool.map(lambda number: self._ask(client, number), asked))
        errors = [made for made in (*alone, *among) if isinstance(made, str)]
        if errors:
            rung.missing[name] = errors[0]
        else:
            compared(rung, name, list(map(differs, alone, among)), other)

    def check(self, prompts: Sequence[Prompt]) -> Rung:
        """The same requests by one client, by 4 and by 16 at a time."""
        rung, begin, self.prompts = Rung("service"), time.monotonic(), prompts
        with self.open() as client:
            first = self._ask(client, 0)  # the engine is made
            if isinstance(first, str):
                rung.missing["request"] = first
            for part, clients in enumerate(() if rung.missing else CLIENTS, 1):
                self.say(f"asking as {clients} client{'s' * (clients > 1)}")
                self._load(rung, client, clients, begin + part / len(CLIENTS) * self.seconds)
        alone = self.images.get(1, {})
        for clients in CLIENTS[1:] if {0, 1} <= alone.keys() else ():
            pairs = [
                differs(alone[n], made) for n, made in self.images[clients].items() if n in alone
            ]
            if pairs:
                other = differs(alone[0], alone[1])
                share = compared(rung, f"among:{clients}", pairs, other)
                rung.holds = share <= CLOSE and rung.holds is not False
        if {0, 1} <= alone.keys():
            self._compare_branched(rung, differs(alone[0], alone[1]))
        rung.done, rung.seconds = True, time.monotonic() - begin
        return rung

    def _load(self, rung: Rung, client: httpx.AsyncClient, clients: int, end: float) -> None:
        """Requests by so many clients, each of whom asks when it has its answer, and stops at an
        error."""
        numbers, seconds = itertools.count(), list[float]()
        found = self.images.setdefault(clients, {})
        most = max(REQUESTS, EACH * clients)

        def ask(_: int) -> None:
            while (number := next(numbers)) < most and (
                time.monotonic() < end or number < max(2, clients)
            ):
                start = time.monotonic()
                made = self._ask(client, number)
                if isinstance(made, str):
                    rung.missing[f"request-of:{clients}"] = made
                    return
                if number < REQUESTS:  # others are made by nobody alone
                    found[number] = made
                seconds.append(time.monotonic() - start)

        before, begin = self._places(client), time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))
        whole, after = time.monotonic() - begin, self._places(client)
        nfe, places = (now - then for now, then in zip(after, before, strict=True))
        if seconds:
            latency = Figure(float(np.median(seconds)), min(seconds), max(seconds), "s")
            rung.figures[f"latency:{clients}"] = latency
            rung.figures[f"rate:{clients}"] = Figure(2 * len(seconds) / whole)
        fill = Figure(100 * nfe / places, unit="%") if places > 0 else None
        rung.note(f"fill:{clients}", fill, "its /metrics do not tell")

    def _ask(self, client: httpx.AsyncClient, number: int) -> Any:
        """The image (H, W, 3) uint8 of a request, or the words of its error.

        Its number says prompt and seed.
        """
        own = {
            "prompt": self.prompts[number % len(self.prompts)].text,
            "seed": 100 * number,
            **ASKED,
        }
        if number >= FIRST:
            own["search"] = BRANCHING
        try:
            patience = max(self.seconds, PATIENCE)
            status, text = _reply(client, "/v1/images/generations", patience, own)
            if status != 200:
                return f"status {status}: {in_short(text[:200].decode(errors='replace'))}"
            with self.decoding:
                made: Any = parse_json(text, "its reply")
                image = base64.b64decode(made["data"][0]["b64_json"])
                return picture_pixels(image, "its reply", most=PIXELS)
        except httpx.HTTPError as error:
            return f"it did not answer: {in_short(error)}"
        except (LookupError, TypeError, ValueError) as error:
            return f"it answered with no image: {in_short(error)}"

    def _places(self, client: httpx.AsyncClient) -> list[float]:
        """Evaluations so far, and the places in batches for them; zeros where it does not tell."""
        with suppress(httpx.HTTPError, ValueError):
            _, text = _reply(client, "/metrics", PATIENCE)
            names = (b"ttsnap_nfe_total", b"ttsnap_batch_places_total")
            found = [re.search(rb"^%s (\S+)$" % name, text, re.M) for name in names]
            return [float(line[1]) if line else 0.0 for line in found]
        return [0.0, 0.0]


def _reply(
    client: httpx.AsyncClient, path: str, seconds: float, own: Mapping[str, Any] | None = None
) -> tuple[int, bytes]:
    """Status and body of the reply, to a GET without `own`.

    httpx.HTTPError where it is not whole within `seconds`, ValueError for more than REPLY_BYTES.
    """
    asked = client.stream("GET" if own is None else "POST", path, json=own)
    try:
        return finished(asyncio.wait_for(read_reply(asked, REPLY_BYTES), seconds))
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole reply within {seconds:g} s") from None
