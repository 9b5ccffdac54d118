"""A search as a few lines of Python, and as a command line."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ttsnap.demo.form import drafts, task_of
from ttsnap.loop.budget import Budget
from ttsnap.options.call import WRITTEN
from ttsnap.options.option import Option, changed, options_of, values
from ttsnap.options.sampler import NONE
from ttsnap.request.request import Prepared

PICTURE = "picture.png"
"""The name of the visitor's picture in these lines."""


def python_lines(
    search: Prepared, device: str = "cpu", dtype: str = "float32", budget: Budget | None = None
) -> str:
    """Lines that run this search and save its winner. budget: in place of what was asked for."""
    request = search.request
    rewards = request.engine.rewards or search.engine.rewards
    arguments: dict[str, Any] = {
        "search": request.label,
        "reward": rewards[0] if len(rewards) == 1 else list(rewards),
        "budget": str(budget or search.budget),
        **{option.name: value for option, value in _changed(search)},
        "seed": request.seed,
        **({"num_images_per_prompt": request.keep} if request.keep > 1 else {}),
        **({"diverse": True} if request.selection.diverse else {}),
        **{name: value for name, value in search.call.items() if name != "image"},
    }
    task = task_of(request)
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    model = "" if request.model == "embedded" else repr(request.model)
    plain = device == "cpu" and dtype == "float32"
    head = "" if plain else "import torch\n"
    options = ", ".join(part for part in (model, "" if plain else f"dtype=torch.{dtype}") if part)
    place = "" if device == "cpu" else f".to({device!r})"
    if task is not None:
        head += "from diffusers.utils import load_image\n"
        options = ", ".join(part for part in (options, f"task={task!r}") if part)
        lines += f"    image=load_image({PICTURE!r}),\n"
    return (
        f"{head}from ttsnap.pipelines import load\n\n"
        f"pipe = load({options}){place}\n"
        f"out = pipe(\n    {'' if task is None else 'prompt='}{search.prompt.text!r},\n{lines})\n"
        f'out.images[0].save("best.png")\n'
        f"print(out.search[0].best.seed, out.search[0].best.reward)\n"
    )


def command_line(search: Prepared, budget: Budget | None = None) -> str:
    """The same by `ttsnap generate`."""
    request = search.request
    rewards = request.engine.rewards or search.engine.rewards
    options: dict[str, Any] = {
        "--model": None if request.model == "embedded" else request.model,
        "--task": task_of(request),
        "--image": PICTURE if "image" in search.call else None,
        "--strength": search.call.get("strength"),
        "--algorithm": request.label,
        **{option.dashed: NONE if value is None else value for option, value in _changed(search)},
        "--reward": rewards[0] if len(rewards) == 1 else json.dumps(rewards),
        "--budget": str(budget or search.budget),
        **{option.dashed: search.call.get(name) for name, option in WRITTEN.items()},
        "--seed": request.seed,
        "--keep": request.keep if request.keep > 1 else None,
        "--diverse": request.selection.diverse or None,
    }
    words = ["ttsnap generate"]
    for name, value in options.items():
        if value is not None:
            words.append(name if value is True else f"{name} {shlex.quote(str(value))}")
    prompt = shlex.quote(search.prompt.text)
    if search.prompt.text.startswith("-"):
        return " ".join([*words, "--", prompt])
    return " ".join([words[0], prompt, *words[1:]])


def _changed(search: Prepared) -> list[tuple[Option, Any]]:
    """Options of the sampler with other values than their defaults."""
    names, given = changed(search.engine.sampler), values(search.engine.sampler)
    # this algorithm has no drafts to leave out
    if given["draft"] is None and not drafts(search.request.label):
        names.remove("draft")
    return [
        (option, given[option.name])
        for option in options_of(type(search.engine.sampler))
        if option.name in names
    ]
