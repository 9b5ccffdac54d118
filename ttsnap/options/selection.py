"""What counts as best, as users write it; `core/selection.py` is what a search makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttsnap.core import utility as utilities
from ttsnap.core.checklist import is_item, is_list
from ttsnap.core.requirement import Gate, Requirement
from ttsnap.core.selection import Selection
from ttsnap.files.settings import Names, NotNegative, Settings
from ttsnap.options.option import Offered, Spec, option


@dataclass(frozen=True)
class SelectionOptions(Settings):
    """What counts as best, and what is measured of the images that come back.

    ValueError where it can be refused without the rewards: a requirement that cannot be read, and a
    diversity or a likeness of images that are not asked to differ.
    """

    utility: Spec = option(
        "mean",
        "how several rewards become one number: mean, rank_sum or a list of weights; of a checklist"
        " the product of the answers, or geometric, their geometric mean",
        python="A function of scores is taken as it is (ttsnap.core.utility).",
        written=str | list[float],
    )
    require: Spec = option(
        None,
        "what an image must meet to be returned: REWARD>=NUMBER, also with >, <= or <, as"
        " 'ocr>0.99'; REWARD alone is REWARD>=0.5; a list for several, or the option again",
        python=(
            "The search goes on while the budget lasts, and may return no image. A "
            "`ttsnap.core.requirement.Requirement` may name a function."
        ),
        written=str | list[str] | None,
        metavar="REQUIREMENT",
        loads="reward",
        recorded=False,
        offered=Offered(
            Names | None,
            "what an image must meet to be returned, by rewards that are offered: REWARD>=NUMBER,"
            " or several",
        ),
    )
    until: Spec = option(
        None,
        "end the search once an image meets this, written as in require; 'checklist': all of its"
        " items",
        python="Of several images to keep, all must. What was not spent is not charged.",
        written=str | list[str] | None,
        metavar="REQUIREMENT",
        loads="reward",
        recorded=False,
    )
    report: Spec = option(
        None,
        "rewards that only score the returned images, outside the budget",
        python="What they say is in `Candidate.metrics`.",
        written=str | list[str] | None,
        metavar="REWARD",
        loads="reward",
        offered=Offered(Names | None, "rewards that only score the returned images"),
    )
    diverse: bool = option(
        False,
        "keep images that are good and unlike each other, not just the best ones",
        python="The best image is always among them. Their number is `num_images_per_prompt`.",
        common=True,
        offered=Offered(),
    )
    diversity: NotNegative | None = option(
        None,
        "with diverse, how much unlikeness counts: with 1, an image may be a standard deviation of"
        " the rewards worse where it is farther from the others by the mean distance",
        unset="1",
        metavar="WEIGHT",
    )
    likeness: Spec = option(
        None,
        "with diverse, by what images are compared: pixels (colours and layout), dino, reward (the"
        " features of the first reward that has some), or a reward with features, as clip; dino and"
        " those take NAME:FOLDER",
        python=(
            "A function of images (N, 3, H, W) in [0, 1] that returns features (N, D) is taken as"
            " it is."
        ),
        unset="the reward's features, else pixels",
        written=str | None,
        metavar="NAME",
        loads="likeness",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.requirements  # noqa: B018  (they are read, and refused, at once)
        self.ends  # noqa: B018
        for name, value in (("diversity", self.diversity), ("likeness", self.likeness)):
            if value is not None and not self.diverse:
                raise ValueError(
                    f"{name} {value} is for images that differ: ask for these by diverse"
                    f" (--diverse, diverse=True), or leave {name} out"
                )

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What images must meet, each read."""
        return tuple(map(Requirement.parse, listed(self.require)))

    @property
    def ends(self) -> tuple[Requirement, ...]:
        """What ends the search, each read."""
        return tuple(map(Requirement.parse, listed(self.until)))

    @property
    def reported(self) -> tuple[Spec, ...]:
        """The rewards that only score the images that come back."""
        return listed(self.report)

    def scored(self, rewards: Sequence[Spec]) -> tuple[Spec, ...]:
        """These rewards, and behind them those that are only required."""
        return tuple(dict.fromkeys((*rewards, *(one.reward for one in self.requirements))))

    def over(self, items: Sequence[Spec]) -> SelectionOptions:
        """The same, where a requirement on a checklist is one on each of these items."""

        def spread(bounds: Sequence[Requirement]) -> tuple[Requirement, ...] | None:
            each = [
                replace(one, reward=item)
                for one in bounds
                for item in (items if is_list(one.reward) else (one.reward,))
            ]
            return tuple(each) or None

        return replace(self, require=spread(self.requirements), until=spread(self.ends))

    def told(self, rewards: Sequence[Spec]) -> Spec:
        """The utility of these rewards by its name: of a checklist the product, without a word."""
        listed = isinstance(self.utility, str) and any(map(is_item, rewards))
        return "product" if listed and self.utility == "mean" else self.utility

    def read(self, keep: int, rewards: Sequence[Spec]) -> Selection:
        """The value that a search carries. keep: how many images come back. rewards: those that are
        searched for, items of a checklist first.

        ValueError for a utility that is none, or that has weights for another number of rewards."""
        weight = 1.0 if self.diversity is None else self.diversity
        utility = (
            self.utility if callable(self.utility) else utilities.make(self.utility, len(rewards))
        )
        answers = sum(map(is_item, rewards))
        word = self.told(rewards)
        if answers and isinstance(word, str) and word in utilities.ANSWERS:
            utility = utilities.UTILITIES[word]
            utility = utilities.tied(utility, answers) if answers < len(rewards) else utility
        required = self.requirements
        scored = self.scored(rewards)
        gate = Gate.of(required, scored, len(rewards)) if required else None
        enough = Gate.of(self.ends, scored, len(rewards)) if self.ends else None
        return Selection(utility, keep, weight if self.diverse else 0.0, gate, enough)


def listed(value: Spec) -> tuple[Any, ...]:
    """Names or objects as users give them: one, several or none."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return () if value is None else (value,)
