"""What visitors may ask for, and what they asked for: everything that comes from outside is checked here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ttsnap.algorithms import ALGORITHMS, make_algorithm
from ttsnap.algorithms.by_hand import BEST, Wish
from ttsnap.algorithms.options import options_of
from ttsnap.core.names import unknown
from ttsnap.files.pictured import Picture
from ttsnap.loop.budget import EFFORTS, Budget
from ttsnap.options.model import PACKAGED
from ttsnap.options.sampler import AUTO, SamplerOptions
from ttsnap.service.algorithms import OFFERED, kernel_for
from ttsnap.service.limits import SearchLimits, line_of

BASELINE = "best-of-n"
REDRAW = "image-to-image"
"""The task of a search with a picture."""
BUDGETS = f"12images, {', '.join(EFFORTS)}, 200nfe (evaluations), 5s"
"""How a budget may be written."""


@dataclass(frozen=True)
class Limits(SearchLimits):
    """The most that one visitor may ask for: of a search, and of guidance (its scale) and bytes of a file."""

    nfe: int = 2000
    seconds: float = 120.0
    images: int = 8
    prompt: int = 400
    guidance: float = 30.0
    upload: int = 8 * 2**20


@dataclass(frozen=True)
class Offer:
    """What the operator offers: the model, whether visitors may name another, the rewards, and a drafter, if any.
    drafts_first: whether visitors have it unless they leave it out."""

    model: str
    any_model: bool
    rewards: tuple[str, ...]
    draft: str | None = None
    drafts_first: bool = False


@dataclass(frozen=True)
class Asked:
    """One search as asked for; everything in it is checked but the prompt, which the model may still refuse."""

    prompt: str
    model: str
    algorithm: str
    rewards: tuple[str, ...]
    budget: Budget
    seed: int
    keep: int
    call: Mapping[str, Any] = field(default_factory=dict)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    picture: Picture | None = None

    @property
    def task(self) -> str | None:
        """What is done with the picture; None without one."""
        return None if self.picture is None else REDRAW

    @property
    def arguments(self) -> dict[str, Any]:
        """The whole call, with the picture."""
        return dict(self.call) if self.picture is None else {**self.call, "image": self.picture.opened()}

    def baseline(self) -> Asked:
        """Best-of-N at the same budget, on the same seeds and sampler. It looks at no drafts."""
        return replace(self, algorithm=BASELINE, sampler=replace(self.sampler, draft=None))


def title_of(algorithm: str) -> str:
    """A short name for people."""
    return ALGORITHMS[algorithm].title


def kernel_of(algorithm: str) -> str:
    """The sampler that an algorithm of this name needs."""
    return kernel_for(make_algorithm(algorithm))


def read(
    fields: Mapping[str, Any],
    offer: Offer,
    limits: Limits,
    defaults: Callable[[str], Mapping[str, Any]],
) -> Asked:
    """The form's fields (prompt, model, algorithm, rewards, budget, steps, seed, keep, size, negative, guidance, draft;
    and picture, the bytes of a file or None, with strength, how much of it is redrawn).

    size and guidance may be None: the model's own. defaults: the call arguments that a model recommends. ValueError
    that says what was wrong with a field.
    """
    prompt = read_prompt(fields["prompt"], limits.prompt)
    model = _read_model(fields["model"], offer)
    algorithm = fields["algorithm"]
    if not isinstance(algorithm, str) or algorithm not in OFFERED:
        raise ValueError(unknown("algorithm", algorithm, OFFERED))
    steps = whole("steps", fields["steps"], 2, limits.steps)
    size = whole("image size", fields["size"] or 0, 0, limits.side)
    if size and size < 16:
        raise ValueError(f"image size is 16 to {limits.side} pixels, or empty for the model's own, got {size}")
    negative, guidance = _read_negative(fields["negative"], limits), _read_guidance(fields["guidance"], limits)
    picture = None if fields.get("picture") is None else _read_picture(fields["picture"], limits)
    call = {
        **defaults(model),
        "num_inference_steps": steps,
        **({"height": size, "width": size} if size else {}),
        **({"negative_prompt": negative} if negative else {}),
        **({} if picture is None else {"strength": _read_strength(fields.get("strength"))}),
        **({"guidance_scale": guidance} if guidance is not None else {}),
    }
    draft = None if picture is not None else _read_draft(fields["draft"], algorithm, model, offer)
    return Asked(
        prompt,
        model,
        algorithm,
        _read_rewards(fields["rewards"], model, offer, limits),
        read_budget(fields["budget"], steps, limits),
        whole("seed", fields["seed"], 0, 2**31 - 1),
        whole("images to keep", fields["keep"], 1, limits.images),
        call,
        SamplerOptions(kernel=kernel_of(algorithm), draft=draft),
        picture,
    )


def _read_picture(data: Any, limits: Limits) -> Picture:
    """ValueError for what is no picture, and for a large one, before that is decoded."""
    picture = Picture(bytes(data))
    width, height = picture.size
    if max(width, height) > limits.side:
        raise ValueError(f"pictures have sides of at most {limits.side} pixels here, got {width} x {height}")
    picture.opened()  # damage shows where it is decoded
    return picture


def _read_strength(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {_short(value)}")
    return float(value)


def read_prompt(text: Any, most: int) -> str:
    """One line of text of 1 to `most` characters. ValueError for control characters and broken text."""
    line = _line(text, "prompt", most)
    if not line:
        raise ValueError("the prompt is empty; say what you want to see")
    return line


def _line(text: Any, name: str, most: int) -> str:
    if not isinstance(text, str):
        raise ValueError(f"the {name} must be text, got {_short(text)}")
    return line_of(text, name, most)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from low to high. ValueError for anything else, nan and infinity included."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value != int(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {_short(value)}")
    return int(value)


def _read_model(name: Any, offer: Offer) -> str:
    if not offer.any_model or name in (None, "", offer.model):
        return offer.model
    if not isinstance(name, str) or len(name) > 200 or not name.isprintable():
        raise ValueError(f"a model is a hub id or a folder, got {_short(name)}")
    return name.strip()


def _read_rewards(names: Any, model: str, offer: Offer, limits: Limits) -> tuple[str, ...]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not names:
        raise ValueError(f"choose a reward: {', '.join(offer.rewards)}")
    if len(names) > limits.rewards:
        raise ValueError(f"at most {limits.rewards} rewards at once, got {len(names)}")
    for name in names:
        if name not in offer.rewards:
            raise ValueError(unknown("reward", name, offer.rewards))
        if name.startswith("scenes") and model not in PACKAGED:
            raise ValueError(f"reward {name!r} reads the embedded model's captions only; choose another")
    return tuple(dict.fromkeys(names))


def drafts(algorithm: str) -> bool:
    """Whether this algorithm looks at drafts where there is a drafter."""
    return any(option.name == "draft_share" for option in options_of(algorithm))


def _read_draft(wanted: Any, algorithm: str, model: str, offer: Offer) -> str | None:
    """The drafter, where the visitor wants it and the algorithm uses it. One that is preset is left to the model, which
    takes it where it is known to help."""
    if not wanted or not drafts(algorithm):
        return None
    if wanted is True and offer.drafts_first:
        return AUTO  # of another model that a visitor named as well
    if not isinstance(wanted, bool) or offer.draft is None or model != offer.model:
        raise ValueError(f"there is no drafter for {_short(model)} here; search without drafts")
    return offer.draft


def _read_negative(text: Any, limits: Limits) -> str:
    return "" if text is None else _line(text, "negative prompt", limits.prompt)


def _read_guidance(value: Any, limits: Limits) -> float | None:
    if value is None or value == "":
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= limits.guidance
    if not good:
        most = f"{limits.guidance:g}"
        raise ValueError(
            f"guidance must be a number from 0 to {most}, or empty for the model's own, got {_short(value)}"
        )
    return float(value)


def read_budget(text: Any, steps: int, limits: Limits) -> Budget:
    """The budget, which may not exceed the demo's.

    One without a cap on evaluations gets the demo's. ValueError for what cannot be read or is too much.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float) or len(str(text)) > 60:
        raise ValueError(f"cannot read budget {_short(text)}; write it like {BUDGETS}")
    words = str(text).strip().lower()
    if not words:
        raise ValueError(f"the budget is empty; write it like {BUDGETS}")
    budget = Budget.parse(words)
    if budget.images is not None and not math.isfinite(budget.images * steps):
        raise ValueError(f"budget {_short(text)} is too large")
    asked = [cap for cap in (budget.nfe, budget.images and int(budget.images * steps)) if cap is not None]
    if asked and min(asked) > limits.nfe:
        raise ValueError(
            f"a budget of {_short(text)} is {min(asked):,} evaluations at {steps} steps; this demo allows "
            f"{limits.nfe:,}. Take fewer steps or a smaller budget, as {BUDGETS}"
        )
    if budget.seconds is not None and budget.seconds > limits.seconds:
        raise ValueError(f"this demo allows {limits.seconds:g} seconds for a search, got {_short(text)}")
    return budget if asked else replace(budget, nfe=limits.nfe)


def budget_words(text: Any, steps: Any, limits: Limits) -> str:
    """What a budget comes to, for the line below its field; what is wrong with it where it cannot be read."""
    try:
        steps = whole("steps", steps, 2, limits.steps)
        budget = read_budget(text, steps, limits)
    except ValueError as error:
        return str(error)
    caps = []
    if budget.nfe is not None or budget.images is not None:
        nfe = budget.nfe if budget.images is None else int(budget.images * steps)
        full = (nfe or 0) / steps
        caps.append(
            f"{nfe:,} evaluations of the model: as many as {full:,.3g} whole image{'' if full == 1 else 's'} take"
        )
    if budget.seconds is not None:
        caps.append(f"{budget.seconds:g} seconds")
    return f"At most {' and '.join(caps)}."


def read_wish(verb: str, candidate: Any, number: Any, limits: Limits) -> Wish:
    """A wish by hand: a candidate as the board names it, `12` by its seed or `12 ↳40` by its number, or how many to
    finish. ValueError for anything else."""
    if verb == BEST:
        return Wish(BEST, number=whole("images to finish", number, 1, limits.images))
    match = re.fullmatch(r"\s*(\d{1,20})(?:\s*↳\s*(\d{1,9}))?\s*", candidate if isinstance(candidate, str) else "")
    if not match:
        raise ValueError(f"name a candidate as the board does, 12 or 12 ↳40; got {_short(candidate)}")
    return Wish(verb, int(match[2])) if match[2] else Wish(verb, seed=int(match[1]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
