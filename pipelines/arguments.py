"""Arguments of a search call: what each one means, what cannot be honoured and is refused, and the
first seed."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttsnap.core.names import did_you_mean
from ttsnap.core.prompt import Prompt
from ttsnap.files.settings import check, kinds_of
from ttsnap.options.call import CALL
from ttsnap.options.engine import BatchOptions, DeviceOptions
from ttsnap.options.every import DECLARED
from ttsnap.options.option import Option, changed, named_beside, same, taken
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.options.selection import SelectionOptions
from ttsnap.request.request import checked_seed


class SearchArguments(NamedTuple):
    """The search arguments of a call."""

    search: SearchOptions
    sampler: SamplerOptions
    batches: BatchOptions
    devices: DeviceOptions = DeviceOptions()
    selection: SelectionOptions = SelectionOptions()

    @classmethod
    def of(cls, given: dict[str, Any], stock: Collection[str] = ()) -> SearchArguments:
        """From the arguments of a call, out of which they are taken; those that are not there at
        their defaults. stock: the names of the stock call's own."""
        return cls(
            taken(SearchOptions, given, stock),
            taken(SamplerOptions, given, stock),
            taken(BatchOptions, given, stock),
            taken(DeviceOptions, given, stock),
            taken(SelectionOptions, given, stock),
        )

    @property
    def changed(self) -> list[str]:
        """The names of those that are not at their defaults; no drafter is none to speak of."""
        given = sorted(name for part in self for name in changed(part))
        return [name for name in given if name != "draft" or self.sampler.draft is not None]


def _explained(option: Option) -> str:
    text = f"{option.name}: {option.documented}"
    return textwrap.fill(
        text, 120, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False
    )


SEARCH_ARGUMENTS = f"""
Search arguments (without `search` the call is the stock one). A name that the stock call has, too, is the stock call's:
the search argument is then called search_NAME.
{chr(10).join(map(_explained, DECLARED.values()))}
`num_images_per_prompt` is how many images come back per prompt, best first; fewer, with a warning, where the budget did
not finish as many: `.search[i].images` are those of prompt i. The output is the stock one with
`.search`, the list of ttsnap.core.results.Result, one per prompt; with return_dict=False it is (images, results). With
output_type="latent" its images are the winners' final latents.
"""
# What to do instead of arguments that a search, or a model, does not take.
INSTEAD: dict[str, str] = {
    "seed": "candidate i starts from search_seed + i",
    "batch_size": "num_images_per_prompt is how many images come back",
    "latents": "every candidate draws its own from its seed",
    "audio_latents": "every candidate draws its own from its seed",
    **dict.fromkeys(
        (
            "callback_on_step_end",
            "callback_on_step_end_tensor_inputs",
            "callback",
            "callback_steps",
        ),
        "use on_event",
    ),
    "timesteps": "its steps are set by num_inference_steps",
    "denoising_end": "a search scores finished images, not latents for a refiner",
    "prompt_2": "this search gives one text to all encoders; leave it out",
    "negative_prompt": "this search takes no negative prompts",
    "negative_prompt_2": "this search takes no negative prompts",
    "true_cfg_scale": "it guides by a negative prompt, and this search takes none",
    "guidance_scale": "this model is not guided by a scale; leave it out",
    "guidance_scale_2": "this model has one network; use guidance_scale",
    "state": "pass its values by name, as prompt=",
    "output": "a search returns its images",
}
_SAME = (("guidance_scale", "true_cfg_scale"), ("attention_kwargs", "joint_attention_kwargs"))
# What one call names so and another so.
ALIASES = {**dict(_SAME), **{there: here for here, there in _SAME}}


def call_parameters(kind: type[Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class's `__call__` and, where it takes **kwargs, of that of its base, to
    which it may hand them on."""
    found = dict[str, inspect.Parameter]()
    for base in kind.__mro__:
        if "__call__" in vars(base):
            own: Any = inspect.signature(vars(base)["__call__"]).parameters
            found = {**found, **own, **found}
            if "kwargs" not in own:
                break
    found.pop("args", None)
    return dict(sorted(found.items(), key=lambda named: named[1].kind))


def signature(stock: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """A stock signature and the search arguments, by keyword only."""
    added = [
        inspect.Parameter(
            named_beside(o.name, stock), inspect.Parameter.KEYWORD_ONLY, default=o.default
        )
        for o in DECLARED.values()
    ]
    return inspect.Signature(
        sorted([*stock.values(), *added], key=lambda parameter: parameter.kind)
    )


def with_prompt(stock: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    """Parameters of a stock call and, where it has none, those of a prompt that only rewards read,
    and of how many images come back."""
    given = dict(stock)
    for name in ("prompt", "num_images_per_prompt"):
        more = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        given.setdefault(name, more)
    return dict(sorted(given.items(), key=lambda named: named[1].kind))


def bound(
    parameters: Mapping[str, inspect.Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name; those that fall under **kwargs are listed like the others.

    TypeError where the arguments do not fit the signature.
    """
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise TypeError(f"unexpected keyword argument {name!r}{_meant(name, parameters)}")
    arguments = inspect.Signature(list(parameters.values())).bind(*args, **kwargs).arguments
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def returned(call: dict[str, Any], known: Mapping[str, inspect.Parameter]) -> tuple[int, str, bool]:
    """How many images, or videos, of each prompt are returned, in which form (output_type), and
    whether in an output object (return_dict): taken out of the call, at the stock call's
    defaults."""
    asked = [call.pop(name, None) for name in ("num_images_per_prompt", "num_videos_per_prompt")]
    keep = next((number for number in asked if number is not None), 1)
    form = known["output_type"].default if "output_type" in known else "pil"
    return keep, call.pop("output_type", form), call.pop("return_dict", True)


def refuse_unknown(
    call: Mapping[str, Any], known: Mapping[str, inspect.Parameter], takes: Any, who: str
) -> None:
    """ValueError for arguments, other than at their defaults, that the search does not
    take, and for texts in the place of numbers."""
    for name, value in call.items():
        if isinstance(value, str) and name in CALL and str not in kinds_of(CALL[name].hint):
            check(name, value, CALL[name].hint)
    refused = [
        n
        for n, v in call.items()
        if n not in takes and not (n in known and same(v, known[n].default))
    ]
    for name in refused:
        if ALIASES.get(name) in takes and "negative_prompt" in takes:
            raise ValueError(f"{name}= cannot be used with search=: use {ALIASES[name]}")
        if name in INSTEAD:
            raise ValueError(f"{name}= cannot be used with search=: {INSTEAD[name]}")
    if refused:
        meant = "".join(_meant(name, takes) for name in refused if name not in known)
        raise ValueError(f"{refused} cannot be used with search= for {who}{meant}")


def _meant(name: str, known: Iterable[str]) -> str:
    """A question, where a name looks like a misspelt one."""
    return did_you_mean(name, [*known, *DECLARED])


def prompts_in(prompt: Any) -> list[Any]:
    """The prompts of a call, unchecked: of one or of a list of them; none of anything else."""
    if isinstance(prompt, str | Prompt):
        return [prompt]
    return list(prompt) if isinstance(prompt, list | tuple) else []


def embeddings_in(call: Mapping[str, Any], sign: str = "") -> list[Any]:
    """Embeddings among arguments that stand for the prompts, or for negative_ ones."""
    named = [name for name in call if name.startswith(f"{sign}prompt_embeds")]
    found = [call[name] for name in named if "mask" not in name]
    return [value for value in found if isinstance(value, list | tuple | Tensor)]


def prompts_of(call: dict[str, Any], reward_prompts: Any) -> list[Prompt]:
    """What is searched for: what the model encodes, and what the rewards read. Takes `prompt` out
    of the call.

    Raises ValueError unless every argument named like a prompt and given as a list or tensor has
    one entry a prompt, and for texts beside their embeddings.
    """
    prompt = call.pop("prompt", None)
    embeds = next(iter(embeddings_in(call)), None)
    if prompt is not None and embeds is not None:
        raise ValueError(
            f"give prompt= or prompt_embeds=, not both, and prompt is {prompt!r}; reward_prompts="
            " says what the rewards read"
        )
    if prompt is None and embeds is not None:
        if reward_prompts is None:
            raise ValueError(
                "with prompt_embeds= and no prompt=, reward_prompts= must say what the rewards read"
            )
        given = None
        n = len(embeds)
    else:
        given = prompts_in(prompt)
        n = len(given)
        if not given or not all(isinstance(p, str | Prompt) for p in given):
            raise ValueError(f"search needs a prompt or a list of prompts, got {prompt!r}")
    for name, value in call.items():
        if "prompt" in name and isinstance(value, list | tuple | Tensor) and len(value) != n:
            raise ValueError(
                f"{name} has {len(value)} entries, but there are {n} prompts; give one entry a"
                " prompt"
            )
    for sign in ("", "negative_"):
        if any(each is None for value in embeddings_in(call, sign) for each in value):
            raise ValueError(
                f"{sign}prompt_embeds are None for some of the {n} prompts; give them for all, or"
                " search for the others by a call of their own"
            )
    read = [reward_prompts] * n if isinstance(reward_prompts, str) else list(reward_prompts or ())
    if reward_prompts is not None and (
        len(read) != n or not all(isinstance(text, str) for text in read)
    ):
        raise ValueError(
            f"reward_prompts has {len(read)} entries, but there are {n} prompts; give a text for"
            " each"
        )
    prompts = [Prompt.of(each) for each in (read if given is None else given)]
    negative = [call.get("negative_prompt"), *(each.negative for each in prompts)]
    negative = [text for text in negative if text is not None]
    if negative and embeddings_in(call, "negative_"):
        raise ValueError(
            "give negative_prompt= or negative_prompt_embeds=, not both, and negative_prompt is"
            f" {negative[0]!r}"
        )
    if given is None or not read:
        return prompts
    return [replace(each, reward_text=text) for each, text in zip(prompts, read, strict=True)]


# --- the first seed -------------------------------------------------------------------------------

DRAWN = 2**32
"""How many seeds differ in torch's generator on the CPU, which draws the noise. Other tools read no
larger ones."""


def source_of(
    seed: int | None, generator: torch.Generator | list[torch.Generator] | None, images: int
) -> int | torch.Generator:
    """The seed or generator of a call that returns so many images; nothing is drawn yet.

    A list with one generator is taken for one image. ValueError for other lists, for both arguments
    at once, and for a seed that torch does not take.
    """
    if isinstance(generator, list):
        if len(generator) != 1 or images != 1:
            raise ValueError(
                f"generator= is a list of {len(generator)}, for {images} images: a search numbers"
                " its seeds itself; pass seed= or one generator, not a list"
            )
        (generator,) = generator
    if seed is not None and generator is not None:
        raise ValueError(
            f"give seed= or generator=, not both: a search starts from one seed, and seed is {seed}"
        )
    if seed is not None:
        return checked_seed(seed)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator= must be a torch.Generator, got {generator!r}; seed= takes a number"
        )
    if generator is None:
        return torch.default_generator
    if generator.device.type != "cpu":
        warnings.warn(
            "a search draws noise on the CPU, and takes the seed alone of a generator on"
            f" {generator.device}: the stock call makes another image of it; pass"
            " torch.Generator().manual_seed(...) to both",
            stacklevel=2,
        )
    return generator


def first_seed(source: int | torch.Generator) -> int:
    """The number itself, or the next seed of a generator, which advances.

    Before any draw that is the generator's own seed, modulo 2^32, so that candidate 0 starts from
    the noise of a stock call: torch's generator on the CPU is the same for both. Later it is a
    number drawn from the generator, below 2^32.
    """
    if isinstance(source, int):
        return source
    unused = torch.Generator(source.device).manual_seed(source.initial_seed())
    own = torch.equal(source.get_state(), unused.get_state())
    drawn = torch.randint(DRAWN, (), generator=source, device=source.device)
    return source.initial_seed() % DRAWN if own else int(drawn)


@contextmanager
def drawn(source: int | torch.Generator) -> Iterator[int]:
    """The first seed, for a block: a call that is refused in it, by a ValueError, leaves the
    generator as it was."""
    before = None if isinstance(source, int) else source.get_state()
    try:
        yield first_seed(source)
    except ValueError:
        if before is not None and isinstance(source, torch.Generator):
            source.set_state(before)
        raise
