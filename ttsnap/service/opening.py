"""What an operator offers, from a few words: rewards by name, and prompts in the model's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ttsnap.options.model import PACKAGED
from ttsnap.rewards.registry import refuse_credentials
from ttsnap.scenes import caption, parse


def offered(given: Sequence[str], model: str) -> dict[str, str]:
    """The rewards by the names that clients use. ValueError for none, and for a name that would tell of a place."""
    if not given and model not in PACKAGED:
        raise ValueError(f"model {model} needs --rewards: names of rewards that clients choose from, as clip")
    rewards: dict[str, str] = {}
    for text in given or ["scenes"]:
        refuse_credentials(text)
        name, equals, spec = text.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            name, spec = text, text
        if any(sign in name for sign in "/\\:"):
            raise ValueError(f"clients would see {name!r}; offer it by another name, as --rewards NAME={name}")
        rewards[name] = spec
    return rewards


def model_called(name: str | None, model: str) -> str:
    """What clients call the model: by default the last part of where it is."""
    return name or model.rstrip("/").rpartition("/")[2]


def canonical_of(model: str) -> Callable[[str], str]:
    """How a prompt is put into the model's own words, with a ValueError where it cannot be."""
    if model not in PACKAGED:
        return str
    return lambda prompt: caption(parse(prompt))
