"""The list of algorithms on the page: by group, with a line each, and a hint on the one that is chosen."""

from __future__ import annotations

import json

from ttsnap.algorithms import ALGORITHMS, GROUPS
from ttsnap.demo.asked import kernel_of
from ttsnap.service.algorithms import OFFERED

NOISE = "Adds noise at every step, so that branches of one candidate differ."


def algorithm_choices() -> list[tuple[str, str]]:
    """(what it is called and does, its name) of each, group by group."""
    return [(f"{ALGORITHMS[name].title}: {ALGORITHMS[name].summary}", name) for name in OFFERED]


def group_css() -> str:
    """Rules that put the name of each group above its first algorithm in the open list."""
    groups = [ALGORITHMS[name].group for name in OFFERED]
    firsts = {group: groups.index(group) for group in dict.fromkeys(groups)}
    return "".join(
        f'#algorithm li[data-index="{place}"]::before {{ content: {json.dumps(GROUPS[group].partition(":")[0])}; }}\n'
        for group, place in firsts.items()
    )


def hint(algorithm: str) -> str:
    """What a visitor should know about an algorithm beside its line."""
    entry = ALGORITHMS[algorithm]
    words = [f"{entry.summary[0].upper()}{entry.summary[1:]}."]
    words += [NOISE] if kernel_of(algorithm) == "sde" else []
    words += ["Meant for scenes-noise-aware or another noise-aware reward."] if "noise-aware" in entry.needs else []
    return " ".join(words)


def hints() -> dict[str, str]:
    """The hints of all, for the page's script."""
    return {name: hint(name) for name in OFFERED}
