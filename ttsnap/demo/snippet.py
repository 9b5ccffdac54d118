"""A search as a few lines of Python, and as a command line."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ttsnap.demo.form import drafts, task_of
from ttsnap.options.call import WRITTEN
from ttsnap.options.option import Option, changed, options_of, values
from ttsnap.options.sampler import NONE
from ttsnap.request.request import SearchRequest

PICTURE = "picture.png"
"""The name of the visitor's picture in these lines."""


def python_lines(asked: SearchRequest, device: str = "cpu", dtype: str = "float32") -> str:
    """Lines that run this search and save its winner."""
    arguments: dict[str, Any] = {
        "search": asked.label,
        "reward": asked.engine.rewards[0] if len(asked.engine.rewards) == 1 else list(asked.engine.rewards),
        "budget": str(asked.budget),
        **{option.name: value for option, value in _changed(asked)},
        "seed": asked.seed,
        **({"num_images_per_prompt": asked.keep} if asked.keep > 1 else {}),
        **{name: value for name, value in asked.call.items() if name != "image"},
    }
    task = task_of(asked)
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    model = "" if asked.model == "embedded" else repr(asked.model)
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
        f"out = pipe(\n    {'' if task is None else 'prompt='}{asked.prompt.text!r},\n{lines})\n"
        f'out.images[0].save("best.png")\n'
        f"print(out.search[0].best.seed, out.search[0].best.reward)\n"
    )


def command_line(asked: SearchRequest) -> str:
    """The same search by `ttsnap generate`."""
    options: dict[str, Any] = {
        "--model": None if asked.model == "embedded" else asked.model,
        "--task": task_of(asked),
        "--image": PICTURE if "image" in asked.call else None,
        "--strength": asked.call.get("strength"),
        "--algorithm": asked.label,
        **{option.dashed: NONE if value is None else value for option, value in _changed(asked)},
        "--reward": asked.engine.rewards[0] if len(asked.engine.rewards) == 1 else json.dumps(asked.engine.rewards),
        "--budget": str(asked.budget),
        **{option.dashed: asked.call.get(name) for name, option in WRITTEN.items()},
        "--seed": asked.seed,
        "--keep": asked.keep if asked.keep > 1 else None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    words = [name if value is True else f"{name} {shlex.quote(str(value))}" for name, value in given.items()]
    prompt = shlex.quote(asked.prompt.text)
    end = f" -- {prompt}" if asked.prompt.text.startswith("-") else ""
    return f"ttsnap generate {'' if end else prompt + ' '}{' '.join(words)}{end}"


def _changed(asked: SearchRequest) -> list[tuple[Option, Any]]:
    """Options of the sampler with other values than their defaults."""
    names, given = changed(asked.engine.sampler), values(asked.engine.sampler)
    if given["draft"] is None and not drafts(asked.label):  # this algorithm has no drafts to leave out
        names.remove("draft")
    return [(option, given[option.name]) for option in options_of(type(asked.engine.sampler)) if option.name in names]
