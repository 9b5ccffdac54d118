"""The settings of a search: algorithm, reward, budget, seed, listeners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval, MaxLen

from ttsnap.core.checklist import rewards_of
from ttsnap.core.results import Event
from ttsnap.files.settings import Name, Names, Settings
from ttsnap.options.option import Offered, Spec, option
from ttsnap.options.selection import listed


@dataclass(frozen=True)
class SearchOptions(Settings):
    """The settings of a search, except for its prompts, its sampler and what counts as best."""

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
        offered=Offered(
            Name | dict[str, Any],
            'an algorithm of `ttsnap algorithms`, as NAME or {"name": NAME, OPTION: VALUE, ...}',
        ),
    )
    reward: Spec = option(
        None,
        "what scores the images: scenes (the embedded world's checker), imagereward, pickscore and"
        " others (NAME:FOLDER takes other weights), 'CHEAP then COSTLY', an http:// address,"
        " judge:yes (a model behind an OpenAI-compatible API), file.py:function, module:attribute,"
        " or a list of them; a function takes (images (N, 3, H, W) in [0, 1], prompts) and returns"
        " N scores",
        python="Functions and Reward objects are taken as they are.",
        written=str | list[str] | None,
        loads="reward",
        common=True,
        offered=Offered(Names | None, "names of rewards that are offered, the first if none"),
    )
    check: Sequence[str] = option(
        (),
        "an item of a checklist, as 'two dogs', 'text: OPEN' or 'count: 3 apples'; again for more."
        " Answers are in [0, 1] and stay apart; --reward 'checklist by vqascore' says who gives"
        " them",
        python="`Checklist` (ttsnap.reward_models.checklist) takes functions as items, too.",
        written=str | list[str],
        metavar="ITEM",
        loads="text",
    )
    tie: Spec = option(
        None,
        "the reward that decides between images with the same answers to a checklist",
        written=str | None,
        metavar="REWARD",
        loads="reward",
    )
    reward_prompts: str | Sequence[str] | None = option(
        None,
        "text or list of texts that the rewards read instead of the prompts",
        python="It is needed with prompt_embeds.",
        written=None,
    )
    budget: Spec = option(
        None,
        "per prompt: 400nfe, 20images, 30s, 40pflop, or several as 400nfe,30s; nfe are denoiser"
        " evaluations, 20images as many as 20 images take; also min, h",
        python="A ttsnap.loop.budget.Budget is taken as it is.",
        written=str | int | None,
        common=True,
        offered=Offered(
            Annotated[str, MaxLen(60)] | int | float | None, "400nfe, 20images, 10s, ..."
        ),
    )
    effort: str | float | None = option(
        None,
        "instead of a budget: low, medium or high, that is as many evaluations as 5, 20 or 80"
        " images take, or a fraction of high",
        shell="without either it is medium",
    )
    shared: bool = option(False, "put all prompts' budgets together; each takes what it needs")
    seed: int | None = option(
        None,
        "candidate i starts from seed + i",
        python=(
            "Seeds are torch's on the CPU. By default `generator` gives the first one, below 2^32,"
            " and is advanced: its own seed modulo 2^32 as long as nothing was drawn from it, so"
            " that candidate 0 is the image of the stock call, and a seed drawn from it after that."
            " Without a generator torch's global one does (torch.manual_seed)."
        ),
        written=int,
        start=0,
        metavar="N",
        common=True,
        offered=Offered(
            Annotated[int, Interval(ge=0, lt=2**63)] | None,
            "candidate i starts from seed + i; else a random one",
        ),
    )
    on_event: Callable[[Event], None] | None = option(
        None, "called with every Event of the search (ttsnap.core.results)", written=None
    )
    should_stop: Callable[[], bool] | None = option(
        None,
        "asked once per batch; when it says True, prompts under way end with their best finished"
        " image",
        python="Setting `pipe._interrupt = True` does the same.",
        written=None,
    )

    @property
    def rewards(self) -> tuple[Spec, ...]:
        """All that is searched for. ValueError for a tie without a checklist."""
        return rewards_of(self.reward, listed(self.check), self.tie)
