"""Drafts: a guess of where the deterministic sampler ends from where a particle is, in a call or a
few.

A drafter is a network that guesses the end in place of the posterior mean. It may be the model
under a LoRA distilled for it, other weights, or the model itself, told of less noise than there is
("hot"). Here are what is known of one (`DraftSettings`, kept as draft.json beside its weights) and
where its calls are made (`guess`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Interval, MaxLen
from torch import Tensor

from ttsnap.core.grid import Grid
from ttsnap.files.reading import printable, read_object
from ttsnap.files.settings import Count, Fraction, Settings, build, check, to_json
from ttsnap.files.writing import write_json
from ttsnap.options.sampler import MOST_CALLS, Finish
from ttsnap.sampling.interpolants import Interpolant, eps_from_x0, rows

DRAFT_FILE = "draft.json"
FORMAT = 1
MOST_BYTES = 2**20
MOST_CHECKED = 1000
MOST_FIGURES = 100
MOST_TEXT = 300
Guidance = Annotated[float, Interval(ge=0, le=1000)]
Estimate = Callable[[Tensor, Tensor], Tensor]
"""(x (N, ...), told times (N,)) -> the x0 (N, ...) that the network implies at x, told these
times."""


@dataclass(frozen=True)
class TrainedFor(Settings):
    """The sampler whose ends a drafter was trained to guess; what is not known is empty or None."""

    model: str = ""
    """Name of the model."""
    steps: Count | None = None
    """Of the model's grid."""
    guidance_scale: Guidance | None = None
    """As the pipeline's call takes it."""
    path: str = ""
    """A name of ttsnap.sampling.interpolants; empty: the model's own."""


@dataclass(frozen=True)
class Checked(Settings):
    """How well a drafter ranks seeds of one model at one number of steps and guidance: figures by
    their names."""

    model: str
    steps: Count
    guidance_scale: Guidance
    figures: Annotated[Mapping[str, float], MaxLen(MOST_FIGURES)] = field(default_factory=dict)
    finish: str = ""
    """From where its drafts are finished (Finish) where that was measured to find more than drafts
    that only rank; else empty."""

    @property
    def pays(self) -> bool:
        """Whether some draft ranked seeds better than x0 estimates of about its cost, by two
        standard errors where these were noted."""
        gains = {name: value for name, value in self.figures.items() if name.startswith("gain of ")}
        sure = (
            value > 2 * self.figures.get(f"error of the {name}", 0.0)
            for name, value in gains.items()
        )
        return not gains or any(sure)


@dataclass(frozen=True)
class DraftSettings(Settings):
    """How a drafter is called. The defaults are those of a LoRA that comes without a draft.json."""

    first_time: Fraction = 1.0
    """What the network is told at its first call, as a share of the true time. Distilled drafters
    learn sooner where that is a little less than the noise that is there."""
    guidance: Guidance | None = None
    """Of the drafter's calls. None: none, or the scale of the pipeline's call for networks that
    read one (FLUX.1 dev)."""
    finish: str = ""
    """From where to try to finish its drafts (Finish); empty where nothing is known."""
    trained_for: TrainedFor = TrainedFor()
    checked: tuple[Checked, ...] = ()
    """Where the drafter was measured to rank seeds."""


HOT_SETTINGS = DraftSettings(first_time=0.87)
"""Of the model itself as its own drafter, without training."""
HOT_FILE = ".json"
"""How a file's name ends that holds such settings, of the model itself, and where they were
checked."""


# --- files ----------------------------------------------------------------------------------------


def read_draft(folder: str | Path) -> DraftSettings:
    """The settings in the draft.json of a drafter's folder, which anyone may have written; defaults
    where there is none. ValueError, which names the file, for a damaged one."""
    path = Path(folder) / DRAFT_FILE
    return (
        parse_draft(read_object(path, what="draft", most=MOST_BYTES), path)
        if path.exists()
        else DraftSettings()
    )


def read_hot(path: str | Path) -> DraftSettings:
    """The settings in a file for the model itself as its own drafter; they stand beside no weights.

    ValueError where there is no such file, for a damaged one, and for the draft.json of weights.
    """
    settings = parse_draft(read_object(path, what="draft", most=MOST_BYTES), path)
    if settings.trained_for != TrainedFor():
        raise ValueError(
            f"draft {path}: these settings are those of trained weights; give their folder"
        )
    return settings


def parse_draft(data: Mapping[str, object], where: object) -> DraftSettings:
    """The settings that the object of a draft.json stands for; `where` names it in messages.

    ValueError for another format, unknown keys, values that do not fit, and texts or lists that are
    too long.
    """
    try:
        if check("format", data.get("format"), int) != FORMAT:
            raise ValueError(
                f"it is of format {data['format']}; this version of ttsnap reads format {FORMAT}"
            )
        settings = build(
            DraftSettings, {key: value for key, value in data.items() if key != "format"}
        )
        for text in filter(None, (settings.finish, *(entry.finish for entry in settings.checked))):
            Finish.parse(text)
        texts = [
            settings.trained_for.model,
            settings.trained_for.path,
            *(entry.model for entry in settings.checked),
        ]
        if len(settings.checked) > MOST_CHECKED or any(len(text) > MOST_TEXT for text in texts):
            raise ValueError(
                f"it holds more than {MOST_CHECKED:,} checks, or a text of over {MOST_TEXT}"
                " characters"
            )
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {printable(str(error)[:300])}") from None
    return settings


def write_draft(folder: str | Path, settings: DraftSettings) -> None:
    """Write the draft.json of a drafter's folder, whole or not at all."""
    write_settings(Path(folder) / DRAFT_FILE, settings)


def write_settings(path: Path, settings: DraftSettings) -> None:
    """Write a file of settings, whole or not at all. ValueError for what `parse_draft` would
    refuse."""
    data = {"format": FORMAT, **to_json(settings)}
    parse_draft(data, path)
    write_json(path, data)


# --- what it was checked for ----------------------------------------------------------------------


def note_check(where: str | Path, check: Checked) -> None:
    """Note a measurement in the draft.json of a drafter's folder, in place of one for the same
    model, steps and guidance.

    where: the folder, or a file (HOT_FILE) of the model itself as its own drafter, which is made
    where there is none. ValueError for a damaged file, which stays as it is.
    """
    path = Path(where)
    if path.name.endswith(HOT_FILE):
        settings = read_hot(path) if path.exists() else HOT_SETTINGS
    else:
        settings = read_draft(path)
        path = path / DRAFT_FILE
    here = (check.model, check.steps, check.guidance_scale)
    others = [c for c in settings.checked if (c.model, c.steps, c.guidance_scale) != here]
    write_settings(path, replace(settings, checked=(*others, check)))


def unchecked(settings: DraftSettings, model: str, steps: int, guidance: float) -> str | None:
    """A warning where a drafter was not measured for this model, number of steps and guidance, or
    where it does not pay; else None.

    A drafter guesses the end of one deterministic sampler, and another guidance leads to another
    end. The guess of a drafter that was trained adversarially may have little to do with the seed.
    """
    here = f"{model} at {steps} steps and guidance {guidance:g}"
    for there in settings.checked:
        if (there.model, there.steps, there.guidance_scale) == (model, steps, guidance):
            if there.pays:
                return None
            return (
                f"this draft was checked for {printable(here)}, and was found no better than x0"
                " estimates there; leave draft out, or check it on more prompts"
            )
    known = ", ".join(
        f"{c.model} at {c.steps} steps and guidance {c.guidance_scale:g}"
        for c in settings.checked[:5]
    )
    return (
        f"this draft was not checked for {printable(here)}: how well it ranks seeds there is not"
        " known"
        + (f"; it was for {printable(known)}" if known else "")
        + ". Measure it with ttsnap record --check-draft"
    )


# --- where drafts are finished --------------------------------------------------------------------


def sized(grid: Grid, finish: Finish) -> list[int]:
    """Numbers of denoising steps of a call, the likeliest first, of which as many may be left from
    the noise level of `finish` on as it wants; none where this grid's are."""
    rest = grid.steps - grid.nearest(finish.level)
    if finish.steps in (None, rest):
        return []
    wanted = finish.steps or rest
    near = round(wanted * grid.steps / rest)
    # Of one step nothing would be left, and some schedulers know none.
    return sorted(range(max(wanted, 2), wanted + 2 * near), key=lambda steps: abs(steps - near))[:8]


def fitting(grids: Sequence[Grid], finish: Finish) -> int:
    """Which of these grids leaves as many steps as `finish` wants from the level nearest to its
    own. ValueError where none does."""
    at = [(grid, grid.nearest(finish.level)) for grid in grids]
    left = [
        (abs(grid.levels[k] - finish.level), grid.steps - k, i) for i, (grid, k) in enumerate(at)
    ]
    fits = [(off, i) for off, steps, i in left if finish.steps in (None, steps)]
    if not fits:
        raise ValueError(
            f"no number of steps leaves {finish.steps} from noise level {finish.level:g} on; name"
            " another level, or leave the steps out"
        )
    return min(fits)[1]


def begins_as_noise(grid: Grid, finish: Finish) -> str | None:
    """Why particles begin on this grid as noise; None where they begin from their drafts."""
    if grid.nearest(finish.level):
        return None
    lower = f"name a lower level, as {grid.levels[1]:.3g}" if grid.steps > 1 else "take more steps"
    return (
        f"nothing of a draft is left at finish {finish}: of a call of {grid.steps} steps, the step "
        f"nearest to that noise level is the first; {lower}, or leave finish out, so that drafts "
        "only rank"
    )


# --- calls ----------------------------------------------------------------------------------------


def call_times(start: Tensor, calls: int, first_time: float) -> list[tuple[Tensor, Tensor]]:
    """The true times (N,) and the told times (N,) of each of `calls` calls from times start (N,).

    Call j is made at start * (1 - j / calls). ValueError for fewer than one call.
    """
    if not 1 <= calls <= MOST_CALLS:
        raise ValueError(f"a draft takes from 1 to {MOST_CALLS} calls, got {calls}")
    times = [start * (1 - j / calls) for j in range(calls)]
    return [(t, t * first_time if j == 0 else t) for j, t in enumerate(times)]


def carried(path: Interpolant, x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x (N, ...) at times t (N,) taken to times s (N,) along the line between x0 and the noise that
    x0 implies."""
    return rows(path.alpha(s), x) * x0 + rows(path.sigma(s), x) * eps_from_x0(path, x, x0, t)


def guess(
    path: Interpolant, estimate: Estimate, x: Tensor, t: Tensor, calls: int, first_time: float
) -> Tensor:
    """The guess of the end (N, ...) from x (N, ...) at times t (N,) of `path`, in so many calls.

    The noise of x is kept: between calls x moves towards the last guess along the same noise,
    nothing is drawn.
    """
    x0 = x
    for j, (now, told) in enumerate(plan := call_times(t, calls, first_time)):
        if j:
            x = carried(path, x, x0, plan[j - 1][0], now)
        x0 = estimate(x, told)
    return x0
