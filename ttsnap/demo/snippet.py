"""A search as a few lines of Python, and as a command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from ttsnap.demo.form import drafts, task_of
from ttsnap.loop.budget import Budget
from ttsnap.options.call import WRITTEN
from ttsnap.options.model import EMBEDDED
from ttsnap.options.option import changed, options_of, values
from ttsnap.options.sampler import NONE, SamplerOptions
from ttsnap.request.request import Prepared

PICTURE = "picture.png"
"""The name of the visitor's picture in these lines."""
FLAGS = {"search": "--algorithm", "num_images_per_prompt": "--keep"} | {
    option.name: option.dashed for option in (*WRITTEN.values(), *options_of(SamplerOptions))
}
"""What the command line calls arguments of a call, where that is another name."""


def python_lines(
    search: Prepared, device: str = "cpu", dtype: str = "float32", budget: Budget | None = None
) -> str:
    """Lines that run this search and save its winner. budget: in place of what was asked for."""
    request = search.request
    arguments = _arguments(search, budget, list(search.call)).items()
    words = {"prompt": repr(search.prompt.text), **{name: repr(value) for name, value in arguments}}
    head = "from ttsnap.pipelines import load\n"
    options = [] if request.model == EMBEDDED else [repr(request.model)]
    place = "" if device == "cpu" else f".to({device!r})"
    if place or dtype != "float32":
        head = f"import torch\n{head}"
        options.append(f"dtype=torch.{dtype}")
    if task_of(request) is not None:
        head = f"from diffusers.utils import load_image\n{head}"
        options.append(f"task={task_of(request)!r}")
        words["image"] = f"load_image({PICTURE!r})"
    lines = "".join(f"    {name}={value},\n" for name, value in words.items())
    return (
        f"{head}\npipe = load({', '.join(options)}){place}\nout = pipe(\n{lines})\n"
        'out.images[0].save("best.png")\n'
        "print(out.search[0].best.seed, out.search[0].best.reward)\n"
    )


def command_line(search: Prepared, budget: Budget | None = None) -> str:
    """The same by `ttsnap generate`."""
    request = search.request
    prompt = search.prompt.text
    arguments = _arguments(search, budget, [*WRITTEN, "strength"])
    if request.model != EMBEDDED:
        arguments["model"] = request.model
    if task_of(request) is not None:
        arguments |= {"task": task_of(request), "image": PICTURE}
    words = list[str]()
    for name, value in arguments.items():
        text = json.dumps(value) if isinstance(value, list) else str(value)
        words += [FLAGS.get(name, f"--{name}")]
        words += [] if value is True else [NONE if value is None else text]
    if prompt.startswith("-"):
        return shlex.join(["ttsnap", "generate", *words, "--", prompt])
    return shlex.join(["ttsnap", "generate", prompt, *words])


def _arguments(search: Prepared, budget: Budget | None, call: Sequence[str]) -> dict[str, Any]:
    """What a call of the pipeline takes beside prompt and picture; of its own arguments these."""
    request = search.request
    sampler = values(search.engine.sampler)
    names = changed(search.engine.sampler)
    # this algorithm has no drafts to leave out
    if sampler["draft"] is None and not drafts(request.label):
        names.remove("draft")
    rewards = request.engine.rewards or search.engine.rewards
    own = {name: search.call.get(name) for name in call if name != "image"}
    return {
        "search": request.label,
        "reward": rewards[0] if len(rewards) == 1 else list(rewards),
        "budget": str(budget or search.budget),
        **{name: sampler[name] for name in names},
        "seed": request.seed,
        **({"num_images_per_prompt": request.keep} if request.keep > 1 else {}),
        **({"diverse": True} if request.selection.diverse else {}),
        **{name: value for name, value in own.items() if value is not None},
    }
