"""Arguments of a search call: what each one means, and what cannot be honoured is refused."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

SEARCH_ARGUMENTS = """
Search arguments (without `search` the call is the stock one):
    search: algorithm: a name of ttsnap.algorithms.ALGORITHMS, a JSON file, or an Algorithm.
    reward: reward or list of rewards: names, functions (images, prompts) -> scores, "file.py:function", Rewards.
    reward_prompts: text or list of texts that the rewards read instead of the prompts; needed with prompt_embeds.
    budget: per prompt, like "400nfe", "20images", "40pflop", "30s", or a ttsnap.loop.budget.Budget.
    effort: instead of a budget, "low", "medium" or "high" (5, 20, 80 images' worth of evaluations), or a fraction.
    utility: how several rewards become one number: "mean", "rank_sum" or a list of weights.
    kernel: "pipeline" (the scheduler's own step), "ode", "sde", "ddim", "ancestral", "renoise"
        (ttsnap.sampling.kernels).
    path, times: for the other kernels, the path between data and noise ("linear", "vp", "cosine", ...; by default the
        model's own) and its points ("pipeline", "uniform", "sqrt"): ttsnap.pipelines.convert.
    guide: steps of a stochastic kernel follow the rewards' gradient: "dps:1", "twisted:10", "tilted:0.1", with ":x0"
        after it to spare the denoiser's backward pass, and levels as ":0.9-0.2" (ttsnap.sampling.guided_steps);
        gradient_batch_size: most rows of such a call.
    noises: "independent" initial noises of seeds, or "orthogonal" or "antithetic" ones (ttsnap.sampling.noises).
    seed: candidate i starts from torch seed `seed + i`, on the CPU. By default `generator` gives the first one, and is
        advanced: its own seed as long as nothing was drawn from it, so that candidate 0 is the image of the stock call,
        and a seed drawn from it after that. Without a generator torch's global one does (torch.manual_seed).
    batch_size, decode_batch_size: most particles per denoiser call and images per decode; by default as many as fit
        into a GPU's memory, measured, and 16 elsewhere.
    shared: let the prompts draw on one common budget.
    report: rewards that only score the returned images (`Candidate.metrics`), outside the budget.
    on_event, should_stop: see ttsnap.search. Setting `pipe._interrupt = True` stops early, too.
`num_images_per_prompt` is how many images come back per prompt, best first; fewer, with a warning, where the budget did
not finish as many: `.search[i].images` are those of prompt i. The output is the stock one with
`.search`, the list of ttsnap.core.results.Result, one per prompt; with return_dict=False it is (images, results). With
output_type="latent" its images are the winners' final latents.
"""
DEFAULTS: dict[str, Any] = {
    "search": None,
    "reward": None,
    "reward_prompts": None,
    "budget": None,
    "effort": None,
    "utility": "mean",
    "kernel": "pipeline",
    "path": None,
    "times": "pipeline",
    "noises": "independent",
    "guide": None,
    "gradient_batch_size": None,
    "seed": None,
    "batch_size": None,
    "decode_batch_size": None,
    "shared": False,
    "report": None,
    "on_event": None,
    "should_stop": None,
}
ENGINE = ("kernel", "path", "times", "guide", "gradient_batch_size", "noises", "batch_size", "decode_batch_size")
"""Those of them that SearchMixin.engine takes."""
# What to do instead, where a family's search does not take an argument of the stock call.
INSTEAD: dict[str, str] = {
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


def signature(stock: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """A stock signature and the search arguments, by keyword only."""
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=v) for name, v in DEFAULTS.items()]
    return inspect.Signature(sorted([*stock.values(), *added], key=lambda parameter: parameter.kind))


def bound(
    parameters: Mapping[str, inspect.Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, those in **kwargs among them. TypeError for names that it does not have."""
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise TypeError(f"unexpected keyword argument {name!r}{_meant(name, parameters)}")
    found = inspect.Signature(list(parameters.values())).bind(*args, **kwargs).arguments
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return found


def refuse_unknown(call: Mapping[str, Any], known: Mapping[str, inspect.Parameter], takes: Any, who: str) -> None:
    """ValueError for arguments, other than at their defaults, that the family's denoiser does not take."""
    refused = [n for n, v in call.items() if n not in takes and not (n in known and _same(v, known[n].default))]
    for name in refused:
        if name in INSTEAD:
            raise ValueError(f"{name}= cannot be used with search=: {INSTEAD[name]}")
    if refused:
        meant = "".join(_meant(name, takes) for name in refused if name not in known)
        raise ValueError(f"{refused} cannot be used with search= for {who}{meant}")


def _meant(name: str, known: Iterable[str]) -> str:
    """A question, where a name looks like a misspelt one."""
    near = difflib.get_close_matches(name, [*known, *DEFAULTS], n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


def changed(chosen: Mapping[str, Any]) -> list[str]:
    """Which of these search arguments are not at their defaults."""
    return sorted(name for name, value in chosen.items() if not _same(value, DEFAULTS[name]))


def _same(value: Any, default: Any) -> bool:
    plain = (bool, int, float, str, list, tuple, dict)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and value == default)


def refuse_step_caches(parts: Mapping[str, Any]) -> None:
    """ValueError when a module reuses results of earlier steps: they belong to the rows of an earlier batch."""
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            continue
        registries = (getattr(module, "_diffusers_hook", None) for module in part.modules())
        hooks = [hook for registry in registries if registry is not None for hook in registry.hooks.values()]
        stateful = sorted({type(hook).__name__ for hook in hooks if getattr(hook, "_is_stateful", False)})
        if stateful or getattr(part, "is_cache_enabled", False):
            raise ValueError(
                f"{name} has a step cache ({', '.join(stateful) or 'enable_cache'}), whose rows would be mixed up when "
                f"candidates are pruned; call pipe.{name}.disable_cache() before a search"
            )


def texts_in(prompt: Any) -> list[Any]:
    """The prompts of a call, unchecked: of a text or of a list of texts; none of anything else."""
    return [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, list | tuple) else []


def texts_of(call: dict[str, Any], reward_prompts: Any) -> tuple[list[str], list[str]]:
    """What the model encodes and what the rewards read, one text a prompt. Takes `prompt` out of the call.

    Raises ValueError unless every argument named like a prompt and given as a list or tensor has one entry a prompt.
    """
    prompt, embeds = call.pop("prompt", None), call.get("prompt_embeds")
    if prompt is not None and embeds is not None:
        raise ValueError("give prompt= or prompt_embeds=, not both; reward_prompts= says what the rewards read")
    if prompt is None and embeds is not None:
        if reward_prompts is None:
            raise ValueError("with prompt_embeds= and no prompt=, reward_prompts= must say what the rewards read")
        prompts, n = None, len(embeds)
    else:
        prompts = texts_in(prompt)
        n = len(prompts)
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"search needs a prompt or a list of prompts, got {prompt!r}")
    for name, value in call.items():
        if "prompt" in name and isinstance(value, list | tuple | Tensor) and len(value) != n:
            raise ValueError(f"{name} has {len(value)} entries, but there are {n} prompts; give one entry a prompt")
    read = prompts if reward_prompts is None else reward_prompts
    read = [read] * n if isinstance(read, str) else list(read or ())
    if len(read) != n or not all(isinstance(text, str) for text in read):
        raise ValueError(f"reward_prompts has {len(read)} entries, but there are {n} prompts; give a text for each")
    return read if prompts is None else prompts, read
