"""Jobs of images: requests that are answered later, also by the next server."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy
from diffusers import WanPipeline
from sqlalchemy.exc import OperationalError

from tests.pipelines.modular import tiny_videos
from tests.service.asking import (
    IMAGES,
    LARGE,
    PROMPT,
    SMALL,
    VIDEOS,
    Caller,
    refusal,
    shown,
    until,
)
from tests.service.conftest import ALICE, BOB, CALL, command, with_jobs
from ttsnap.cli.parser import Arguments
from ttsnap.cli.serve import store_of
from ttsnap.core.utility import product
from ttsnap.reward_models.checklist.questions import questions
from ttsnap.reward_models.registry import make_rewards
from ttsnap.service.engines import OneDevice
from ttsnap.service.job_store import LEASE, TABLE, JobStore, _engine
from ttsnap.service.limits import RequestError, ServiceLimits
from ttsnap.service.monitoring import JsonLines
from ttsnap.service.server import offer_of

NO_RANKS = (0, 3, "x", "0000000019", "9" * 5000)
LISTED = {"looks": "checklist", "brightness": "brightness"}
"""Rewards by the names that clients use, a checklist among them."""


def store_in(folder, *database, **limits):
    return closing(JobStore(folder, ServiceLimits(**limits), *database))


def added(store, owner="anybody", ignored=(), **fields):
    body = {"fields": {"prompt": PROMPT, **fields}, "ignored": list(ignored)}
    return store.add(owner, "image_generation", "embedded", body, {})


def stored(store, size, job=None):
    """A job that is done, with a file of so many bytes."""
    job = job or added(store)
    (store.files(job) / "1.png").write_bytes(b"0" * size)
    assert taken(store, job.owner) == job.id
    store.end(job, "completed", {})
    return job


def taken(store, *owners):
    """The id of the job that is begun."""
    job = store.take("embedded", owners or {"anybody"}, alone=True)
    return None if job is None else job.id


def test_a_job_makes_what_a_request_makes_and_ends_with_a_line(jobs, caplog):
    with caplog.at_level(logging.INFO, "ttsnap"):
        address = jobs.begun(n=2)
        told = jobs.ended(address)
        until(lambda: f"JOB {told['id']}" in caplog.text)
    assert (told["status"], told["progress"], told["error"]) == ("completed", 100, None)
    at_once = jobs.made(n=2)
    for name in ("data", "size", "quality", "output_format", "background"):
        assert told[name] == at_once[name], name
    assert told["usage"]["nfe"] == at_once["usage"]["nfe"] == 16
    content = jobs.get(f"{address}/content", rank=2)
    assert (content.headers["content-type"], content.content[:4]) == ("image/png", b"\x89PNG")
    assert [jobs.get(f"{address}/content", rank=rank).status_code for rank in NO_RANKS] == [
        404
    ] * len(NO_RANKS)
    assert jobs.metric('jobs{status="completed"}') >= 1
    assert jobs.metric("job_bytes") > 0
    (record,) = [record for record in caplog.records if f"JOB {told['id']}" in record.getMessage()]
    assert re.fullmatch(
        rf"JOB {told['id']} completed \d+\.\d{{3}} s key=anybody nfe=16", record.getMessage()
    )
    line = json.loads(JsonLines().format(record))
    assert (line["method"], line["path"], line["status"], line["nfe"]) == (
        "JOB",
        told["id"],
        "completed",
        16,
    )
    assert PROMPT not in caplog.text


@pytest.mark.parametrize("name", ["img_0", "..%2F..%2Fkeys", "%00", "%ff", "%ED%A0%80", "a" * 3000])
def test_ids_are_no_paths(jobs, name):
    for path in (f"{IMAGES}/{name}", f"{IMAGES}/{name}/content", f"{IMAGES}?after={name}"):
        assert refusal(jobs.ask("GET", path))[0] in (400, 404), path


@pytest.mark.parametrize(
    ("own", "param", "code"),
    [
        ({"size": "17x33"}, None, "invalid_value"),
        ({"budget": "3nfe"}, "budget", "invalid_value"),
        ({"require": "brightness>0.99"}, "require", "requirement_not_met"),
    ],
)
def test_what_the_model_or_a_requirement_refuses_fails_the_job(jobs, own, param, code):
    told = jobs.ended(jobs.begun(**own))
    assert (told["status"], told["error"]["param"], told["error"]["code"]) == (
        "failed",
        param,
        code,
    )
    assert "data" not in told
    assert jobs.ended(jobs.begun(require="brightness>0.01"))["status"] == "completed"


def test_a_job_that_is_refused_at_first_keeps_its_cap_in_seconds(slow, keeping, monkeypatch):
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.1)
    with keeping(slow, ServiceLimits(drain=0.1, per_key=1)) as caller:
        with caller.running():
            address = caller.begun(**{**LARGE, "budget": "2000nfe,1s"})
            until(lambda: caller.job(address)["status"] == "in_progress")
            time.sleep(0.3)
        assert caller.ended(address, 20)["usage"]["nfe"] < 2000


def test_jobs_are_their_callers_alone(quick, keeping, two_keys):
    with keeping(quick, keys=two_keys) as anybody:
        alice, bob = anybody.by(ALICE), anybody.by(BOB)
        address = alice.begun()
        assert alice.ended(address)["status"] == "completed"
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert refusal(bob.ask(method, address + path)) == (404, "id", "not_found"), (
                method,
                path,
            )
            assert anybody.ask(method, address + path).status_code == 401
        assert bob.get(IMAGES).json()["data"] == []
        assert refusal(bob.get(IMAGES, after=address.rpartition("/")[2])) == (
            400,
            "after",
            "invalid_value",
        )
        assert alice.get(address.replace("generations", "edits")).status_code == 404
        assert alice.job(address)["status"] == "completed"


def test_an_orderly_end_queues_jobs_again(slow, quick, keeping):
    with keeping(slow, ServiceLimits(drain=0.1, jobs=1)) as one:
        names = [one.begun(budget="200nfe"), one.begun()]
        until(lambda: one.job(names[0])["progress"] > 0)
        one.__exit__()
    with keeping(quick) as other:
        told = [other.ended(name) for name in names]
        assert [each["status"] for each in told] == ["completed"] * 2
        assert [each["usage"]["nfe"] for each in told] == [200, 16], (
            "the whole budget, from the beginning"
        )
        assert not any("stopped early" in " ".join(each["warnings"]) for each in told)
        assert told[0]["data"] == other.made(budget="200nfe")["data"]


def test_jobs_survive_sigkill(tmp_path):
    """The whole command, of a model in a folder, with a database of its own address."""
    WanPipeline(**{**tiny_videos.wan().components, "transformer_2": None}).save_pretrained(
        tmp_path / "wan"
    )
    (tmp_path / "wan" / "ttsnap.json").write_text(json.dumps(CALL))
    given = [str(tmp_path / "wan"), "--rewards", "brightness", "--state", str(tmp_path / "state")]
    given += ["--database", f"sqlite:///{tmp_path / 'rows.sqlite'}"]
    own = {"budget": "60images", "seed": None}
    with command(*given) as (process, url):
        caller = Caller(url)
        names = [caller.begun(VIDEOS, **own), caller.begun(VIDEOS), caller.begun(VIDEOS, **own)]
        until(lambda: all(caller.job(name)["progress"] > 0 for name in (names[0], names[2])), 60)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as rows:
        kept = rows.execute(
            "select status, attempts, body from ttsnap_jobs order by number"
        ).fetchall()
    assert [kept[i][:2] for i in (0, 2)] == [("in_progress", 1)] * 2
    assert all(re.search(r'"seed": \d+', body) for *_, body in kept), "what was drawn is kept"
    with command(*given) as (process, url):
        told = [Caller(url).ended(name, 120) for name in names]
        assert Caller(url).get(f"{names[0]}/content").content[4:8] == b"ftyp"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert [(each["status"], each["usage"]["nfe"]) for each in told] == [
        ("completed", nfe) for nfe in (240, 16, 240)
    ]
    assert len({each["data"][0]["seed"] for each in told}) == 3
    assert str(tmp_path) not in json.dumps(told)


def test_a_job_is_not_begun_for_ever(tmp_path):
    with store_in(tmp_path) as store:
        job = added(store)
    for _ in range(3):
        with store_in(tmp_path) as store:
            store.beat({})
            assert taken(store) == job.id
    with store_in(tmp_path) as store:
        store.beat({})
        told = store.get("anybody", "image_generation", job.id)
        assert (told.status, (told.outcome or {})["code"]) == ("failed", "server_error")
        assert "ended 3 times" in (told.outcome or {})["message"]
        assert taken(store) is None


def test_the_end_of_a_server_counts_against_the_job_that_runs_alone(slow, keeping, tmp_path):
    with store_in(tmp_path) as store:
        jobs = [added(store, budget="16nfe", steps=4) for _ in range(4)]
        assert [taken(store) for _ in range(3)] == [job.id for job in jobs[:3]], "and it ends"
    names, slow.left = [f"{IMAGES}/{job.id}" for job in jobs], 1
    with keeping(slow) as caller:
        until(lambda: slow.left < 0)
        names.append(caller.begun(size="16x16"))  # at once, whatever the model is busy with
        assert [caller.job(name)["status"] for name in names] == ["in_progress", *["queued"] * 4]
        slow.go.set()
        assert all(caller.ended(name)["status"] == "completed" for name in names)


def test_a_full_disk_is_told_of_once_and_emptied_by_what_expires_and_by_callers(
    tmp_path, monkeypatch, caplog
):
    """Its database writes nothing while there are more bytes of files."""

    def execute(connection, statement, *more, **others):
        here = str(tmp_path) in str(connection.engine.url)  # and not of a server beside it
        full = here and sum(path.stat().st_size for path in tmp_path.glob("jobs/*/*")) > 1500
        if full and not isinstance(statement, sqlalchemy.Select):
            raise sqlalchemy.exc.OperationalError("delete", {}, OSError("database or disk is full"))
        return before(connection, statement, *more, **others)

    with store_in(tmp_path, job_hours=1e-9) as store:
        jobs = [stored(store, 1000) for _ in range(2)]
        before = sqlalchemy.Connection.execute
        monkeypatch.setattr(sqlalchemy.Connection, "execute", execute)
        for refused in (lambda: store.put_back(jobs[1]), lambda: added(store)):
            with pytest.raises(RequestError, match="cannot be stored"):
                refused()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "disk is full" in caplog.text
        store.delete(jobs[0])
        (store.files(jobs[1]) / "2.png").write_bytes(b"0" * 1000)
        store.sweep()
        assert store.counts() == {
            "queued": 0,
            "in_progress": 0,
            "completed": 0,
            "failed": 0,
            "bytes": 0,
        }
        store.limits = ServiceLimits()
        kept = stored(store, 800)
        orphan = tmp_path / "jobs" / jobs[0].id
        orphan.mkdir()
        (orphan / "1.png").write_bytes(b"0" * 1000)
        os.utime(orphan, (0, 0))
        store.sweep()
        assert [path.name for path in (tmp_path / "jobs").iterdir()] == [kept.id]


def test_a_job_is_gone_though_the_disk_is_too_full_to_forget_it(tmp_path, monkeypatch):
    def execute(connection, statement, *more, **others):
        if isinstance(statement, sqlalchemy.Delete):
            raise sqlalchemy.exc.OperationalError("delete", {}, OSError("disk is full"))
        return before(connection, statement, *more, **others)

    with store_in(tmp_path) as store:
        jobs = [stored(store, 10), added(store)]
        before = sqlalchemy.Connection.execute
        kept = added(store, "bob")
        with monkeypatch.context() as patch:
            patch.setattr(sqlalchemy.Connection, "execute", execute)
            for job in jobs:
                with pytest.raises(RequestError, match="cannot be stored"):
                    store.delete(job)
                with pytest.raises(RequestError, match="no job"):
                    store.get("anybody", job.kind, job.id)
            assert store.page("anybody", job.kind, None, 9, True) == ([], False)
        store.sweep()
        assert taken(store, "anybody", "bob") == kept.id
        assert taken(store, "anybody", "bob") is None
        assert store.counts()["completed"] == 0


def test_what_a_caller_and_all_of_them_may_keep(tmp_path):
    def refused(owner):
        with pytest.raises(RequestError) as error:
            added(store, owner)
        return error.value.status, error.value.code, error.value.retry_after

    with store_in(tmp_path, jobs_per_key=2, job_mib=1, state_mib=2) as store:
        jobs = [added(store, "alice") for _ in range(2)]
        assert refused("alice") == (429, "too_many_jobs", 30)
        theirs = added(store, "bob")
        for job in (jobs[0], theirs):
            stored(store, 2**20, job)
        assert refused("alice") == (429, "quota_exceeded", 60)
        assert refused("carol") == (503, "storage_failed", 10)
        store.delete(jobs[0])
        assert added(store, "alice").status == added(store, "carol").status == "queued"


def test_deleting_a_job_ends_its_search(slow, keeping, tmp_path):
    with keeping(slow) as caller:
        address = caller.begun(**LARGE)
        until(lambda: caller.job(address)["progress"] > 0)
        preview = caller.get(f"{address}/content", variant="thumbnail")
        assert (preview.status_code, preview.content[8:12]) == (200, b"WEBP")
        assert refusal(caller.get(f"{address}/content")) == (404, "id", "not_ready")
        assert caller.job(address)["completed_at"] is None
        name = address.rpartition("/")[2]
        reply = caller.ask("DELETE", address).json()
        assert reply == {"id": name, "object": "image.generation.deleted", "deleted": True}
        until(lambda: caller.metric("active") == 0)
        assert caller.metric("nfe_total") < 2000, "what was not spent is not"
        assert caller.get(address).status_code == 404
        assert not list((tmp_path / "jobs").iterdir())
        assert caller.metric('requests_total{outcome="cancelled"}') == 1
        assert caller.ended(caller.begun())["status"] == "completed"


def test_callers_with_fewer_jobs_come_first(slow, keeping, two_keys):
    with keeping(slow, ServiceLimits(drain=0.1, jobs=2), keys=two_keys) as anybody:
        alice, bob = anybody.by(ALICE), anybody.by(BOB)
        names = [alice.begun(**LARGE) for _ in range(3)]
        theirs = bob.begun(**LARGE)
        alice.ask("DELETE", names[0])
        until(lambda: bob.job(theirs)["status"] == "in_progress")
        assert [alice.job(name)["status"] for name in names[1:]] == ["in_progress", "queued"]


def test_what_jobs_made_expires(tmp_path, monkeypatch):
    with store_in(tmp_path, job_hours=1) as store:
        job, now = stored(store, 10), time.time()
        for later, known in ((now + 3590, [job.id]), (now + 3601, [])):
            monkeypatch.setattr(time, "time", lambda later=later: later)
            store.sweep()
            page, _ = store.page("anybody", job.kind, None, 10, True)
            assert (
                [each.id for each in page]
                == [path.name for path in (tmp_path / "jobs").iterdir()]
                == known
            )
        with pytest.raises(RequestError, match="expired"):
            store.get("anybody", job.kind, job.id)


def test_a_job_waits_for_its_model_and_its_key_and_fails_where_it_was_changed(
    quick, offer, keeping, tmp_path, two_keys
):
    with store_in(tmp_path) as store:
        rows = [
            {"reward": "mine.py:score"},
            {"code": "x"},
            {"budget": "16nfe", "steps": 4},
        ]
        names = [
            f"{IMAGES}/{added(store, 'alice', ('user',), model='embedded', **row).id}"
            for row in rows
        ]
    for served, keys in ((replace(offer, model="another"), two_keys), (offer, None)):
        with keeping(quick, offer=served, keys=keys):
            time.sleep(0.4)
    with keeping(quick, keys=two_keys) as caller:
        *wrong, told = [caller.by(ALICE).ended(name) for name in names]
        assert [each["error"]["param"] for each in wrong] == ["reward", "code"]
        assert (told["status"], told["warnings"]) == ("completed", ["not used here: user"])


def test_a_database_that_does_not_answer_loses_no_job(slow, keeping, tmp_path, monkeypatch):
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.1)
    with keeping(slow) as caller:
        address = caller.begun(budget="200nfe")
        until(lambda: caller.job(address)["progress"] > 0)

        def gone(engine):
            raise sqlalchemy.exc.OperationalError(
                "insert", {"body": PROMPT}, OSError(f"no {tmp_path}")
            )

        with monkeypatch.context() as patch:
            patch.setattr(sqlalchemy.Engine, "begin", gone)
            until(lambda: caller.metric("active") == 0, 60)
            for reply in (caller.get(IMAGES), caller.send(background=True)):
                assert refusal(reply) == (503, None, "storage_failed")
                assert str(tmp_path) not in reply.text
        assert caller.ended(address)["usage"]["nfe"] == 200
        assert len(list((tmp_path / "jobs").iterdir())) == 1


def test_a_database_that_hangs_holds_up_nobody(slow, keeping, tmp_path, monkeypatch):
    """As PostgreSQL does where it is stopped: nothing is refused, and nothing comes."""
    monkeypatch.setattr("ttsnap.service.jobs.PATIENCE", 0.5)
    monkeypatch.setattr("ttsnap.service.jobs.AGAIN", 0.1)
    go, before = threading.Event(), sqlalchemy.Engine.begin

    def hung(engine):
        assert go.wait(60)
        return before(engine)

    with keeping(slow) as caller, ThreadPoolExecutor(41) as pool:
        address = caller.begun(budget="200nfe")
        until(lambda: caller.job(address)["progress"] > 0)
        with monkeypatch.context() as patch:
            patch.setattr(sqlalchemy.Engine, "begin", hung)
            polls = [pool.submit(caller.get, address) for _ in range(40)]
            assert pool.submit(caller.made).result(10)["data"]
            replies = [poll.result(10) for poll in polls]
            replies += [caller.get(IMAGES), caller.send(background=True)]
            replies += [caller.ask("DELETE", address)]
            assert {refusal(reply) for reply in replies} == {(503, None, "storage_failed")}
            go.set()
        assert caller.ended(address)["usage"]["nfe"] == 200, "its search was not ended"


def test_a_server_ends_though_its_database_hangs(slow, keeping, monkeypatch):
    monkeypatch.setattr("ttsnap.service.jobs.PATIENCE", 0.2)
    go, ended = threading.Event(), time.monotonic()

    def hung(engine):
        go.wait(30)
        raise sqlalchemy.exc.OperationalError("select", {}, OSError("it was stopped"))

    with keeping(slow) as caller:
        for _ in range(2):
            caller.begun(**LARGE)
        until(lambda: caller.metric("active") == 2)
        monkeypatch.setattr(sqlalchemy.Engine, "begin", hung)
        ended = time.monotonic()
    assert time.monotonic() - ended < 10
    go.set()


def test_a_connection_to_postgresql_has_time_limits_and_an_operator_others(
    monkeypatch,
):
    def limits(address):
        made = []
        monkeypatch.setattr(sqlalchemy, "create_engine", lambda url, **_: made.append(url))
        monkeypatch.setattr(TABLE.metadata, "create_all", lambda engine: None)
        _engine(address)
        return made[0].query["connect_timeout"], made[0].query["options"]

    assert limits("postgresql+psycopg://here/jobs") == ("5", "-c statement_timeout=5000")
    own = "postgresql+psycopg://here/jobs?connect_timeout=60"
    assert limits(own) == ("60", "-c statement_timeout=5000")


def test_errors_of_the_database_are_logged_without_prompts(tmp_path, caplog):
    with store_in(tmp_path) as store:
        job = added(store)
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as rows:
            rows.execute("drop table ttsnap_jobs")
        with pytest.raises(RequestError, match="cannot be stored"):
            store._insert(replace(job, id="other"), {})
    assert ("no such table" in caplog.text, PROMPT in caplog.text) == (True, False)


def test_a_folder_with_sqlite_is_one_servers_and_a_database_has_one_folder(tmp_path):
    with store_in(tmp_path), pytest.raises(ValueError, match="another process"):
        JobStore(tmp_path, ServiceLimits())
    for address in ("nothing://here", "mysql://here/jobs", "nowhere"):
        with pytest.raises(ValueError, match="--database"):
            JobStore(tmp_path, ServiceLimits(), address)
    address = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    with store_in(tmp_path / "one", address) as one:
        one.beat({})
        with pytest.raises(ValueError, match="--state"):
            JobStore(tmp_path / "other", ServiceLimits(), address)
        one.leave()
    with store_in(tmp_path / "other", address):
        pass


def test_jobs_of_a_server_without_beats_go_to_another(tmp_path, monkeypatch):
    """One that wakes up again learns that they are no longer its own."""
    monkeypatch.setattr("ttsnap.service.job_store.locked", lambda folder: nullcontext())
    with store_in(tmp_path) as one, store_in(tmp_path) as other:
        monkeypatch.setattr(one, "_alone", False)
        monkeypatch.setattr(other, "_alone", False)
        jobs = [added(one).id for _ in range(3)]
        for store in (one, other):
            store.beat({})
        assert [taken(one), taken(other)] == jobs[:2]
        assert one.beat({jobs[0]: 40}) == {jobs[0]}
        kept = other.get("anybody", "image_generation", jobs[0])
        assert (kept.status, kept.progress, kept.attempts) == ("in_progress", 40, 1)
        clock = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: clock + LEASE / 2)
        assert one.beat({}) == {jobs[0]}
        assert other.beat({}) == {jobs[1]}
        monkeypatch.setattr(time, "monotonic", lambda: clock + 1.4 * LEASE)
        assert other.beat({}) == {jobs[1]}, "less than a lease after the last beat"
        assert taken(other) == jobs[2], "the first one still lives"
        monkeypatch.setattr(time, "monotonic", lambda: clock + 2.2 * LEASE)
        assert other.beat({}) == set(jobs[1:])
        assert taken(other) == jobs[0]
        for store in (one, other):
            store.end(kept, "completed", {"by": store is other})
        assert other.get("anybody", "image_generation", jobs[0]).outcome == {"by": True}
        assert one.beat({}) == set()
        other.leave()
        one.beat({})
        assert {taken(one) for _ in range(2)} == set(jobs[1:])


def test_a_database_that_was_away_takes_no_servers_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr("ttsnap.service.job_store.locked", lambda folder: nullcontext())
    with store_in(tmp_path) as one, store_in(tmp_path) as other:
        monkeypatch.setattr(other, "_alone", False)
        job = added(one).id
        one.beat({})
        other.beat({})
        assert taken(one) == job
        clock = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: clock + 2 * LEASE)

        def away():
            raise OperationalError("", {}, OSError())

        with monkeypatch.context() as patch:
            patch.setattr(other._engine, "begin", away)
            with pytest.raises(RequestError):
                other.beat({})
        other.beat({})
        assert taken(other) is None


def test_where_jobs_are_kept_by_default(tmp_path, monkeypatch):
    def kept(state=None, port=8000):
        given = Arguments(state=state and str(state), database=None, port=port)
        return store_of(given, ServiceLimits())

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (mine := tmp_path / "mine").mkdir(mode=0o755)
    with kept(), kept(port=0), kept(mine, 0):
        pass
    folder = tmp_path / "ttsnap" / "serve-8000"
    assert (folder / "jobs.sqlite").exists()
    assert [each.stat().st_mode & 0o077 for each in (folder, mine)] == [0, 0], "prompts are there"
    assert [path.name for path in (tmp_path / "ttsnap").iterdir()] == ["serve-8000"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    for state in (None, tmp_path / "file" / "here"):
        with pytest.raises(ValueError, match="cannot be written"), kept(state):
            pass


def test_a_checklist_is_answered_item_by_item_in_replies_and_jobs(pipe, tmp_path):
    """Lists are as long as each prompt's, and a client sees the operator's name alone."""
    made = {name: make_rewards(spec)[0] for name, spec in LISTED.items()}
    engines = OneDevice(pipe, made)
    offer = offer_of("embedded", engines, None, {}, "none")
    with with_jobs(engines, offer=offer, folder=tmp_path) as caller:
        for prompt in ("two red circles and a blue square", "a red circle"):
            asked = [str(item) for item in questions(prompt)]
            body = {"prompt": prompt, "reward": ["looks", "brightness"]}
            found = caller.made(**body, report="looks")
            (best,) = found["data"]
            assert list(best["scores"]) == [*asked, "brightness"]
            assert list(found["answers"]) == asked
            np.testing.assert_allclose(
                best["metrics"]["looks"], product(np.array(list(best["scores"].values())[:-1]))
            )
            noted = json.loads(shown(found).info["ttsnap"])
            assert noted["search"]["scores"] == best["scores"]
            job = caller.ended(caller.begun(**body))
            assert job["answers"] == found["answers"]
            assert list(job["data"][0]["scores"]) == [*asked, "brightness"]
        never = caller.send(**SMALL, reward="looks", require="looks>1")
        assert refusal(never)[2] == "requirement_not_met"
        assert refusal(caller.send(**SMALL, reward="checklist"))[1] == "reward"
