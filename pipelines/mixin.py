"""What turns a stock diffusers pipeline into its search twin."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.outputs import BaseOutput
from tqdm.auto import tqdm

from ttsnap import utility as utilities
from ttsnap.algorithms import make_algorithm
from ttsnap.budget import Budget
from ttsnap.live import LiveEngine, score_images
from ttsnap.rewards import make_rewards
from ttsnap.samplers import KERNELS
from ttsnap.search import search as run_search
from ttsnap.types import Event, Result, Reward

SEARCH_ARGUMENTS = """
Search arguments (without `search` the call is the stock one):
    search: algorithm: a name of ttsnap.algorithms.ALGORITHMS, a JSON file, or an Algorithm.
    reward: reward or list of rewards: names, functions (images, prompts) -> scores, "file.py:function", Rewards.
    budget: per prompt, like "400nfe", "2pflop", "30s", or a ttsnap.budget.Budget.
    effort: instead of a budget, "low", "medium" or "high" (5, 20, 80 images' worth of evaluations), or a fraction.
    utility: how several rewards become one number: "mean", "rank_sum" or a list of weights.
    kernel: "pipeline" (the scheduler's own step), "ode" or "sde".
    seed: candidate i starts from torch seed `seed + i`; by default that of `generator`, else 0.
    batch_size, decode_batch_size: most particles per denoiser call and images per decode.
    shared: let the prompts draw on one common budget.
    report: rewards that only score the returned images (`Candidate.metrics`), outside the budget.
    on_event, should_stop: see ttsnap.search.search.
`num_images_per_prompt` is how many images come back per prompt, best first. The output's `.search` is the list of
ttsnap.types.Result, one per prompt.
"""


@dataclass
class SearchOutput(BaseOutput):
    """`images` as in the stock output, all prompts in order, each prompt's best first; `search` one Result a prompt."""

    images: Any
    search: list[Result]


# Arguments of stock calls that search cannot honour: (name, why).
REFUSED: dict[str, str] = {
    "latents": "every candidate draws its own from its seed",
    "callback_on_step_end": "use on_event",
    "prompt_embeds": "pass prompts",
    "negative_prompt_embeds": "pass negative_prompt",
    "pooled_prompt_embeds": "pass prompts",
    "negative_pooled_prompt_embeds": "pass negative_prompt",
    "ip_adapter_image": "image prompts are not supported",
    "ip_adapter_image_embeds": "image prompts are not supported",
    "skip_guidance_layers": "skip-layer guidance is not supported",
}
_SEARCH: dict[str, Any] = {
    "search": None,
    "reward": None,
    "budget": None,
    "effort": None,
    "utility": "mean",
    "kernel": "pipeline",
    "seed": None,
    "batch_size": 16,
    "decode_batch_size": None,
    "shared": False,
    "report": None,
    "on_event": None,
    "should_stop": None,
}


class SearchMixin:
    """First base of a search pipeline, before its stock class; `denoiser_class` is the family's Denoiser."""

    device: torch.device
    denoiser_class: ClassVar[Callable[..., Any]]
    check_prompt: Callable[[str], Any] | None = None
    """Raises ValueError for a prompt that the model cannot read; set for models with a closed vocabulary."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock = next(base for base in cls.__mro__ if "__call__" in vars(base) and base is not SearchMixin).__call__
        stock_parameters = inspect.signature(stock).parameters
        added = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v) for k, v in _SEARCH.items()]

        @functools.wraps(stock)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = {k: kwargs.pop(k) for k in _SEARCH if k in kwargs}
            prompt = args[0] if args else kwargs.get("prompt")
            if self.check_prompt is not None:
                for text in [prompt] if isinstance(prompt, str) else prompt or []:
                    self.check_prompt(text)
            if chosen.get("search") is None:
                if chosen and any(v is not None for v in chosen.values()):
                    raise ValueError(f"{sorted(chosen)} given without search=; name one, as search='best-of-n'")
                return stock(self, *args, **kwargs)
            bound = inspect.signature(stock).bind(self, *args, **kwargs).arguments
            bound.pop("self")
            return self._search({**_SEARCH, **chosen}, stock_parameters, bound)

        signature = inspect.Signature([*stock_parameters.values(), *added])
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = (stock.__doc__ or "") + SEARCH_ARGUMENTS
        cls.__call__ = call  # type: ignore[method-assign, operator]

    def to_json_string(self) -> str:
        """Saved under the stock class's name, so that plain diffusers can load the folder."""
        name = type(self).__name__
        text: str = super().to_json_string()  # type: ignore[misc]
        return text.replace(f'"_class_name": "{name}"', f'"_class_name": "{name.removeprefix("Search")}"')

    def denoiser(self, **call: Any) -> Any:
        """The family's Denoiser for these arguments of the stock call (sizes, steps, guidance, negative prompt)."""
        return type(self).denoiser_class(self, **call)

    def engine(
        self,
        reward: Any,
        *,
        kernel: str = "pipeline",
        batch_size: int = 16,
        decode_batch_size: int | None = None,
        keep: Sequence[str] = (),
        features_block: int | None = None,
        **call: Any,
    ) -> LiveEngine:
        """What a search of this pipeline runs on, for `ttsnap.search` and `ttsnap.record.record`.

        reward, kernel and batch sizes as in the call; keep and features_block as in LiveEngine; `call` as in
        `denoiser`. ValueError for an unknown kernel.
        """
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}; choose one of {list(KERNELS)}")
        denoiser = self.denoiser(**call)
        return LiveEngine(
            denoiser,
            make_rewards(reward, device=self.device),
            kernel=KERNELS[kernel](denoiser),
            batch_size=batch_size,
            decode_batch_size=decode_batch_size,
            keep=keep,
            features_block=features_block,
        )

    def _search(self, opts: dict[str, Any], stock: Any, call: dict[str, Any]) -> Any:
        for name in [n for n in call if n in REFUSED and call[n] is not None]:
            raise ValueError(f"{name}= cannot be used with search=: {REFUSED[name]}")
        prompt = call.pop("prompt", None)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"search needs a prompt or a list of prompts, got {prompt!r}")
        if opts["reward"] is None:
            raise ValueError("search needs reward=: a name, a function (images, prompts) -> scores, or a list of them")
        keep = call.pop("num_images_per_prompt", None)
        keep = 1 if keep is None else keep
        seed = _seed(opts["seed"], call.pop("generator", None))
        output_type, return_dict = call.pop("output_type", "pil"), call.pop("return_dict", True)
        if output_type not in ("pil", "pt", "np"):
            raise ValueError(f'output_type must be "pil", "pt" or "np" under search, got {output_type!r}')
        algorithm = make_algorithm(opts["search"])
        utility = opts["utility"] if callable(opts["utility"]) else utilities.make(opts["utility"])
        if opts["budget"] is not None and opts["effort"] is not None:
            raise ValueError(f"give budget= or effort=, not both: {opts['budget']!r} and {opts['effort']!r}")
        effort = opts["effort"]
        rewards, budget = make_rewards(opts["reward"], device=self.device), Budget.parse(opts["budget"])
        budget = budget if effort is None else Budget.of_effort(effort)
        report = make_rewards(opts["report"], device=self.device) if opts["report"] else ()
        takes = inspect.signature(type(self).denoiser_class).parameters
        unknown = [n for n, v in call.items() if n not in takes and n not in REFUSED and v != stock[n].default]
        if unknown:
            raise ValueError(f"{unknown} cannot be used with search= for {type(self).__name__}")
        engine = self.engine(
            rewards,
            **{n: opts[n] for n in ("kernel", "batch_size", "decode_batch_size")},
            **{n: v for n, v in call.items() if n in takes},
        )
        try:
            results = self._run(prompts, algorithm, engine, budget, utility, seed, keep, opts)
            results = [_report(result, report) for result in results]
        finally:
            self.maybe_free_model_hooks()  # type: ignore[attr-defined]
        images = _convert([c.image for r in results for c in r.images], output_type)
        return SearchOutput(images=images, search=results) if return_dict else (images, results)

    def _run(
        self,
        prompts: Sequence[str],
        algorithm: Any,
        engine: LiveEngine,
        budget: Budget,
        utility: Any,
        seed: int,
        keep: int,
        opts: dict[str, Any],
    ) -> list[Result]:
        """The search, with a progress bar styled as the pipeline's, counting evaluations."""
        total = budget.nfe * len(prompts) if (budget := budget.on(engine.grid)).nfe else None
        style = {"total": total, "unit": "nfe", "desc": "search", **getattr(self, "_progress_bar_config", {})}
        bar: Any = None

        def listen(event: Event) -> None:
            nonlocal bar
            if bar is None:  # opened late, so that refused input leaves no empty bar
                bar = tqdm(**style)
            if event.kind == "tick":
                bar.update(event.nfe)
            elif event.kind == "score" and event.best == event.best:
                bar.set_postfix(best=f"{event.best:.3f}", refresh=False)
            if opts["on_event"] is not None:
                opts["on_event"](event)

        try:
            return run_search(
                prompts,
                algorithm,
                engine,
                budget,
                utility=utility,
                seed=seed,
                keep=keep,
                shared=opts["shared"],
                on_event=listen,
                should_stop=opts["should_stop"],
            )
        finally:
            if bar is not None:
                bar.close()


def _report(result: Result, metrics: Sequence[Reward]) -> Result:
    """The result with these metrics on its images."""
    if not metrics or not result.images:
        return result
    images = torch.stack([c.image for c in result.images])
    n = len(images)
    columns, failed = {}, []
    for metric in metrics:
        columns[metric.name], error = score_images(metric, images, [result.prompt] * n, torch.zeros(n))
        failed += [f"the reported {error}"] if error else []
    scored = [
        replace(c, metrics={name: float(column[i]) for name, column in columns.items()})
        for i, c in enumerate(result.images)
    ]
    return replace(result, images=tuple(scored), warnings=(*result.warnings, *failed))


def _seed(seed: int | None, generator: Any) -> int:
    if isinstance(generator, list):
        if len(generator) > 1:
            raise ValueError("search numbers its seeds itself: pass seed= or one generator, not a list")
        generator = generator[0] if generator else None
    if seed is None:
        seed = int(generator.initial_seed()) if generator is not None else 0
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return seed


def _convert(images: list[torch.Tensor], output_type: str) -> Any:
    if not images:
        return []
    stack = torch.stack(images)
    if output_type == "pt":
        return stack
    array = VaeImageProcessor.pt_to_numpy(stack)
    return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)
