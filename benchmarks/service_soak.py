"""A `ttsnap serve` that is treated roughly for long: its memory, and what is lost or mixed up, also
by SIGKILL.

    python benchmarks/service_soak.py --minutes 480     # a night
    python benchmarks/service_soak.py --minutes 30 --clients 12

A third of the requests is left at a random moment; some are malformed or too large; some are jobs
(`background`). Every image is held against what its request gave alone at the beginning: another
seed, reward or prompt is `mixed`. An answer that does not come, an error of status 500 and a job
that is not there or failed are `lost`. Guidance and LoRAs change more often than engines are kept,
so that these come and go. In the first two thirds of the time the server is left alone, for its
memory by minutes and requests. In the last third it is killed by SIGKILL a few times with jobs
under way, and started again on the same folder.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
from openai import OpenAI
from PIL import Image
from service_load import ASKED, PROMPTS, client_of, metric, save_lora

from ttsnap.pipelines import load

KINDS = {"whole": 0.45, "left": 0.33, "job": 0.1, "malformed": 0.06, "large": 0.06}
GUIDANCE = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
LORAS: tuple[dict[str, Any], ...] = ({}, {"lora": "a"}, {}, {"lora": {"name": "b", "scale": 0.5}})
"""More configurations than the service keeps ready."""
LONG = "240nfe"
"""The budget of jobs that a kill interrupts."""
WAIT = 600.0
"""Seconds for an answer, after which it is lost."""


def request_of(number: int) -> dict[str, Any]:
    """One of a few dozen requests, which come over and over."""
    guidance = GUIDANCE[number % len(GUIDANCE)]
    own = {**ASKED, "seed": 100 * number, "guidance_scale": guidance, "n": 1 + number % 2}
    own |= LORAS[number // len(PROMPTS) % len(LORAS)]
    return {"prompt": PROMPTS[number % len(PROMPTS)], **own}


def found_in(reply: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What each image of a reply is: its seed, its reward, and the prompt that is written in it."""
    found = []
    for image in reply["data"]:
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as picture:
            prompt = json.loads(picture.info["ttsnap"])["prompt"]
        found.append((image["seed"], round(image["reward"], 3), prompt))
    return found


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    """Floating point differs in the last digits between batches."""
    return len(one) == len(other) and all(
        a[0] == b[0] and a[2] == b[2] and abs(a[1] - b[1]) < 0.005
        for a, b in zip(one, other, strict=True)
    )


class Server:
    """`ttsnap serve embedded` on one port and folder, started again and again."""

    def __init__(self, state: str) -> None:
        self.state, self.loras = state, Path(state) / "loras"
        for seed, name in enumerate("ab"):
            save_lora(load(), self.loras / name, seed)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.killed: list[tuple[float, float]] = []
        """From when to when it was not there."""
        self.down = False

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "ttsnap",
            "serve",
            "embedded",
            "--port",
            str(self.port),
            "--state",
            self.state,
            "--loras",
            str(self.loras),
            "--per-key",
            "100",
            "--jobs-per-key",
            "50",
            "--no-access-log",
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        if not any(
            re.search(r"at http://\S+/v1", line) for line in iter(self.process.stdout.readline, "")
        ):
            raise RuntimeError("the service did not start; see above")

    def kill(self) -> None:
        """By SIGKILL, and start it again."""
        begin, self.down = time.monotonic(), True
        self.process.kill()
        self.process.wait()
        self.start()
        self.killed.append((begin, time.monotonic()))
        self.down = False

    def cut(self, begin: float) -> bool:
        """Whether it was killed since."""
        return self.down or any(end > begin for _, end in self.killed)


@dataclass
class Soak:
    """One run."""

    server: Server
    alone: list[list[tuple[Any, ...]]] = field(default_factory=list)
    """What each request gave at the beginning."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    """Numbers of the requests of jobs, by their ids."""
    memory: list[tuple[float, int, int, float]] = field(default_factory=list)
    """Minutes, kills so far, requests that have ended, MiB of resident memory."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, wrong: str = "") -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            if wrong:
                self.wrong.append(f"{outcome}: {wrong}")
                print(self.wrong[-1], file=sys.stderr, flush=True)

    def check(self, kind: str, number: int, reply: dict[str, Any]) -> None:
        found = found_in(reply)
        good = same(found, self.alone[number])
        self.note(
            f"{kind} done" if good else "mixed",
            "" if good else f"{number}: {found} for {self.alone[number]}",
        )

    def client(self, seed: int) -> None:
        """One caller after the other, until it is over."""
        rng, client = random.Random(seed), client_of(self.server.url)
        with client:
            while not self.over.is_set():
                kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
                begin = time.monotonic()
                try:
                    self.one(kind, rng.randrange(len(self.alone)), rng.uniform(0.01, 3.0), client)
                except openai.RateLimitError:
                    self.note("too many")
                    time.sleep(rng.uniform(0.5, 2))
                except (httpx.HTTPError, openai.APIError, AssertionError) as error:
                    if self.server.cut(begin):
                        self.note("cut off by SIGKILL")
                        time.sleep(1)
                    else:
                        self.note("lost", f"{kind}: {type(error).__name__}: {error}")

    def one(self, kind: str, number: int, patience: float, client: OpenAI) -> None:
        own, url = request_of(number), f"{self.server.url}/v1/images/generations"
        if kind == "whole":
            reply = client.images.generate(
                prompt=own.pop("prompt"), n=own.pop("n"), extra_body=own, timeout=WAIT
            )
            self.check("request", number, reply.to_dict())
        elif kind == "job":
            job = begun(client, own)
            with self.lock:
                self.jobs[job] = number
        elif kind == "left":
            try:
                httpx.post(
                    url,
                    json={**own, "budget": "120nfe"},
                    timeout=httpx.Timeout(WAIT, read=patience),
                )
                self.note("done before it was left")
            except httpx.ReadTimeout:
                self.note("left")
        else:
            body = {"prompt": 7} if kind == "malformed" else {**own, "budget": "9000nfe"}
            reply = httpx.post(url, json=body, timeout=WAIT)
            assert reply.status_code == 400, f"{reply.status_code} {reply.text[:200]}"
            assert reply.json()["error"]["message"]
            self.note("refused")

    def watch(self, begin: float) -> None:
        """Read the server's memory until it is over, with a line of a table each minute."""
        print("minute  kills  requests     MiB")
        while not self.over.wait(10.0):
            if self.server.down:
                continue
            try:
                mib = psutil.Process(self.server.process.pid).memory_info().rss / 2**20
            except psutil.Error:
                continue
            requests = self.outcomes.total() + len(self.jobs) - self.outcomes["cut off by SIGKILL"]
            self.memory.append(
                ((time.monotonic() - begin) / 60, len(self.server.killed), requests, mib)
            )
            if len(self.memory) % 6 == 0:
                print("{:6.1f}  {:5}  {:8}  {:6.1f}".format(*self.memory[-1]), flush=True)

    def kill(self, number: int) -> str:
        """Kill the server while jobs are under way. Returns the id of one that was."""
        with client_of(self.server.url) as client:
            job = begun(client, {**request_of(number), "budget": LONG})
            end = time.monotonic() + WAIT
            while status_of(client, job)["status"] == "queued" and time.monotonic() < end:
                time.sleep(0.1)
        self.server.kill()
        return job

    def end_of_jobs(self) -> None:
        """Every job ends, with what its request gave alone."""
        with client_of(self.server.url) as client:
            for job, number in self.jobs.items():
                told = ended(client, job)
                if told["status"] == "completed":
                    self.check("job", number, told)
                else:
                    self.note("lost", f"job {job}: {told.get('error')}")


def begun(client: OpenAI, own: dict[str, Any]) -> str:
    """The id of a new job."""
    own = dict(own)
    reply = client.images.generate(
        prompt=own.pop("prompt"), n=own.pop("n"), extra_body={**own, "background": True}
    )
    return str(reply.to_dict()["id"])


def status_of(client: OpenAI, job: str) -> dict[str, Any]:
    return dict(
        httpx.get(f"{client.base_url}images/generations/{job}", timeout=WAIT)
        .raise_for_status()
        .json()
    )


def ended(client: OpenAI, job: str) -> dict[str, Any]:
    end = time.monotonic() + WAIT
    while (told := status_of(client, job))["status"] in (
        "queued",
        "in_progress",
    ) and time.monotonic() < end:
        time.sleep(0.5)
    return told


def soak(minutes: float, clients: int, kills: int, different: int) -> tuple[Soak, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as state:
        server = Server(state)
        server.start()
        run = Soak(server)
        try:
            with client_of(server.url) as client:
                for own in map(request_of, range(different)):
                    reply = client.images.generate(
                        prompt=own.pop("prompt"), n=own.pop("n"), extra_body=own
                    )
                    run.alone.append(found_in(reply.to_dict()))
            begin, interrupted = time.monotonic(), dict[str, int]()
            watching = threading.Thread(target=run.watch, args=(begin,))
            watching.start()
            with ThreadPoolExecutor(clients) as pool:
                working = [pool.submit(run.client, seed) for seed in range(clients)]
                for number in range(kills):
                    until = begin + 60 * minutes * (2 / 3 + number / (3 * kills))
                    time.sleep(max(0.0, until - time.monotonic()))
                    interrupted[run.kill(number)] = number
                time.sleep(max(0.0, begin + 60 * minutes - time.monotonic()))
                run.over.set()
                for work in working:
                    work.result()
            watching.join()
            run.end_of_jobs()
            with client_of(server.url) as client:
                for job, number in interrupted.items():
                    own, told = {**request_of(number), "budget": LONG}, ended(client, job)
                    again = client.images.generate(
                        prompt=own.pop("prompt"), n=own.pop("n"), extra_body=own
                    ).to_dict()
                    good = told["status"] == "completed" and same(found_in(told), found_in(again))
                    run.note(
                        "interrupted job done" if good else "lost",
                        "" if good else f"job {job}: {told['status']}",
                    )
            left = {name: metric(server.url, f"ttsnap_{name}") for name in ("active", "queue")}
        finally:
            server.process.terminate()
            server.process.wait()
    return run, {
        "minutes": minutes,
        "clients": clients,
        "kills": len(server.killed),
        "still there": left,
    }


def told(run: Soak) -> list[str]:
    """Lines for people."""
    outcomes, lines, alone = run.outcomes, [], np.array([row for row in run.memory if row[1] == 0])
    for half, rows in zip(("first", "second"), np.array_split(alone, 2), strict=True):
        if len(rows) > 3:
            requests, mib = rows[:, 2:].T
            (slope, _), cov = np.polyfit(requests / 1000, mib, 1, cov=True)
            lines.append(
                f"{half} half before the first kill, {np.ptp(requests):.0f} requests:"
                f" {mib.mean():.1f} MiB"
            )
            lines[-1] += f", {slope:+.1f} ± {cov[0, 0] ** 0.5:.1f} MiB in 1,000 requests"
    lines.append(", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    return [*lines, f"{outcomes['lost']} lost, {outcomes['mixed']} mixed of {outcomes.total()}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--different", type=int, default=24, help="requests")
    a = parser.parse_args()
    run, about = soak(a.minutes, a.clients, a.kills, a.different)
    print("\n".join(told(run)))
    print(about)
    sys.exit(bool(run.wrong or any(about["still there"].values())))


if __name__ == "__main__":
    main()
