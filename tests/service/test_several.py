"""Several servers over one database of PostgreSQL and one folder: what one is asked all answer, and
none of the jobs of one that is killed is lost or made twice."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.on_ray import ray_runs
from tests.service.asking import IMAGES, PROMPT, Caller, best, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BODIES = [
    {
        "prompt": PROMPT,
        "seed": seed,
        "steps": 4,
        "budget": "120nfe",
        "search": "best-of-n",
        "background": True,
    }
    for seed in range(6)
]
KEYS = {name: name * 20 for name in "abc"}
JOBS, KILLS = 60, 6


def programs():
    """The folder of PostgreSQL's own programs, which Debian keeps out of the path."""
    there = [Path(path).parent for path in [shutil.which("initdb")] if path]
    there += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return there[-1] if there else None


@pytest.fixture
def database():
    """The address of an empty database, in a server of its own."""
    pytest.importorskip("psycopg")
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed")
    # PostgreSQL does not run as root, and others cannot enter the folders of pytest.
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="ttsnap-postgres-"))
    if user:
        shutil.chown(folder, "nobody")
    data = folder / "data"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = [where / "initdb", "-D", data, "-U", "jobs", "-A", "trust", "--no-sync"]
    subprocess.run(begin, check=True, capture_output=True, cwd=folder, **user)  # type: ignore[call-overload]
    words = [where / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stderr=log, stdout=log, cwd=folder, **user)  # type: ignore[call-overload]
    try:
        until(lambda: "ready to accept" in (folder / "log").read_text(), 60)
        yield f"postgresql+psycopg://jobs@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Process:
    """`ttsnap serve` at a port that stays the same, whose lines on stderr are kept."""

    def __init__(self, folder, name, database):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{name}.log"
        self.words = [sys.executable, "-m", "ttsnap", "serve", "embedded", "--port", str(port)]
        self.words += ["--rewards", "brightness", "--keys", str(folder / "keys")]
        self.words += ["--state", str(folder / "state"), "--database", database]
        self.begin()

    def begin(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=log)

    @property
    def ready(self):
        with suppress(httpx.TransportError):
            return Caller(self.url).get("/ready").status_code == 200
        return False

    def by(self, key):
        return Caller(self.url, key)


@contextmanager
def three(folder, database):
    lines = [f"{name} {key}\n" for name, key in KEYS.items()]
    (folder / "keys").write_text("".join(lines))
    servers = [Process(folder, str(i), database) for i in range(3)]
    try:
        until(lambda: all(server.ready for server in servers), 180)
        yield servers
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait(60)


def test_60_jobs_of_three_servers_that_are_killed_at_random(database, tmp_path):
    rng = random.Random(0)
    with three(tmp_path, database) as servers:
        jobs = []
        for i in range(JOBS):
            body = i % len(BODIES)
            key = KEYS["abc"[i // 20]]
            reply = servers[i % 3].by(key).send(**BODIES[body])
            assert reply.status_code == 200, reply.text
            jobs.append((body, key, f"{IMAGES}/{reply.json()['id']}"))

        def left():
            statuses = Counter()
            for server in servers:
                with suppress(httpx.TransportError):
                    for key in KEYS.values():
                        page = server.by(key).get(IMAGES, limit=100).json()["data"]
                        statuses.update(job["status"] for job in page)
                    return statuses["queued"] + statuses["in_progress"]
            return JOBS

        killed = 0
        for _ in range(KILLS):
            time.sleep(rng.uniform(1, 6))
            if not left():
                break
            server = rng.choice([each for each in servers if each.ready] or servers)
            server.process.kill()
            server.process.wait(60)
            killed += 1
            server.begin()
        assert killed >= 3, "the jobs were too small"
        until(lambda: all(server.ready for server in servers), 180)
        until(lambda: not left(), 300)

        found = {}
        for body, key, address in jobs:
            told = [server.by(key).job(address) for server in servers]
            assert told[0]["status"] == "completed", told[0]["error"]
            assert told[1] == told[0] == told[2], "any of them answers for any job"
            assert told[0]["usage"]["nfe"] == 120, "the whole budget, from the beginning"
            found.setdefault(body, set()).add(best(told[0]))
            files = {server.by(key).get(f"{address}/content").content for server in servers}
            assert len(files) == 1
        assert all(len(each) == 1 for each in found.values()), "the same result"
        lines = re.findall(r"JOB (\S+) completed", "".join(s.log.read_text() for s in servers))
        assert max(Counter(lines).values()) == 1, "none twice"
        assert len(lines) >= JOBS - killed
        assert {
            name
            for name in map(str, range(3))
            if "completed" in (tmp_path / f"{name}.log").read_text()
        } == {"0", "1", "2"}
        address = jobs[0][2]
        assert servers[0].by(KEYS["b"]).get(address).status_code == 404
        assert servers[2].by(KEYS["a"]).ask("DELETE", address).status_code == 200
        assert [server.by(KEYS["a"]).get(address).status_code for server in servers] == [404] * 3


def test_three_replicas_of_which_one_is_killed(database, tmp_path):
    pytest.importorskip("ray.serve")
    from ray import serve

    from ttsnap.cli.replicas import Replica, app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = f"embedded --device cpu --rewards brightness --state {tmp_path / 'state'}"
    options += f" --database {database}"
    with ray_runs(8):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            assert app({"options": options})
            three = serve.deployment(num_replicas=3)(serve.ingress()(Replica))
            serve.run(three.bind(shlex.split(options)), name="images", route_prefix="/")
            caller = Caller(f"http://127.0.0.1:{port}")
            bodies = [BODIES[i % 6] for i in range(20)]
            addresses = [f"{IMAGES}/{caller.send(**body).json()['id']}" for body in bodies]
            begun = {"in_progress", "completed"}
            until(lambda: any(caller.job(each)["status"] in begun for each in addresses), 60)
            lines = psutil.Process().children(recursive=True)
            named = [each for each in lines if "ServeReplica:images" in " ".join(each.cmdline())]
            assert len(named) == 3
            named[0].kill()

            def done(address):
                reply = caller.get(address)  # a proxy that has not noticed yet answers 500
                return reply.status_code == 200 and reply.json()["status"] == "completed"

            until(lambda: all(map(done, addresses)), 240)
            results = [best(caller.job(each)) for each in addresses]
            assert results[:6] == results[6:12] == results[12:18], "the same result"
        finally:
            serve.shutdown()
