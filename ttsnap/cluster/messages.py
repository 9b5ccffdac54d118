"""What the driver tells an actor, and what it hears back. Both travel between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ttsnap.core.arrays import FloatArray
from ttsnap.core.cost import Cost, Price
from ttsnap.core.grid import Grid
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Decoded, Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Usage


@dataclass(frozen=True)
class Start:
    """Forget all jobs, and go on with these: prompts by number, the next one being number `following`. gradient: that
    an algorithm asked for on this cluster before, else None. weights: of jobs that have one."""

    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    following: int = 0
    gradient: Gradient | None = None
    weights: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckPrompts:
    """ValueError for prompts that the rewards cannot score."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Admit:
    """New jobs, numbered on."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Retract:
    """Forget the jobs from number `following` on, which is the next one: they could not be admitted everywhere."""

    following: int


@dataclass(frozen=True)
class Weigh:
    """Let a job have so many turns where others have one."""

    job: int
    weight: float


@dataclass(frozen=True)
class Release:
    """Forget a job."""

    job: int


@dataclass(frozen=True)
class Drop:
    """Forget particles."""

    job: int
    uids: tuple[int, ...]


@dataclass(frozen=True)
class Submit:
    """Queue the rows of a part of a plan. copies: particles of other actors that its rows start from, as `Copy` gave
    them; they stay only where a row takes them on."""

    job: int
    plan: Plan
    copies: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Copy:
    """Answer with these particles at rest, under this number. drop: those that are forgotten here."""

    number: int
    job: int
    uids: tuple[int, ...]
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cancel:
    """Take a job's rows off the queue and say how far each got."""

    job: int


@dataclass(frozen=True)
class Remake:
    """Make the particles of one job again that a dead actor had.

    earlier: parts of past plans, oldest first, which are carried out without scores. plan: of the last plan, rows of
    which `done` (n,) were carried out before; the others are queued, with their scores. keep: the particles that stay;
    all others were made on the way to them. evaluated, gradients: particles whose evaluation, or gradient, was there:
    `before` the last plan, and `after` it.
    """

    job: int
    earlier: tuple[Plan, ...]
    plan: Plan | None
    done: frozenset[int]
    keep: frozenset[int]
    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    gradients: frozenset[int] = frozenset()


@dataclass(frozen=True)
class RemakeAll:
    """Of all jobs, side by side."""

    jobs: tuple[Remake, ...]


@dataclass(frozen=True)
class ImageToScore:
    """An image that rewards are asked about: the text that it is to show, and whether it is finished."""

    picture: Decoded
    prompt: str
    last: bool


@dataclass(frozen=True)
class ScoreImages:
    """Answer, under this number, with the scores of these images; for actors of rewards."""

    number: int
    images: tuple[ImageToScore, ...]


@dataclass(frozen=True)
class Calibrate:
    """Measure price.seconds."""


@dataclass(frozen=True)
class Differentiate:
    """Get ready for rows that ASCEND."""

    gradient: Gradient


@dataclass(frozen=True)
class Describe:
    """Answer with a Description."""


@dataclass(frozen=True)
class Measure:
    """Begin to measure memory and energy; end: answer with what was used since."""

    end: bool = False


@dataclass(frozen=True)
class Tick:
    """One batch."""


Command = (
    Start | CheckPrompts | Admit | Retract | Weigh | Release | Drop | Submit | Copy | Cancel | RemakeAll | Calibrate
    | Differentiate | Describe | Measure | ScoreImages | Tick
)  # fmt: skip


@dataclass(frozen=True)
class Description:
    """What an actor's engine is; as the attributes of Engine. fair: whether jobs take turns."""

    grid: Grid
    reward_names: tuple[str, ...]
    keep: tuple[str, ...]
    draft_calls: int
    offers: frozenset[Need]
    price: Price
    calibration_cost: Cost
    fair: bool
    batch_sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardsDescription:
    """The rewards of an actor of rewards: their names, FLOPs and seconds of a call of each, added up (0 where these
    were not measured), and how many images it takes at once."""

    names: tuple[str, ...]
    flops: float
    seconds: float
    batch: int


@dataclass(frozen=True)
class ImageScores:
    """Scores (n, R) of n images, nan where one failed, and why."""

    scores: FloatArray
    errors: list[str | None]


@dataclass
class Turn:
    """What came of some commands. ran: all that the engine has counted since `Start`; timings: seconds by phase since
    then. copies, scored: by the numbers of `Copy` and `ScoreImages`."""

    outcomes: list[Outcome] = field(default_factory=list)
    cancelled: list[Outcome] = field(default_factory=list)
    copies: dict[int, bytes] = field(default_factory=dict)
    scored: dict[int, ImageScores] = field(default_factory=dict)
    ran: Cost = field(default_factory=Cost)
    nfe: int = 0
    room: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    calibrated: Cost = field(default_factory=Cost)
    description: Description | None = None
    rewards: RewardsDescription | None = None
    usage: Usage | None = None
