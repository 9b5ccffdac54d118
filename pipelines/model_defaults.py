"""What a model recommends for its searches: the `ttsnap.json` in its folder, which stock diffusers
ignores.

    {"num_inference_steps": 20, "guidance_scale": 4.0, "reward": "scenes", "draft": "embedded"}

Anyone may have written that file. It holds arguments of the model's own call, the name of a known
reward, and a drafter: the packaged one, or a folder inside the model's, with its calls as in
"draft:2".
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ttsnap.files.reading import read_object
from ttsnap.options.model import EMBEDDED
from ttsnap.options.sampler import calls_of
from ttsnap.pipelines.packaged import MODELS
from ttsnap.request.request import ModelDefaults
from ttsnap.results.record import checked_call
from ttsnap.reward_models.registry import CHOSEN

DEFAULTS_FILE = "ttsnap.json"
_DRAFT = re.compile(r"(?P<where>[^:\\]{1,200})(?P<calls>:([1-9]|1[0-6]))?")


def defaults_in(folder: Path) -> ModelDefaults:
    """What the file in a model's folder says; nothing where there is none. ValueError for what no
    such file may say."""
    path = folder / DEFAULTS_FILE
    if not path.is_file():
        return ModelDefaults()
    told = read_object(path, what="file of a model's defaults")
    call = checked_call(
        {name: value for name, value in told.items() if name not in ("reward", "draft")}, path
    )
    reward = told.get("reward")
    draft = told.get("draft")
    if reward is not None and (not isinstance(reward, str) or reward not in CHOSEN):
        raise ValueError(
            f"the reward of {path} must be one of {', '.join(CHOSEN)}, got {str(reward)[:60]!r}"
        )
    return ModelDefaults(call, reward, None if draft is None else _drafter(draft, folder, path))


def _drafter(draft: object, folder: Path, path: Path) -> str:
    """The drafter as `draft=` takes it. ValueError for any but the packaged one and a folder inside
    this folder."""
    found = _DRAFT.fullmatch(draft) if isinstance(draft, str) else None
    where = found["where"] if found else ""
    if found and where == EMBEDDED == calls_of(found[0])[0]:
        return found[0]
    inside = (folder / where).resolve()
    named = f"{inside}{found['calls'] or ''}" if found else ""
    plain = where.isprintable() and not PurePosixPath(where).is_absolute() and inside.is_dir()
    within = inside != folder.resolve() and inside.is_relative_to(folder.resolve())
    # "draft:2" may be a link of that name
    if not plain or not within or calls_of(named)[0] != str(inside):
        raise ValueError(
            f"the draft of {path} must be {EMBEDDED!r} or the name of a folder beside it, with its"
            f" calls as in 'draft:2', got {str(draft)[:60]!r}"
        )
    return named


def defaults_of(pipe: Any) -> ModelDefaults:
    """Those of a search pipeline: its `own_defaults`, or what the folder says from which it was
    loaded."""
    found = pipe.own_defaults or ModelDefaults()
    if pipe.own_defaults is None and pipe.name_or_path:
        found = defaults_in(Path(pipe.name_or_path))
    ours = None if pipe.model_options is None else MODELS.get(pipe.model_options.model)

    def read(text: str) -> str:
        if pipe.check_prompt is not None:
            pipe.check_prompt(text)
        return text if ours is None else ours.canonical(text)

    return replace(found, takes=pipe.call_arguments(), canonical=read)
