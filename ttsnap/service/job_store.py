"""Jobs that outlive the server: rows of a database, SQLite or another, and a folder of files for
each.

A row holds the fields of a request as they were checked, which are read and checked again before a
search; pictures and results are files. Nothing is pickled. Each server sees the jobs of its own
state folder, so several may share a database.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ttsnap.files.pictured import Picture
from ttsnap.files.settings import Json
from ttsnap.files.writing import locked, write_bytes, write_text
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
MIB = 2**20
SERVER, GIVEN = "server-id", "given"
"""The file in the state folder that names it in the database; how names of files begin that came
with a request."""
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


COLUMNS = tuple(TABLE.c[name] for name in StoredJob.__dataclass_fields__)


class JobStore:
    """The jobs of one server. Methods may be called in any thread, and wait for the disk."""

    def __init__(self, folder: Path, limits: ServiceLimits, database: str | None = None) -> None:
        """folder: for files, and for the database where none is named. database: as SQLAlchemy
        takes it, as postgresql+psycopg://HOST/NAME. Jobs that another process was running when it
        ended are to be begun again.

        ValueError where another process uses the folder, and for a database that does not answer;
        OSError for a folder that cannot be written.
        """
        self.limits, self.log, self._folder, self._adding = (
            limits,
            Seldom(logging.getLogger(__name__)),
            folder,
            Lock(),
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # prompts are there
        with ExitStack() as held:
            held.enter_context(locked(folder))
            (folder / "jobs").mkdir(exist_ok=True)
            if not (folder / SERVER).exists():
                write_text(folder / SERVER, secrets.token_hex(16))
            self._server = (folder / SERVER).read_text(encoding="ascii")
            self._mine = TABLE.c.server == self._server
            try:
                self._engine = _engine(
                    database or sa.URL.create("sqlite", database=str(folder / "jobs.sqlite"))
                )
                held.callback(self._engine.dispose)
                self._recover()
            except SQLAlchemyError as error:
                why = f"{type(error).__name__}: {str(error).partition('[SQL')[0].strip()[:300]}"
                raise ValueError(f"the database of jobs does not answer ({why})") from None
            self._held = held.pop_all()

    def close(self) -> None:
        """Let the folder and the database go."""
        self._held.close()

    def _recover(self) -> None:
        """Remove files of no job, and queue what was under way when the last process ended, but not
        for ever."""
        lost = sa.and_(self._mine, TABLE.c.status == RUNNING)
        said = (
            f"the server ended {ATTEMPTS} times while this job ran; send it again, or a smaller one"
        )
        failed = {"status": FAILED, "outcome": RequestError(500, said).told(), **self._times()}
        with self._engine.connect() as connection:
            known = set(connection.scalars(sa.select(TABLE.c.id).where(self._mine, self._alive())))
        for name in self._folders() - known:  # before anything is written: the disk may be full
            shutil.rmtree(self._folder / "jobs" / name, ignore_errors=True)
        with self._engine.begin() as connection:
            connection.execute(
                sa.update(TABLE).where(lost, TABLE.c.attempts >= ATTEMPTS).values(**failed)
            )
            connection.execute(sa.update(TABLE).where(lost).values(status=QUEUED))

    def files(self, job: StoredJob) -> Path:
        """The folder of a job's files."""
        return self._folder / "jobs" / job.id

    def _folders(self) -> set[str]:
        """The names of all of them."""
        return {folder.name for folder in (self._folder / "jobs").iterdir()}

    # --- for callers ------------------------------------------------------------------------------

    def add(
        self, owner: str, kind: str, model: str, body: Mapping[str, Json], pictures: Pictures
    ) -> StoredJob:
        """Queue a job, whose pictures are on the disk before it is. RequestError where its owner
        has too many (429), or too much on the disk, and where all owners together have too much
        (503)."""
        now, limits = time.time(), self.limits
        job = StoredJob(
            f"{PREFIXES[kind]}_{secrets.token_hex(16)}",
            owner,
            kind,
            model,
            QUEUED,
            now,
            None,
            None,
            body,
            None,
        )
        mine = sa.and_(self._mine, TABLE.c.owner == owner)
        with self._adding:
            with self._connected() as connection:
                kept = sa.select(sa.func.sum(TABLE.c.bytes))
                used, of_all = (
                    connection.scalar(kept.where(each)) or 0 for each in (mine, self._mine)
                )
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
            try:
                self._insert(job, pictures)
            except (OSError, RequestError) as error:
                shutil.rmtree(self.files(job), ignore_errors=True)
                self.log.error("a job cannot be stored", error)
                raise storage_failed() from None
        return job

    def _insert(self, job: StoredJob, pictures: Pictures) -> None:
        folder = self.files(job)
        folder.mkdir()
        for argument, given in pictures.items():
            for i, picture in enumerate([given] if isinstance(given, Picture) else given):
                write_bytes(folder / f"{GIVEN}-{argument}-{i:02}", picture.data)
        row = {**vars(job), "server": self._server, "bytes": _size(folder)}
        with self._connected() as connection:
            connection.execute(sa.insert(TABLE).values(**row))

    def get(self, owner: str, kind: str, name: str) -> StoredJob:
        """A job by its id. RequestError (404) where this owner has none of this kind."""
        found = None
        if name.isascii() and name.isprintable():  # not every database can be asked for others
            there = sa.select(*COLUMNS).where(*self._owned(owner, kind), TABLE.c.id == name)
            with self._connected() as connection:
                found = connection.execute(there).first()
        if found is None or not self.files(StoredJob(**found._mapping)).is_dir():
            what = f"no {'video' if kind == 'video' else 'job'} {name[:100]!r} here"
            raise RequestError(404, f"{what}; it may have expired", "id", "not_found")
        return StoredJob(**found._mapping)

    def page(
        self, owner: str, kind: str, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[StoredJob], bool]:
        """So many jobs of an owner after that of an id, and whether there are more. RequestError
        for an unknown id."""
        number = TABLE.c.number
        found = sa.select(*COLUMNS).where(*self._owned(owner, kind)).limit(limit + 1)
        if after is not None:
            try:
                last = self.get(owner, kind, after)
            except RequestError as error:
                raise RequestError(400, str(error), "after", "invalid_value") from None
            at = sa.select(number).where(TABLE.c.id == last.id).scalar_subquery()
            found = found.where(number < at if newest_first else number > at)
        with self._connected() as connection:
            rows = connection.execute(
                found.order_by(number.desc() if newest_first else number)
            ).all()
        jobs = [StoredJob(**row._mapping) for row in rows[:limit]]
        return [job for job in jobs if self.files(job).is_dir()], len(rows) > limit

    def delete(self, job: StoredJob) -> None:
        """Remove a job and its files."""
        self._remove(TABLE.c.id == job.id)

    def _remove(self, *which: sa.ColumnElement[bool]) -> None:
        """Files go first: a database on a full disk needs room to forget a row. A job without a
        folder is gone."""
        with self._connected() as connection:
            for name in connection.scalars(sa.select(TABLE.c.id).where(*which)).all():
                shutil.rmtree(self._folder / "jobs" / name, ignore_errors=True)
            connection.execute(sa.delete(TABLE).where(*which))

    # --- for what runs them -----------------------------------------------------------------------

    def waiting(self, model: str, owners: Collection[str]) -> list[StoredJob]:
        """The oldest queued job for this model of each of these owners, oldest first."""
        queued = TABLE.c.status == QUEUED, TABLE.c.model == model, TABLE.c.owner.in_(owners)
        oldest = (
            sa.select(sa.func.min(TABLE.c.number))
            .where(self._mine, *queued)
            .group_by(TABLE.c.owner)
        )
        found = sa.select(*COLUMNS).where(TABLE.c.number.in_(oldest)).order_by(TABLE.c.number)
        with self._connected() as connection:
            return [StoredJob(**row._mapping) for row in connection.execute(found)]

    def begin(self, job: StoredJob) -> bool:
        """Note that a job is under way. False where it is not queued any more."""
        return self._change(job, QUEUED, status=RUNNING, attempts=TABLE.c.attempts + 1)

    def put_back(self, job: StoredJob) -> None:
        """Queue a job again that is under way, as it is ended by no fault of its own."""
        self._change(job, RUNNING, status=QUEUED, attempts=TABLE.c.attempts - 1)

    def end(self, job: StoredJob, status: str, outcome: Mapping[str, Json]) -> None:
        """Note what became of a job that was under way, whose files are written."""
        self._change(
            job,
            RUNNING,
            status=status,
            outcome=outcome,
            bytes=_size(self.files(job)),
            **self._times(),
        )

    def _change(self, job: StoredJob, before: str, **values: Any) -> bool:
        """Whether the job was there, with the status `before`."""
        there = TABLE.c.id == job.id, TABLE.c.status == before
        with self._connected() as connection:
            return connection.execute(sa.update(TABLE).where(*there).values(**values)).rowcount > 0

    def sweep(self) -> None:
        """Remove expired jobs, and those that could not be forgotten when their files were
        removed."""
        with self._connected() as connection:
            known = set(connection.scalars(sa.select(TABLE.c.id).where(self._mine)))
        gone = TABLE.c.id.in_(known - self._folders())
        self._remove(self._mine, sa.or_(gone, TABLE.c.expires < time.time()))

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status, and their "bytes"."""
        counted = sa.select(TABLE.c.status, sa.func.count(), sa.func.sum(TABLE.c.bytes)).where(
            self._mine
        )
        with self._connected() as connection:
            rows = connection.execute(counted.group_by(TABLE.c.status)).all()
        counts = {status: count for status, count, _ in rows}
        return {
            **dict.fromkeys(STATES, 0),
            **counts,
            "bytes": sum(int(size) for _, _, size in rows),
        }

    def pictures(self, job: StoredJob) -> Pictures:
        """The pictures of a job's request."""
        found: dict[str, tuple[Picture, ...]] = {}
        for path in sorted(self.files(job).glob(f"{GIVEN}-*")):
            _, argument, _ = path.name.split("-")
            found[argument] = (
                *found.get(argument, ()),
                Picture(path.read_bytes(), argument == "mask_image"),
            )
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

    def _owned(self, owner: str, kind: str) -> tuple[sa.ColumnElement[bool], ...]:
        return self._mine, TABLE.c.owner == owner, TABLE.c.kind == kind, self._alive()

    def _alive(self) -> sa.ColumnElement[bool]:
        return sa.or_(TABLE.c.expires.is_(None), TABLE.c.expires >= time.time())

    def _times(self) -> dict[str, float]:
        now = time.time()
        return {"ended": now, "expires": now + 3600 * self.limits.job_hours}


def _engine(database: str | sa.URL) -> sa.Engine:
    """A connection to a database, with the table of jobs. ValueError for an address that is none,
    and where the driver is not installed; SQLAlchemyError where it does not answer."""
    try:
        address = sa.make_url(database)
        if address.get_driver_name().startswith("psycopg"):
            address = address.set(query={**LIMITS, **address.query})
        # of rows: they hold prompts
        engine = sa.create_engine(address, pool_pre_ping=True, hide_parameters=True)
    except (sa.exc.ArgumentError, ImportError) as error:
        takes = (
            "--database takes an address of SQLAlchemy, as postgresql+psycopg://HOST/NAME, and its"
            " driver"
        )
        raise ValueError(f"{takes}: {error}") from None
    TABLE.metadata.create_all(engine)
    return engine


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
