"""The settings of a search: algorithm, rewards, budget, seed, listeners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttsnap.core.results import Event
from ttsnap.files.settings import NotNegative, Settings
from ttsnap.options.option import Spec, option


@dataclass(frozen=True)
class SearchOptions(Settings):
    """The settings of a search, except for its prompts and its sampler."""

    search: Spec = option(
        None,
        "the algorithm: the name of one, or a .json file",
        python="The names are in ttsnap.algorithms.ALGORITHMS. An Algorithm is taken as it is.",
        shell="or file.py:Class; the names are listed below",
        written=str,
        flag="algorithm",
        start="seed-pruning",
        metavar="NAME",
        common=True,
    )
    reward: Spec = option(
        None,
        "what scores the images: scenes (the embedded world's checker), imagereward, pickscore and others (NAME:FOLDER "
        "takes other weights), 'CHEAP then COSTLY', an http:// address, judge:yes (a model behind an OpenAI-compatible "
        "API), file.py:function, module:attribute, or a list of them; a function takes "
        "(images (N, 3, H, W) in [0, 1], prompts) and returns N scores",
        python="Functions and Reward objects are taken as they are.",
        written=str | list[str] | None,
        loads="reward",
        common=True,
    )
    reward_prompts: str | Sequence[str] | None = option(
        None,
        "text or list of texts that the rewards read instead of the prompts",
        python="It is needed with prompt_embeds.",
        written=None,
    )
    budget: Spec = option(
        None,
        "per prompt: 400nfe, 20images, 30s, 40pflop, or several as 400nfe,30s; nfe are denoiser evaluations, 20images "
        "as many as 20 images take; also min, h",
        python="A ttsnap.loop.budget.Budget is taken as it is.",
        written=str | int | None,
        common=True,
    )
    effort: str | float | None = option(
        None,
        "instead of a budget: low, medium or high, that is as many evaluations as 5, 20 or 80 images take, or a "
        "fraction of high",
        shell="without either it is medium",
    )
    shared: bool = option(False, "put all prompts' budgets together; each takes what it needs")
    utility: Spec = option(
        "mean",
        "how several rewards become one number: mean, rank_sum or a list of weights",
        python="A function of scores is taken as it is (ttsnap.core.utility).",
        written=str | list[float],
    )
    require: Spec = option(
        None,
        "what an image must meet to be returned: REWARD>=NUMBER, also with >, <= or <, as 'ocr>0.99'; REWARD alone is "
        "REWARD>=0.5; a list for several, or the option again",
        python="The search goes on while the budget lasts, and may return no image. A "
        "`ttsnap.core.requirement.Requirement` may name a function.",
        written=str | list[str] | None,
        metavar="REQUIREMENT",
        loads="reward",
        many=True,
        recorded=False,
    )
    report: Spec = option(
        None,
        "rewards that only score the returned images, outside the budget",
        python="What they say is in `Candidate.metrics`.",
        written=str | list[str] | None,
        metavar="REWARD",
        loads="reward",
    )
    diverse: bool = option(
        False,
        "keep images that are good and unlike each other, not just the best ones",
        python="The best image is always among them. Their number is `num_images_per_prompt`.",
        common=True,
    )
    diversity: NotNegative | None = option(
        None,
        "with diverse, how much unlikeness counts: with 1, an image may be a standard deviation of the rewards worse "
        "where it is farther from the others by the mean distance",
        unset="1",
        metavar="WEIGHT",
    )
    likeness: Spec = option(
        None,
        "with diverse, by what images are compared: pixels (colours and layout), dino, reward (the features of the "
        "first reward that has some), or a reward with features, as clip; dino and those take NAME:FOLDER",
        python="A function of images (N, 3, H, W) in [0, 1] that returns features (N, D) is taken as it is.",
        unset="the reward's features, else pixels",
        written=str | None,
        metavar="NAME",
        loads="likeness",
    )
    seed: int | None = option(
        None,
        "candidate i starts from seed + i",
        python="Seeds are torch's on the CPU. By default `generator` gives the first one, below 2^32, and is advanced: "
        "its own seed modulo 2^32 as long as nothing was drawn from it, so that candidate 0 is the image of the stock "
        "call, and a seed drawn from it after that. Without a generator torch's global one does (torch.manual_seed).",
        written=int,
        start=0,
        metavar="N",
        common=True,
    )
    on_event: Callable[[Event], None] | None = option(
        None, "called with every Event of the search (ttsnap.core.results)", written=None
    )
    should_stop: Callable[[], bool] | None = option(
        None,
        "asked once per batch; when it says True, prompts under way end with their best finished image",
        python="Setting `pipe._interrupt = True` does the same.",
        written=None,
    )
