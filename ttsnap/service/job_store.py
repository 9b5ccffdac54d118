"""Jobs that outlive a server: rows of a database, and a folder of files for each.

Several servers share one database and one folder: any of them answers for any job, and a free one
takes the next. PostgreSQL is for several, SQLite for one. A row holds the fields of a request as
they were checked, which are read and checked again before a search; pictures and results are files.
Nothing is pickled.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Json
from ttsnap.files.writing import locked, write_bytes
from ttsnap.service.forms import Pictures, arguments_of
from ttsnap.service.limits import RequestError, ServiceLimits, storage_failed
from ttsnap.service.monitoring import Seldom

QUEUED, RUNNING, COMPLETED, FAILED = STATES = ("queued", "in_progress", "completed", "failed")
OPEN = (QUEUED, RUNNING)
PREFIXES = {"video": "video", "image_generation": "img", "image_edit": "edit"}
"""How ids begin, by the kind of request."""
ATTEMPTS = 3
"""How often a job is begun whose server ends without notice each time. After the first time it runs
alone."""
LEASE = 20.0
"""Seconds without a beat of a server, after which its jobs are begun again by others."""
YOUNG = 600.0
"""Seconds for which files without a row, and a row whose files are not seen here, may be those of a
job that is just being added."""
MIB = 2**20
GIVEN = "given"
SIGNS = "servers"
"""How names of files begin that came with a request; the folder with an empty file for each
server."""
LIMITS = {
    "connect_timeout": "5",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "options": "-c statement_timeout=5000",
}
"""Of a connection to PostgreSQL: seconds and milliseconds. Those of the operator's address come
first."""

TABLE = sa.Table(
    "ttsnap_jobs",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("server", sa.String(32), nullable=False, index=True),
    sa.Column("owner", sa.String(200), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("model", sa.String(500), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("expires", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("outcome", sa.JSON),
)
"""`server` runs the job, where one does."""
SERVERS = sa.Table(
    "ttsnap_servers",
    TABLE.metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("beats", sa.Integer, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
)
"""Those that live. `beats` rises all the time; `progress` is the percent of each job that runs."""


@dataclass(frozen=True)
class StoredJob:
    """A request that is answered later."""

    id: str
    owner: str
    """The name of the caller."""
    kind: str
    """Of its request: one of PREFIXES."""
    model: str
    """By the name that clients use."""
    status: str
    created: float
    """Seconds since 1970, as all times."""
    ended: float | None
    expires: float | None
    """When its files and itself are removed; None until it ends."""
    body: Mapping[str, Any]
    """The fields of its request that were given, checked, by our names."""
    outcome: Mapping[str, Any] | None
    """What it made, without its files; of a failed job the error."""
    attempts: int = 0
    """How often a server ended without notice while it ran."""
    progress: int = 0
    """Percent of the budget that is spent, where another server runs it."""


JOBS = sa.select(
    *(TABLE.c[name] for name in StoredJob.__dataclass_fields__ if name != "progress"),
    SERVERS.c.progress,
).outerjoin_from(TABLE, SERVERS, SERVERS.c.id == TABLE.c.server)


class JobStore:
    """The jobs of this server, and of all that share its database and its folder. Methods may be
    called in any thread, and wait for the disk."""

    def __init__(self, folder: Path, limits: ServiceLimits, database: str | None = None) -> None:
        """folder: for files, and for a database of SQLite where no other is named. database: as
        SQLAlchemy takes it, as postgresql+psycopg://HOST/NAME.

        ValueError where another process uses the folder and SQLite, where servers of this database
        use another folder, and for a database that does not answer; OSError for a folder that
        cannot be written.
        """
        self.limits = limits
        self.log = Seldom(logging.getLogger(__name__))
        self._folder = folder
        self._server = secrets.token_hex(16)
        self._adding = Lock()
        self._seen: dict[str, tuple[int, float]] = {}
        """Of each server its beats, and when they rose last, by the clock of this process."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # prompts are there
        with ExitStack() as held:
            try:
                self._engine = _engine(
                    database or sa.URL.create("sqlite", database=str(folder / "jobs.sqlite"))
                )
                held.callback(self._engine.dispose)
                self._alone = self._engine.dialect.name == "sqlite"
                if self._alone:
                    held.enter_context(locked(folder))
                self._check_folder()
            except SQLAlchemyError as error:
                why = f"{type(error).__name__}: {str(error).partition('[SQL')[0].strip()[:300]}"
                raise ValueError(f"the database of jobs does not answer ({why})") from None
            self._held = held.pop_all()

    def close(self) -> None:
        """Let the folder and the database go."""
        self._held.close()

    def _sign(self, server: str) -> Path:
        return self._folder / SIGNS / server

    def _check_folder(self) -> None:
        """Leave a sign in the folder, and see that all other servers of the database have one
        there."""
        for name in ("jobs", SIGNS):
            (self._folder / name).mkdir(exist_ok=True)
        with self._engine.connect() as connection:
            others = connection.scalars(sa.select(SERVERS.c.id)).all()
        if not all(self._sign(name).exists() for name in others):
            raise ValueError(
                f"{self._folder} is not where servers of this database keep their files; give the"
                f" same --state as they, or, if none of them runs: DELETE FROM {SERVERS.name}"
            )
        self._sign(self._server).touch()

    def files(self, job: StoredJob) -> Path:
        """The folder of a job's files."""
        return self._folder / "jobs" / job.id

    # --- for callers ------------------------------------------------------------------------------

    def add(
        self, owner: str, kind: str, model: str, body: Mapping[str, Json], pictures: Pictures
    ) -> StoredJob:
        """Queue a job, whose pictures are on the disk before it is. RequestError where its owner
        has too many (429), or too much on the disk, and where all owners together have too much
        (503)."""
        job = StoredJob(
            f"{PREFIXES[kind]}_{secrets.token_hex(16)}",
            owner,
            kind,
            model,
            QUEUED,
            created=time.time(),
            ended=None,
            expires=None,
            body=body,
            outcome=None,
        )
        with self._adding:
            self._require_room(owner)
            try:
                self._insert(job, pictures)
            except (OSError, RequestError) as error:
                shutil.rmtree(self.files(job), ignore_errors=True)
                self.log.error("a job cannot be stored", error)
                raise storage_failed() from None
        return job

    def _require_room(self, owner: str) -> None:
        """RequestError where an owner has too many jobs or too much on the disk, and where all owners
        together have too much."""
        limits = self.limits
        mine = TABLE.c.owner == owner
        with self._connected() as connection:
            kept = sa.select(sa.func.sum(TABLE.c.bytes))
            used = connection.scalar(kept.where(mine)) or 0
            of_all = connection.scalar(kept) or 0
            waiting = sa.select(sa.func.count()).where(mine, TABLE.c.status.in_(OPEN))
            if (connection.scalar(waiting) or 0) >= limits.jobs_per_key:
                most = (
                    f"{limits.jobs_per_key} jobs of yours wait or run already, the most that"
                    " one key may have"
                )
                raise RequestError(
                    429,
                    f"{most}; try again when one is done",
                    code="too_many_jobs",
                    retry_after=30,
                )
        if used >= limits.job_mib * MIB:
            most = (
                f"your jobs keep {used / MIB:.0f} MiB here, and {limits.job_mib} is the most"
                " for one key"
            )
            raise RequestError(
                429, f"{most}; delete some that are done", code="quota_exceeded", retry_after=60
            )
        if of_all >= limits.state_mib * MIB:
            raise storage_failed()

    def _insert(self, job: StoredJob, pictures: Pictures) -> None:
        folder = self.files(job)
        folder.mkdir()
        for argument, given in pictures.items():
            for i, picture in enumerate([given] if isinstance(given, Picture) else given):
                write_bytes(folder / f"{GIVEN}-{argument}-{i:02}", picture.data)
        row = {**vars(job), "server": "", "bytes": _size(folder)}
        del row["progress"]
        with self._connected() as connection:
            connection.execute(sa.insert(TABLE).values(**row))

    def get(self, owner: str, kind: str, name: str) -> StoredJob:
        """A job by its id. RequestError (404) where this owner has none of this kind."""
        row = None
        if name.isascii() and name.isprintable():  # not every database can be asked for others
            there = JOBS.where(*_owned(owner, kind), TABLE.c.id == name)
            with self._connected() as connection:
                row = connection.execute(there).first()
        if row is None or not self.files(_read(row)).is_dir():
            what = f"no {'video' if kind == 'video' else 'job'} {name[:100]!r} here"
            raise RequestError(404, f"{what}; it may have expired", "id", "not_found")
        return _read(row)

    def page(
        self, owner: str, kind: str, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[StoredJob], bool]:
        """So many jobs of an owner after that of an id, and whether there are more. RequestError
        for an unknown id."""
        number = TABLE.c.number
        wanted = JOBS.where(*_owned(owner, kind)).limit(limit + 1)
        if after is not None:
            try:
                last = self.get(owner, kind, after)
            except RequestError as error:
                raise RequestError(400, str(error), "after", "invalid_value") from None
            at = sa.select(number).where(TABLE.c.id == last.id).scalar_subquery()
            wanted = wanted.where(number < at if newest_first else number > at)
        with self._connected() as connection:
            rows = connection.execute(
                wanted.order_by(number.desc() if newest_first else number)
            ).all()
        jobs = [_read(row) for row in rows[:limit]]
        return [job for job in jobs if self.files(job).is_dir()], len(rows) > limit

    def delete(self, job: StoredJob) -> None:
        """Remove a job and its files."""
        self._remove(TABLE.c.id == job.id)

    def _remove(self, which: sa.ColumnElement[bool]) -> None:
        """Files go first: a database on a full disk needs room to forget a row. A job without a
        folder is gone."""
        with self._connected() as connection:
            for name in connection.scalars(sa.select(TABLE.c.id).where(which)).all():
                shutil.rmtree(self._folder / "jobs" / name, ignore_errors=True)
            connection.execute(sa.delete(TABLE).where(which))

    # --- for what runs them -----------------------------------------------------------------------

    def beat(self, progress: Mapping[str, int]) -> set[str]:
        """Say that this server lives, and how far its jobs are, in percent by id; and queue the
        jobs of servers that live no more. Returns the ids of the jobs that are still its own."""
        own = SERVERS.c.id == self._server
        told = {"beats": SERVERS.c.beats + 1, "progress": dict(progress)}
        try:
            with self._connected() as connection:
                if not connection.execute(sa.update(SERVERS).where(own).values(**told)).rowcount:
                    first = {"id": self._server, "beats": 0, "progress": {}}
                    connection.execute(sa.insert(SERVERS).values(**first))
                servers = connection.execute(sa.select(SERVERS.c.id, SERVERS.c.beats))
                dead = self._dead({row.id: row.beats for row in servers})
                if dead:
                    connection.execute(sa.delete(SERVERS).where(SERVERS.c.id.in_(dead)))
                self._queue_lost(connection)
                mine = sa.select(TABLE.c.id).where(self._running())
                held = set(connection.scalars(mine))
        except RequestError:
            self._seen.clear()  # while the database was away, nobody's beats could rise
            raise
        for name in dead:
            self._sign(name).unlink(missing_ok=True)
        return held

    def _dead(self, beats: Mapping[str, int]) -> list[str]:
        """The servers whose beats have not risen for LEASE; with SQLite all but this one."""
        now = time.monotonic()
        before = self._seen
        self._seen = {
            name: before[name] if before.get(name, (None,))[0] == count else (count, now)
            for name, count in beats.items()
        }
        return [
            name
            for name, (_, since) in self._seen.items()
            if name != self._server and (self._alone or now - since > LEASE)
        ]

    def _queue_lost(self, connection: sa.Connection) -> None:
        """Queue the jobs of servers that there are no more, but not for ever."""
        alive = sa.select(SERVERS.c.id)
        lost = sa.and_(TABLE.c.status == RUNNING, TABLE.c.server.not_in(alive))
        said = (
            f"the server ended {ATTEMPTS} times while this job ran; send it again, or a smaller one"
        )
        failed = {"status": FAILED, "outcome": RequestError(500, said).told(), **self._times()}
        often = sa.and_(lost, TABLE.c.attempts >= ATTEMPTS)
        connection.execute(sa.update(TABLE).where(often).values(**failed))
        connection.execute(sa.update(TABLE).where(lost).values(status=QUEUED))

    def take(self, model: str, owners: Collection[str], alone: bool) -> StoredJob | None:
        """Begin the next queued job for this model: the oldest of those of these owners who have
        the fewest under way, on all servers. None where there is none, and where the next one may
        have ended a server, so that it must run `alone`."""
        other = TABLE.alias()
        running = other.c.status == RUNNING
        busy = sa.select(sa.func.count()).where(other.c.owner == TABLE.c.owner, running)
        queued = TABLE.c.status == QUEUED
        offered = (TABLE.c.model == model, TABLE.c.owner.in_(owners))
        order = (busy.scalar_subquery(), TABLE.c.number)
        first = JOBS.where(queued, *offered).order_by(*order).limit(1)
        begun = {
            "status": RUNNING,
            "server": self._server,
            "attempts": TABLE.c.attempts + 1,
        }
        with self._connected() as connection:
            row = connection.execute(first.with_for_update(of=TABLE, skip_locked=True)).first()
            if row is None or (row.attempts and not alone):
                return None
            there = sa.and_(TABLE.c.id == row.id, queued)
            if not connection.execute(sa.update(TABLE).where(there).values(**begun)).rowcount:
                return None
        return _read(row)

    def put_back(self, job: StoredJob) -> None:
        """Queue a job again that is under way here, as it is ended by no fault of its own."""
        self._change(TABLE.c.id == job.id, status=QUEUED, attempts=TABLE.c.attempts - 1)

    def end(self, job: StoredJob, status: str, outcome: Mapping[str, Json]) -> bool:
        """Note what became of a job that is under way here, whose files are written. False where it
        is not this server's any more."""
        size = _size(self.files(job))
        ended = {"status": status, "outcome": outcome, "bytes": size, **self._times()}
        return self._change(TABLE.c.id == job.id, **ended)

    def leave(self) -> None:
        """Queue all jobs again that are under way here, for other servers or the next one."""
        self._change(sa.true(), status=QUEUED, attempts=TABLE.c.attempts - 1)
        with self._connected() as connection:
            connection.execute(sa.delete(SERVERS).where(SERVERS.c.id == self._server))
        self._sign(self._server).unlink(missing_ok=True)

    def _change(self, which: sa.ColumnElement[bool], **values: Any) -> bool:
        """Whether there was a job that is still this server's: others do not change."""
        change = sa.update(TABLE).where(which, self._running()).values(**values)
        with self._connected() as connection:
            return connection.execute(change).rowcount > 0

    def _running(self) -> sa.ColumnElement[bool]:
        return sa.and_(TABLE.c.server == self._server, TABLE.c.status == RUNNING)

    def sweep(self) -> None:
        """Remove expired jobs, those that could not be forgotten when their files were removed,
        and files of no job."""
        now = time.time()
        with self._connected() as connection:
            rows = connection.execute(sa.select(TABLE.c.id, TABLE.c.created))
            known = {row.id: row.created for row in rows}
        folders = {folder.name: folder for folder in (self._folder / "jobs").iterdir()}
        for name in folders.keys() - known.keys():
            with suppress(FileNotFoundError):  # another server was first
                if folders[name].stat().st_mtime < now - YOUNG:
                    shutil.rmtree(folders[name], ignore_errors=True)
        young = 0.0 if self._alone else YOUNG
        gone = [name for name in known.keys() - folders.keys() if known[name] < now - young]
        self._remove(sa.or_(TABLE.c.id.in_(gone), TABLE.c.expires < now))

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status, and their "bytes"."""
        counted = sa.select(TABLE.c.status, sa.func.count(), sa.func.sum(TABLE.c.bytes))
        with self._connected() as connection:
            rows = connection.execute(counted.group_by(TABLE.c.status)).all()
        counts = {status: count for status, count, _ in rows}
        size = sum(int(size) for _, _, size in rows)
        return {**dict.fromkeys(STATES, 0), **counts, "bytes": size}

    def pictures(self, job: StoredJob) -> Pictures:
        """The pictures of a job's request."""
        found: dict[str, tuple[Picture, ...]] = {}
        for path in sorted(self.files(job).glob(f"{GIVEN}-*")):
            _, argument, _ = path.name.split("-")
            picture = Picture(path.read_bytes(), argument == "mask_image")
            found[argument] = (*found.get(argument, ()), picture)
        return arguments_of(found)

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        """A connection for one transaction. RequestError (503) where the database does not
        answer."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self.log.error("the database of jobs does not answer", error)
            raise storage_failed() from None

    def _times(self) -> dict[str, float]:
        now = time.time()
        return {"ended": now, "expires": now + 3600 * self.limits.job_hours}


def _read(row: Any) -> StoredJob:
    """A row of JOBS."""
    fields = dict(row._mapping)
    progress = fields.pop("progress") or {}
    return StoredJob(**fields, progress=progress.get(fields["id"], 0))


def _owned(owner: str, kind: str) -> tuple[sa.ColumnElement[bool], ...]:
    alive = sa.or_(TABLE.c.expires.is_(None), TABLE.c.expires >= time.time())
    return TABLE.c.owner == owner, TABLE.c.kind == kind, alive


def _engine(database: str | sa.URL) -> sa.Engine:
    """A connection to a database, with the tables of jobs. ValueError for an address that is none,
    and where the driver is not installed; SQLAlchemyError where it does not answer."""
    takes = (
        "--database takes an address of SQLAlchemy, as postgresql+psycopg://HOST/NAME, and its"
        " driver"
    )
    try:
        address = sa.make_url(database)
        if address.get_driver_name().startswith("psycopg"):
            address = address.set(query={**LIMITS, **address.query})
        # of rows: they hold prompts
        engine = sa.create_engine(address, pool_pre_ping=True, hide_parameters=True)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise ValueError(f"{takes}: {error}") from None
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"{takes}; PostgreSQL or SQLite, got {address.get_backend_name()}")
    try:
        TABLE.metadata.create_all(engine)
    except sa.exc.DBAPIError:  # another server may have done so at the same time
        TABLE.metadata.create_all(engine)
    return engine


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
