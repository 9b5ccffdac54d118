"""Jobs of images: requests that are answered later, also by the next server."""

from __future__ import annotations

import json
import logging
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy
from openai import OpenAI
from openai.types import ImagesResponse

from tests.service.conftest import PROMPT, Slow, client_of, command, metric, one_device, serve, until
from ttsnap.cli.parser import Arguments
from ttsnap.cli.serve import store_of
from ttsnap.request.offer import ServingCatalog
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import Job, JobStore
from ttsnap.service.keys import Keys
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.monitoring import JsonLines
from ttsnap.service.server import GenerationServer

OWN = {"budget": "40nfe", "search": "best-of-n", "steps": 4, "seed": 3}
LONG = {**OWN, "budget": "2000nfe"}
ALICE, BOB = "a" * 20, "b" * 20
ADDRESS = "/v1/images/generations"


@contextmanager
def serving(
    engines: OneDevice,
    offer: ServingCatalog,
    folder: Path,
    limits: ServiceLimits | None = None,
    keys: Keys | None = None,
) -> Iterator[GenerationServer]:
    """A server over the jobs in a folder."""
    limits, offer = limits or ServiceLimits(drain=0.1), replace(offer, rewards=tuple(engines.rewards))
    with closing(JobStore(folder, limits)) as store, serve(engines, offer, limits, keys, store=store) as server:
        yield server


@pytest.fixture
def quick(pipe: Any) -> OneDevice:
    return one_device(pipe)


@pytest.fixture
def two_keys(tmp_path: Path) -> Keys:
    (tmp_path / "keys").write_text(f"alice {ALICE}\nbob {BOB}\n")
    return Keys.read(tmp_path / "keys")


def begun(client: OpenAI, **own: object) -> str:
    """The id of a new job."""
    reply = client.images.generate(prompt=PROMPT, extra_body={"background": True, **OWN, **own}).to_dict()
    assert reply["status"] == "queued"
    return str(reply["id"])


def asked(client: OpenAI, name: str) -> dict[str, Any]:
    reply: dict[str, Any] = client.get(f"/images/generations/{name}", cast_to=ImagesResponse).to_dict()
    return reply


def ended(client: OpenAI, name: str, seconds: float = 30.0) -> dict[str, Any]:
    """A job, once it has ended."""
    until(lambda: asked(client, name)["status"] in ("completed", "failed"), seconds)
    return asked(client, name)


def test_a_job_makes_what_a_request_makes(quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        told = ended(client, begun(client, n=2))
        assert (told["status"], told["progress"], told["error"]) == ("completed", 100, None)
        at_once = client.images.generate(prompt=PROMPT, n=2, extra_body=OWN).to_dict()
        for name in ("data", "size", "quality", "output_format", "background"):
            assert told[name] == at_once[name], name
        assert told["usage"]["nfe"] == at_once["usage"]["nfe"]  # type: ignore[index]
        content = httpx.get(f"{server.url}{ADDRESS}/{told['id']}/content", params={"rank": 2})
        assert content.headers["content-type"] == "image/png"
        assert content.content[:4] == b"\x89PNG"
        assert httpx.get(f"{server.url}{ADDRESS}/{told['id']}/content", params={"rank": 3}).status_code == 404
        assert metric(server, 'ttsnap_jobs{status="completed"}') == 1
        assert metric(server, "ttsnap_job_bytes") > 0


def test_the_end_of_a_job_is_a_line_without_its_prompt(
    quick: OneDevice, offer: ServingCatalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ttsnap"), serving(quick, offer, tmp_path) as server:
        name = ended(client_of(server), begun(client_of(server)))["id"]
        until(lambda: "JOB" in caplog.text)
    (record,) = [record for record in caplog.records if record.getMessage().startswith("JOB")]
    assert re.fullmatch(rf"JOB {name} completed \d+\.\d{{3}} s key=anybody nfe=40", record.getMessage())
    told = json.loads(JsonLines().format(record))
    assert (told["method"], told["path"], told["status"], told["nfe"]) == ("JOB", name, "completed", 40)
    assert PROMPT not in caplog.text


@pytest.mark.parametrize("name", ["img_0", "..%2F..%2Fkeys", "%00", "%ff", "%ED%A0%80", "a" * 3000])
def test_ids_are_no_paths(server_of_jobs: GenerationServer, name: str) -> None:
    for path in (f"{ADDRESS}/{name}", f"{ADDRESS}/{name}/content", f"{ADDRESS}?after={name}"):
        reply = httpx.get(server_of_jobs.url + path)
        assert reply.status_code in (400, 404), path
        assert reply.json()["error"]["message"]


def test_jobs_are_their_callers_alone(quick: OneDevice, offer: ServingCatalog, tmp_path: Path, two_keys: Keys) -> None:
    with serving(quick, offer, tmp_path, None, two_keys) as server:
        alice, bob = client_of(server, ALICE), client_of(server, BOB)
        name = str(ended(alice, begun(alice))["id"])
        headers = {"Authorization": f"Bearer {BOB}"}
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            reply = httpx.request(method, f"{server.url}{ADDRESS}/{name}{path}", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), (method, path)
            assert httpx.request(method, f"{server.url}{ADDRESS}/{name}{path}").status_code == 401
        assert httpx.get(server.url + ADDRESS, headers=headers).json()["data"] == []
        after = httpx.get(server.url + ADDRESS, headers=headers, params={"after": name})
        assert (after.status_code, after.json()["error"]["param"]) == (400, "after")
        with pytest.raises(openai.NotFoundError):
            asked(bob, name)
        assert httpx.get(f"{server.url}/v1/images/edits/{name}", headers=headers).status_code == 404
        assert asked(alice, name)["status"] == "completed"


def test_an_orderly_end_queues_jobs_again(pipe: Any, quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    slow, names = Slow(pipe), list[str]()
    with serving(slow, offer, tmp_path, ServiceLimits(drain=0.1, jobs=1)) as server, closing(client_of(server)) as one:
        names += [begun(one, budget="400nfe"), begun(one)]
        until(lambda: asked(one, names[0])["progress"] > 0)
        server.__exit__()
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as other:
        told = [ended(other, name) for name in names]
        assert [each["status"] for each in told] == ["completed"] * 2
        assert [each["usage"]["nfe"] for each in told] == [400, 40], "the whole budget, from the beginning"
        assert not any("stopped early" in " ".join(each["warnings"]) for each in told)
        at_once = other.images.generate(prompt=PROMPT, extra_body={**OWN, "budget": "400nfe"}).to_dict()
        assert told[0]["data"] == at_once["data"]


def test_jobs_survive_sigkill(tmp_path: Path) -> None:
    own: dict[str, Any] = {"budget": "300nfe", "seed": None, "steps": 10}
    given = "embedded", "--state", str(tmp_path / "state")
    with command(*given) as (process, url), closing(OpenAI(base_url=f"{url}/v1", api_key="none")) as client:
        names = [begun(client, **own), begun(client), begun(client, **own)]
        until(lambda: all(asked(client, name)["progress"] > 0 for name in (names[0], names[2])), 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (database,) = (tmp_path / "state").glob("*.sqlite")
    with closing(sqlite3.connect(database)) as rows:
        kept = rows.execute("select status, attempts, body from ttsnap_jobs order by number").fetchall()
    assert [kept[i][:2] for i in (0, 2)] == [("in_progress", 1)] * 2
    assert all(re.search(r'"seed": \d+', body) for *_, body in kept), "what was drawn is kept"
    with command(*given) as (process, url), closing(OpenAI(base_url=f"{url}/v1", api_key="none")) as client:
        told = [ended(client, name, 120) for name in names]
        assert [each["status"] for each in told] == ["completed"] * 3
        assert [each["usage"]["nfe"] for each in told] == [300, 40, 300]
        assert len({each["data"][0]["seed"] for each in told}) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_job_is_not_begun_for_ever(quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    limits = ServiceLimits()
    with closing(JobStore(tmp_path, limits)) as store:
        job = store.add("anybody", "image_generation", "embedded", {"fields": {"prompt": PROMPT}, "ignored": []}, {})
    for _ in range(3):
        with closing(JobStore(tmp_path, limits)) as store:
            assert [each.id for each in store.waiting("embedded", {"anybody"})] == [job.id]
            assert store.begin(job)
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        told = asked(client, job.id)
        assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
        assert "the server ended 3 times while this job ran" in told["error"]["message"]


def test_the_end_of_a_server_counts_against_the_job_that_runs_alone(
    pipe: Any, quick: OneDevice, offer: ServingCatalog, tmp_path: Path
) -> None:
    body = {"fields": {"prompt": PROMPT, **OWN}, "ignored": []}
    with closing(JobStore(tmp_path, ServiceLimits())) as store:
        jobs = [store.add("anybody", "image_generation", "embedded", body, {}) for _ in range(4)]
        assert all(map(store.begin, jobs[:3])), "and the server ends"
    slow = Slow(pipe)
    slow.left = 1
    with serving(slow, offer, tmp_path) as server, closing(client_of(server)) as client:
        until(lambda: slow.left < 0)
        states = [asked(client, job.id)["status"] for job in jobs]
        assert states == ["in_progress", "queued", "queued", "queued"]
        slow.go.set()
        assert all(ended(client, job.id)["status"] == "completed" for job in jobs)


class FullDisk:
    """A folder whose database writes nothing while there are more bytes of files than `room`."""

    def __init__(self, folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def execute(connection: sqlalchemy.Connection, statement: Any, *more: Any, **others: Any) -> Any:
            here = str(folder) in str(connection.engine.url)  # and not of a server beside it
            full = here and sum(path.stat().st_size for path in folder.glob("jobs/*/*")) > room
            if full and not isinstance(statement, sqlalchemy.Select):
                raise sqlalchemy.exc.OperationalError("delete", {}, OSError("database or disk is full"))
            return before(connection, statement, *more, **others)

        before = sqlalchemy.Connection.execute
        monkeypatch.setattr(sqlalchemy.Connection, "execute", execute)


def stored(store: JobStore, size: int) -> Job:
    """A job that is done, with a file of so many bytes."""
    job = store.add("anybody", "image_generation", "embedded", {"fields": {"prompt": PROMPT}, "ignored": []}, {})
    (store.files(job) / "1.png").write_bytes(b"0" * size)
    store.begin(job)
    store.end(job, "completed", {})
    return job


def test_a_full_disk_is_emptied_by_what_expires_and_by_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(JobStore(tmp_path, ServiceLimits(job_hours=1e-9))) as store:
        jobs = [stored(store, 1000) for _ in range(2)]
        FullDisk(tmp_path, 1500, monkeypatch)
        with pytest.raises(RequestError, match="cannot be stored"):
            store.begin(jobs[1])
        store.delete(jobs[0])
        (store.files(jobs[1]) / "2.png").write_bytes(b"0" * 1000)
        store.sweep()
        assert store.counts()["completed"] == 0
        store.limits = ServiceLimits()
        kept = stored(store, 800)
        (tmp_path / "jobs" / jobs[0].id).mkdir()
        (tmp_path / "jobs" / jobs[0].id / "1.png").write_bytes(b"0" * 1000)
    with closing(JobStore(tmp_path, ServiceLimits())) as store:  # it begins by removing what is no job's
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == [kept.id]


def test_a_full_disk_is_told_of_once_a_minute(
    quick: OneDevice,
    offer: ServingCatalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.02)
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        name = ended(client, begun(client))["id"]
        with monkeypatch.context() as patch:
            FullDisk(tmp_path, 0, patch)
            server._server.jobs._wake.set()
            time.sleep(0.5)
            for _ in range(3):
                with pytest.raises(openai.APIStatusError, match="cannot be stored"):
                    begun(client)
            assert sum(record.levelname == "ERROR" for record in caplog.records) == 1
            assert "disk is full" in caplog.text
            assert httpx.delete(f"{server.url}{ADDRESS}/{name}").status_code == 200


def test_all_callers_together_keep_no_more_than_the_operator_allows(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path, ServiceLimits(state_mib=1))) as store:
        first = stored(store, 2**20)
        with pytest.raises(RequestError, match="cannot be stored") as error:
            store.add("bob", "image_generation", "embedded", {"fields": {}, "ignored": []}, {})
        assert (error.value.status, error.value.retry_after) == (503, 10)
        store.delete(first)
        store.add("bob", "image_generation", "embedded", {"fields": {}, "ignored": []}, {})


def test_deleting_a_job_ends_its_search(pipe: Any, offer: ServingCatalog, tmp_path: Path) -> None:
    slow = Slow(pipe)
    with serving(slow, offer, tmp_path) as server, closing(client_of(server)) as client:
        name = begun(client, **LONG)
        until(lambda: asked(client, name)["progress"] > 0)
        preview = httpx.get(f"{server.url}{ADDRESS}/{name}/content", params={"variant": "thumbnail"})
        early = httpx.get(f"{server.url}{ADDRESS}/{name}/content")
        assert (preview.status_code, preview.content[8:12]) == (200, b"WEBP")
        assert (early.status_code, early.json()["error"]["code"]) == (404, "not_ready")
        reply = httpx.delete(f"{server.url}{ADDRESS}/{name}").json()
        assert reply == {"id": name, "object": "image.generation.deleted", "deleted": True}
        until(lambda: metric(server, "ttsnap_active") == 0)
        spent = metric(server, "ttsnap_nfe_total")
        assert spent < 2000, "what was not spent is not"
        with pytest.raises(openai.NotFoundError):
            asked(client, name)
        assert not list((tmp_path / "jobs").iterdir())
        assert metric(server, 'ttsnap_requests_total{outcome="cancelled"}') == 1
        assert ended(client, begun(client))["status"] == "completed"


@pytest.mark.parametrize(
    ("own", "param"),
    [
        ({"reward": "none"}, "reward"),
        ({"stream": True}, "background"),
        ({"colour": "red"}, "colour"),
        ({"prompt": "three pink elephants"}, "prompt"),
    ],
)
def test_what_is_wrong_is_refused_and_not_stored(
    server_of_jobs: GenerationServer, own: dict[str, Any], param: str
) -> None:
    body = {"prompt": PROMPT, "background": True, **OWN, **own}
    reply = httpx.post(server_of_jobs.url + ADDRESS, json=body, timeout=30)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert httpx.get(server_of_jobs.url + ADDRESS).json()["data"] == []


@pytest.fixture(scope="module")
def server_of_jobs(
    pipe: Any, offer: ServingCatalog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GenerationServer]:
    with serving(one_device(pipe), offer, tmp_path_factory.mktemp("jobs")) as server:
        yield server


def test_what_the_model_refuses_fails_the_job(quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        for own, param in (({"size": "17x33"}, None), ({"budget": "3nfe"}, "budget")):
            told = ended(client, begun(client, **own))
            assert (told["status"], told["error"]["param"]) == ("failed", param)
            assert told["error"]["code"] == "invalid_value"


def test_a_job_is_taken_at_once_whatever_the_model_is_busy_with(
    pipe: Any, offer: ServingCatalog, tmp_path: Path
) -> None:
    slow = Slow(pipe)
    slow.left = 1  # then a batch hangs
    with serving(slow, offer, tmp_path) as server, closing(client_of(server)) as client:
        first = begun(client)
        until(lambda: slow.left < 0)
        begin = time.monotonic()
        begun(client, size="16x16")
        took = time.monotonic() - begin
        slow.go.set()
        assert took < 2.5
        assert ended(client, first)["status"] == "completed"


def test_a_requirement_is_kept_with_the_job(quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        met, missed = (ended(client, begun(client, require=f"brightness>{bound}")) for bound in (0.01, 0.99))
        assert met["status"] == "completed"
        assert (missed["status"], missed["error"]["code"]) == ("failed", "requirement_not_met")


def test_limits_of_a_caller(pipe: Any, offer: ServingCatalog, tmp_path: Path, two_keys: Keys) -> None:
    limits = ServiceLimits(drain=0.1, jobs=1, jobs_per_key=2, job_mib=1)
    with serving(Slow(pipe), offer, tmp_path, limits, two_keys) as server:
        alice, bob = client_of(server, ALICE), client_of(server, BOB)
        first, second = begun(alice, **LONG), begun(alice)
        with pytest.raises(openai.RateLimitError, match="2 jobs") as error:
            begun(alice)
        assert (error.value.code, error.value.response.headers["retry-after"]) == ("too_many_jobs", "30")
        third = begun(bob)
        alice.delete(f"/images/generations/{first}", cast_to=object)
        assert ended(bob, third)["status"] == ended(alice, second)["status"] == "completed"
        (tmp_path / "jobs" / second / "large").write_bytes(b"0" * 2**20)
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as rows:
            rows.execute("update ttsnap_jobs set bytes = 1048576 where id = ?", (second,))
            rows.commit()
        with pytest.raises(openai.RateLimitError, match="delete some") as error:
            begun(alice)
        assert error.value.code == "quota_exceeded"
        assert ended(bob, begun(bob))["status"] == "completed"
        alice.delete(f"/images/generations/{second}", cast_to=object)
        assert ended(alice, begun(alice))["status"] == "completed"


def test_callers_with_fewer_jobs_come_first(pipe: Any, offer: ServingCatalog, tmp_path: Path, two_keys: Keys) -> None:
    limits = ServiceLimits(drain=0.1, jobs=2)
    with serving(Slow(pipe), offer, tmp_path, limits, two_keys) as server:
        alice, bob = client_of(server, ALICE), client_of(server, BOB)
        names = [begun(alice, **LONG) for _ in range(3)]
        theirs = begun(bob, **LONG)
        alice.delete(f"/images/generations/{names[0]}", cast_to=object)
        until(lambda: asked(bob, theirs)["status"] == "in_progress")
        assert [asked(alice, name)["status"] for name in names[1:]] == ["in_progress", "queued"]


def test_what_jobs_made_expires(
    quick: OneDevice, offer: ServingCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(quick, offer, tmp_path, ServiceLimits(drain=0.1, job_hours=1)) as server:
        client = client_of(server)
        told = ended(client, begun(client))
        assert told["expires_at"] - told["completed_at"] == 3600
        later = time.time() + 3601
        monkeypatch.setattr(time, "time", lambda: later)
        with pytest.raises(openai.NotFoundError, match="expired"):
            asked(client, told["id"])
    with closing(JobStore(tmp_path, ServiceLimits())) as store:
        store.sweep()
        assert store.counts() == {"queued": 0, "in_progress": 0, "completed": 0, "failed": 0, "bytes": 0}
    assert not list((tmp_path / "jobs").iterdir())


def test_a_job_waits_for_its_model_and_its_key(
    quick: OneDevice, offer: ServingCatalog, tmp_path: Path, two_keys: Keys
) -> None:
    body = {"fields": {"prompt": PROMPT, **OWN, "model": "embedded"}, "ignored": ["user"]}
    with closing(JobStore(tmp_path, ServiceLimits())) as store:
        job = store.add("alice", "image_generation", "embedded", body, {})
    for served, keys in ((replace(offer, model="another"), two_keys), (offer, None)):
        with serving(quick, served, tmp_path, None, keys):
            time.sleep(0.5)
    with serving(quick, offer, tmp_path, None, two_keys) as server:
        told = ended(client_of(server, ALICE), job.id)
        assert told["status"] == "completed"
        assert told["warnings"] == ["not used here: user"]


def test_a_row_that_was_changed_fails_alone(quick: OneDevice, offer: ServingCatalog, tmp_path: Path) -> None:
    with closing(JobStore(tmp_path, ServiceLimits())) as store:
        fields = {"prompt": PROMPT, "reward": "mine.py:score"}
        bodies: list[dict[str, Any]] = [{"fields": fields, "ignored": []}, {"fields": {"code": "x"}, "ignored": []}]
        names = [store.add("anybody", "image_generation", "embedded", body, {}).id for body in bodies]
    with serving(quick, offer, tmp_path) as server, closing(client_of(server)) as client:
        until(lambda: metric(server, 'ttsnap_jobs{status="failed"}') == 2)
        assert [asked(client, name)["error"]["param"] for name in names] == ["reward", "code"]
        assert ended(client, begun(client))["status"] == "completed"


def test_a_database_that_does_not_answer_loses_no_job(
    pipe: Any, offer: ServingCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(pipe)
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.1)
    with serving(slow, offer, tmp_path) as server, closing(client_of(server)) as client:
        name = begun(client, budget="200nfe")
        until(lambda: asked(client, name)["progress"] > 0)

        def gone(engine: sqlalchemy.Engine) -> None:
            raise sqlalchemy.exc.OperationalError("insert", {"body": PROMPT}, OSError(f"no {tmp_path}"))

        with monkeypatch.context() as patch:
            patch.setattr(sqlalchemy.Engine, "begin", gone)
            until(lambda: metric(server, "ttsnap_active") == 0, 60)
            for method in ("GET", "POST"):
                body = {"prompt": PROMPT, "background": True, **OWN}
                reply = httpx.request(method, server.url + ADDRESS, json=body)
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "storage_failed")
                assert str(tmp_path) not in reply.text
        assert ended(client, name)["usage"]["nfe"] == 200
        assert len(list((tmp_path / "jobs").iterdir())) == 1


def test_errors_of_the_database_are_logged_without_prompts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(JobStore(tmp_path, ServiceLimits())) as store:
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as rows:
            rows.execute("drop table ttsnap_jobs")
        with pytest.raises(RequestError) as error:
            store._insert(
                Job("img_1", "alice", "image_generation", "m", "queued", 0, None, None, {"a": PROMPT}, None), {}
            )
    assert (error.value.status, error.value.retry_after) == (503, 10)
    assert "no such table" in caplog.text
    assert PROMPT not in caplog.text


def test_a_folder_is_one_servers(tmp_path: Path) -> None:
    with closing(JobStore(tmp_path, ServiceLimits())), pytest.raises(ValueError, match="another process"):
        JobStore(tmp_path, ServiceLimits())
    with pytest.raises(ValueError, match="--database"):
        JobStore(tmp_path, ServiceLimits(), "nothing://here")


def test_where_jobs_are_kept_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, limits = {"state": None, "database": None}, ServiceLimits()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with store_of(Arguments(**given, port=8000), limits):
        pass
    folder = tmp_path / "ttsnap" / "serve-8000"
    assert (folder / "jobs.sqlite").exists()
    assert folder.stat().st_mode & 0o077 == 0, "prompts are there"
    with store_of(Arguments(**given, port=0), limits):
        pass
    assert [path.name for path in (tmp_path / "ttsnap").iterdir()] == ["serve-8000"]
    (mine := tmp_path / "mine").mkdir(mode=0o755)
    with store_of(Arguments(state=str(mine), database=None, port=0), limits):
        assert mine.stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    for state in (None, str(tmp_path / "file" / "here")):
        there = Arguments(state=state, database=None, port=8000)
        with pytest.raises(ValueError, match="cannot be written"), store_of(there, limits):
            pass


def test_servers_that_share_a_database_have_jobs_of_their_own(tmp_path: Path) -> None:
    address, body = f"sqlite:///{tmp_path / 'shared.sqlite'}", {"fields": {"prompt": PROMPT}, "ignored": []}
    with (
        closing(JobStore(tmp_path / "one", ServiceLimits(), address)) as one,
        closing(JobStore(tmp_path / "other", ServiceLimits(), address)) as other,
    ):
        job = one.add("anybody", "video", "wan", body, {})
        assert one.get("anybody", "video", job.id) == job
        assert other.waiting("wan", {"anybody"}) == []
        with pytest.raises(RequestError, match="no video"):
            other.get("anybody", "video", job.id)
