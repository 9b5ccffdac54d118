"""Settings that a PNG of ttsnap carries: as a table for people, and as values for the page's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from ttsnap.algorithms import ALGORITHMS
from ttsnap.demo import asked as forms
from ttsnap.demo.asked import Limits, Offer
from ttsnap.options.call import CALL

TITLES = {name: argument.title for name, argument in CALL.items() if argument.title}
KERNELS = {"pipeline": "the model's own sampler", "sde": "adds noise at every step (sde)"}
BRANCHED = "a branch: the seed alone does not make it again, the search does"
IGNORED = {"max_sequence_length"}


def render_settings(payload: Mapping[str, Any]) -> str:
    """A table of the settings of a picture, whose payload `checked` let pass. All text in it is escaped."""
    call, search = payload["call"], payload["search"]
    known = ALGORITHMS.get(str(search["algorithm"]))
    rows: list[tuple[str, Any]] = [("Prompt", payload["prompt"])]
    rows += [(title, call[name]) for name, title in TITLES.items() if call.get(name) not in (None, "")]
    rows += [("Seed", payload["seed"]), ("Made as", BRANCHED if payload.get("branched") else None)]
    rows += [("Algorithm", known.title if known else search["algorithm"])]
    rows += [(f"Option {name}", value) for name, value in search.get("options", {}).items()]
    rows += [
        ("Budget", search["budget"]),
        ("Evaluations spent", search.get("nfe")),
        ("Seeds tried", search.get("seeds")),
    ]
    scores = {**search.get("scores", {}), **search.get("metrics", {})}
    rows += [(f"Score by {name}", value if value is None else f"{value:.4g}") for name, value in scores.items()]
    rows += [("Rank", search.get("rank")), ("Sampler", KERNELS.get(payload["kernel"], payload["kernel"]))]
    rows += [("Model", payload["model"]), ("LoRA", payload.get("lora"))]
    rows += [("Draft", payload.get("draft")), ("Made by", f"ttsnap {payload['ttsnap']}")]
    rest = [(name, value) for name, value in call.items() if name not in TITLES and name not in IGNORED]
    rows += [(name.replace("_", " ").capitalize(), value) for name, value in rest]
    cells = "".join(
        f"<tr><th>{escape(str(name)[:80])}</th><td>{escape(str(value)[:400])}</td></tr>"
        for name, value in rows[:80]
        if value is not None
    )
    return f'<table class="tt-settings">{cells}</table>'


def restored(
    payload: Mapping[str, Any], offer: Offer, limits: Limits, defaults: Callable[[str], Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Values for the form from a picture's payload (checked, ttsnap.results.payload), and what could not be taken over.

    Every value passes the same checks as a visitor's own; the others stay as they are on the page, and are named. The
    first seed becomes the image's own, so that a search meets it at once.
    """
    call, search = payload["call"], payload["search"]
    wanted: dict[str, Any] = {
        "prompt": payload["prompt"],
        "algorithm": search["algorithm"],
        "rewards": list(search.get("scores", {})) or None,
        "steps": call.get("num_inference_steps"),
        "budget": search["budget"],
        "seed": payload["seed"],
        "size": call.get("height") if call.get("height") == call.get("width") else None,
        "negative": call.get("negative_prompt") or "",
        "guidance": call.get("guidance_scale"),
        "draft": (draft := payload.get("draft")) is not None and draft == offer.draft,
    }
    plain = {"prompt": "x", "algorithm": forms.BASELINE, "rewards": [offer.rewards[0]], "budget": "1images", "steps": 2,
             "seed": 0, "keep": 1, "size": None, "model": offer.model, "negative": "", "guidance": None,
             "draft": False}  # fmt: skip
    accepted: dict[str, Any] = {}
    left: list[str] = []
    if payload["model"] != offer.model:
        left.append(f"model ({str(payload['model'])[:80]}; here it is {offer.model})")
    if draft is not None and not wanted["draft"]:
        left.append(f"draft ({str(draft)[:80]}; here it is {offer.draft or 'none'})")
    for name, value in wanted.items():
        if value is None:
            continue
        try:
            steps = accepted.get("steps", plain["steps"])
            forms.read({**plain, "steps": steps, name: value}, offer, limits, defaults)
            accepted[name] = value
        except ValueError as error:
            left.append(f"{name} ({str(error)[:160]})")
    return accepted, left
