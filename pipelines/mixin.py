"""What turns a stock diffusers pipeline into its search twin."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ttsnap.core.prompt import Prompt
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.files.pictured import blanks
from ttsnap.loop.budget import Budget
from ttsnap.options.call import NOT_TAKEN
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import named_beside, taken
from ttsnap.options.sampler import DRAFT, Finish, SamplerOptions
from ttsnap.options.selection import listed
from ttsnap.pipelines import arguments, output, pipeline_copy, search_class
from ttsnap.pipelines.calls.opening import takes_one_each
from ttsnap.pipelines.calls.parts import DEVICE, denoisers_of, main_first
from ttsnap.pipelines.calls.pictures import TEXT_TO_IMAGE, class_for, main_of, pictures_for, task_of
from ttsnap.pipelines.calls.values import tensors_in
from ttsnap.pipelines.denoiser import PipelineDenoiser
from ttsnap.pipelines.drafting.drafting import finish_drafts, use_drafter
from ttsnap.pipelines.model_defaults import defaults_of
from ttsnap.pipelines.record import model_of
from ttsnap.pipelines.run import SearchOutcome, decisions_of, run
from ttsnap.pipelines.sides import check_sides
from ttsnap.pipelines.variety import couple_seeds
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.reward_models.registry import make_rewards
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.denoiser import Capability
from ttsnap.sampling.drafts import fitting, sized
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.kernels import make_kernel

LATENT_FRAME = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
"""What pipelines call the number of frames that one latent frame stands for."""


class SearchMixin:
    """First base of a search pipeline, before its stock class."""

    denoiser_class: ClassVar[Any] = PipelineDenoiser
    output_class: ClassVar[type[Any]]
    """The stock output class: the one that the code of the stock `__call__` names."""
    task: str | None = None
    """What it was loaded for, where that was said: it then makes images of text, too."""
    own_defaults: ModelDefaults | None = None
    """What its searches take where their users say nothing, in place of what the model's folder
    says."""
    model_options: ModelOptions | None = None
    """What it was opened by, where that was ttsnap (pipelines/opening.py)."""
    check_prompt: Callable[[str], Any] | None = None
    """Raises ValueError for a prompt that the model cannot read; set for models with a closed
    vocabulary."""
    interrupts: int = 0
    """How often `_interrupt` was set to True. Each search under way sees that it is more than at
    its beginning."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock_class = cls.stock_class()
        if stock_class is object:
            return  # a mixin again
        stock = stock_class.__call__
        if "__call__" in vars(cls) or getattr(cls.__call__, "__wrapped__", None) is stock:  # type: ignore[operator]
            return  # a subclass of a search pipeline
        if not hasattr(cls, "output_class"):
            # That of a base, where a subclass hands its arguments on.
            *_, last = (kind for kind in stock_class.__mro__ if "__call__" in vars(kind))
            cls.output_class = output.stock_output(last.__call__)
        parameters = arguments.with_prompt(arguments.call_parameters(stock_class))

        @functools.wraps(stock)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            own = self.stock_arguments()
            asked = arguments.SearchArguments.of(kwargs, own)
            given = arguments.bound(parameters, (self, *args), kwargs)
            if isinstance(given.get("prompt"), Iterator):  # it can be read once only
                given["prompt"] = list(given["prompt"])
            if asked.search.search is None:
                if self.check_prompt is not None:
                    for prompt in arguments.prompts_in(given.get("prompt")):
                        if isinstance(prompt, str):  # the call itself refuses others
                            self.check_prompt(prompt)
                if asked.changed:
                    names = " and ".join(named_beside(name, own) for name in asked.changed)
                    raise ValueError(
                        f"{names} given without search=; name one, as search='best-of-n'"
                    )
                return stock_class.__call__(self, *args, **kwargs)  # perhaps replaced by now
            given.pop("self")
            return self._search(asked, parameters, given)

        call.__signature__ = arguments.signature(parameters)  # type: ignore[attr-defined]
        call.__doc__ = (stock.__doc__ or "") + arguments.SEARCH_ARGUMENTS
        cls.__call__ = call  # type: ignore[method-assign, operator]

    @property
    def _interrupt(self) -> bool:
        """Ends what is under way; the flag of diffusers, which each stock call begins by taking
        back."""
        return bool(vars(self).get("_interrupt", False))

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        vars(self)["_interrupt"] = value
        self.interrupts += bool(value)

    @classmethod
    def stock_class(cls) -> type[Any]:
        """The pipeline class that this one adds search to."""
        return next(base for base in cls.__mro__ if not issubclass(base, SearchMixin))

    @classmethod
    def from_pipe(cls, pipeline: Any, **changes: Any) -> Any:
        """A search pipeline of the parts of another one, with other parts or settings in `changes`.

        As in diffusers the weights are shared. They are cast only when `dtype` is given, and the
        original keeps its hooks and its scheduler. ValueError for changes that this class does not
        know, and for networks of another class.
        """
        old = changes.pop("torch_dtype", None)
        dtype = changes.pop("dtype", None)
        if (other := changes.pop("custom_pipeline", None)) is not None:
            raise ValueError(
                f"from_pipe makes a {cls.__name__}; for {other!r} use DiffusionPipeline.from_pipe"
            )
        theirs = pipeline.stock_class() if isinstance(pipeline, SearchMixin) else type(pipeline)
        if theirs is cls.stock_class() and not changes:
            pipe = pipeline_copy.copied(pipeline, cls)
        else:
            pipe = pipeline_copy.rebuilt(pipeline, cls, changes)
        if dtype is None and old is None:
            return pipe
        return pipe.to(dtype=old if dtype is None else dtype)

    def to_json_string(self) -> str:
        """Saved under the stock class's name, so that plain diffusers can load the folder."""
        text: str = super().to_json_string()  # type: ignore[misc]
        written, stock = (
            f'"_class_name": "{cls.__name__}"' for cls in (type(self), self.stock_class())
        )
        return text.replace(written, stock)

    def stock_call(self) -> Callable[..., Any]:
        """The stock call, of the pipeline and arguments by name."""
        stock: Any = self.stock_class()
        return stock.__call__  # type: ignore[no-any-return]

    def stock_arguments(self) -> Mapping[str, Any]:
        """The arguments of the stock call with their defaults, `Parameter.empty` where is none."""
        parameters = arguments.call_parameters(self.stock_class()).values()
        named = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
        return {each.name: each.default for each in named}

    def call_arguments(self) -> Collection[str]:
        """The arguments of the stock call that a search honours, beside the prompt."""
        return self.stock_arguments().keys() - NOT_TAKEN

    @property
    def _execution_device(self) -> torch.device:
        """As the stock class finds it, but in frames, for which it is known."""
        stock: Any = super()
        found: torch.device = vars(self).get(DEVICE) or stock._execution_device
        return found

    def denoising_network(self) -> str:
        """The name of the part that denoises."""
        parts: Any = self
        return main_first(denoisers_of(parts.components))[0]

    def task_of(self, call: Mapping[str, object]) -> str | None:
        """What a call with these arguments does, where that is not to make images from text
        alone."""
        return task_of(self.stock_arguments(), self.components, call)  # type: ignore[attr-defined]

    def needs_picture(self) -> bool:
        """Whether its call needs a picture."""
        return self.stock_arguments().get("image") is inspect.Parameter.empty

    @classmethod
    def makes_videos(cls) -> bool:
        """Whether its stock call returns frames, or is told how many."""
        returned = {field.name for field in fields(cls.output_class)}
        return bool(returned & {"frames", "videos"}) or "num_frames" in arguments.call_parameters(
            cls.stock_class()
        )

    def frames_every(self) -> int | None:
        """How many frames of a video one latent frame stands for; None where it makes images."""
        if not (self.makes_videos() or "num_frames" in self.stock_arguments()):
            return None
        found = [getattr(self, name) for name in LATENT_FRAME if hasattr(self, name)]
        return int(found[0]) if found else 1

    def boundary(self) -> float | None:
        """Where the second of two networks begins, as a share of the training steps; None for
        models of one network."""
        found: float | None = self.config.get("boundary_ratio")  # type: ignore[attr-defined]
        return found

    def split_prompt_inputs(
        self, prompts: Sequence[Prompt], call: Mapping[str, Any]
    ) -> tuple[list[Prompt], dict[str, Any]]:
        """The prompts with what lists in the call give for each of them, and the call as engines
        take it: with blank pictures of the first prompt's size, its embeddings, and an empty negative
        prompt.
        ValueError for lists of other lengths."""
        named = [each for each in call.items() if "prompt" in each[0]]
        listed: dict[str, Any] = {
            name: each for name, each in named if isinstance(each, list | tuple | Tensor)
        }
        embeds = {name: each for name, each in listed.items() if tensors_in(each)}
        several = pictures_for(call, len(prompts)) if len(prompts) > 1 else {}
        if several and takes_one_each(self, {**call, **several}):
            listed |= several
        split = []
        for i, prompt in enumerate(prompts):
            own = {name: values[i] for name, values in listed.items()}
            own |= {name: values[i : i + 1] for name, values in embeds.items()}
            split.append(replace(prompt, inputs={**prompt.inputs, **own}))
        texts = {name: "" for name in listed if "prompt" in name}
        rows = {name: values[:1] for name, values in embeds.items()}
        return split, {**call, **blanks(split[0].inputs), **texts, **rows}

    def denoiser(self, **call: Any) -> Any:
        """The Denoiser for these arguments of the stock call (sizes, steps, guidance, negative
        prompt, pictures). ValueError for sizes that the model does not draw."""
        pipe: Any = self
        network = getattr(pipe, self.denoising_network())
        size = [call.get(name) or 0 for name in ("height", "width")]
        check_sides(getattr(network, "config", {}), getattr(pipe, "vae_scale_factor", 1), *size)
        twin = self._from_text(call)
        if twin is None:
            return type(self).denoiser_class(self, **call)
        takes = twin.call_arguments()
        return twin.denoiser(**{name: value for name, value in call.items() if name in takes})

    def _from_text(self, call: Mapping[str, Any]) -> Any | None:
        """The search twin for images of text over the same parts.

        That is where a call lacks the picture that its own class redraws; None where it does not,
        or diffusers has no such class.
        """
        if (
            self.task is None
            or "image" not in self.stock_arguments()
            or call.get("image") is not None
        ):
            return None
        kind = class_for(self.stock_class(), TEXT_TO_IMAGE)
        return None if kind is self.stock_class() else search_class(kind).from_pipe(self)

    def engine(
        self, reward: Any, *, network: SharedDenoiser | None = None, **given: Any
    ) -> LiveEngine:
        """What a search of this pipeline runs on, for `ttsnap.search` and
        `ttsnap.recordings.record.record`.

        network: of engines whose calls differ in their steps alone, so that they share batches.
        given: SamplerOptions, EngineOptions, and arguments of `denoiser`, for which the model has
        defaults; drafters are named. The pipeline's `preview_vae` decodes unfinished estimates;
        batches of a compiled network are padded. ValueError for a kernel that is unknown or does
        not fit.
        """
        stock = self.stock_arguments()
        how = taken(SamplerOptions, given, stock), taken(EngineOptions, given, stock)
        call = defaults_of(self).completed(given)
        return self.engine_of(EngineSpec(model_of(self), listed(reward), *how, call), network)

    def engine_of(
        self,
        spec: EngineSpec,
        network: SharedDenoiser | None = None,
        rewards: Sequence[RewardModel] | None = None,
        batch_size: int | None = None,
    ) -> LiveEngine:
        """The engine of a spec, whose call is complete, as above. rewards: those of the spec, where
        they are loaded. batch_size: in its place."""
        denoiser = self.sampling_denoiser(spec.sampler, **spec.call)
        sampler = spec.sampler
        if rewards is None:
            rewards = make_rewards(spec.rewards, device=denoiser.device)
        return LiveEngine(
            denoiser,
            rewards,
            replace(
                spec.batch,
                batch_size=batch_size or spec.batch.batch_size,
                padded=getattr(self, "_search_buckets", False),
                preview=Capability.PREVIEW in denoiser.can,
            ),
            kernel=make_kernel(sampler.kernel, denoiser),
            guidance=None if sampler.guide is None else RewardGuidance.parse(sampler.guide),
            network=network,
        )

    def sampling_denoiser(self, sampler: SamplerOptions, **call: Any) -> Any:
        """`denoiser`, told of the sampler; no drafter where that is left open. ValueError for a
        path that cannot be."""
        sampler = sampler.drafted_by(None)
        denoiser = self._sampled(sampler, call)
        if (how := sampler.repel) is not None:
            couple_seeds(denoiser, how, sampler.kernel)
        if sampler.draft is None or not sampler.finishes:
            return denoiser
        written = (
            denoiser.drafts.drafter.settings.finish if sampler.finish == DRAFT else sampler.finish
        )
        if not written:
            raise ValueError(
                f"nothing is known of where to finish drafts of {sampler.draft}; name a noise level"
                " to begin from, with the steps from there, as finish 0.6:4"
            )
        finish = Finish.parse(written)
        image_nfe = denoiser.grid.nfe
        if numbers := sized(denoiser.grid, finish):
            if given := [name for name in ("sigmas", "timesteps") if call.get(name) is not None]:
                raise ValueError(
                    f"{given[0]} says which steps there are; leave the steps out of finish {finish}"
                )
            shorter = [
                self._sampled(sampler, {**call, "num_inference_steps": steps}) for steps in numbers
            ]
            denoiser = shorter[fitting([each.grid for each in shorter], finish)]
        finish_drafts(denoiser, finish.level, image_nfe)
        return denoiser

    def _sampled(self, sampler: SamplerOptions, call: Mapping[str, Any]) -> Any:
        """The same, whose particles begin as noise."""
        denoiser = self.denoiser(**call)
        if sampler.kernel != "pipeline":
            denoiser.convert(sampler.path, sampler.times)
        elif sampler.path is not None or sampler.times != "pipeline":
            raise ValueError(
                f"the pipeline's own kernel keeps to its path and times, got {sampler.path!r} and "
                f'{sampler.times!r}; choose kernel="ode", "sde" or another'
            )
        if sampler.draft is not None:
            use_drafter(denoiser, sampler.draft)
        return denoiser

    def _search(self, asked: arguments.SearchArguments, known: Any, call: dict[str, Any]) -> Any:
        wanted = asked.search
        stock_call = dict(call)
        takes = self.call_arguments()
        generator = call.pop("generator", None)
        keep, output_type, return_dict = arguments.returned(call, known)
        arguments.refuse_unknown(call, known, {*takes, "prompt"}, type(self).__name__)
        needs_text = "prompt" in self.stock_arguments() or arguments.embeddings_in(call)
        if call.get("prompt") is None and not needs_text:
            call["prompt"] = ""
        prompts = arguments.prompts_of(call, wanted.reward_prompts)
        call = {name: value for name, value in call.items() if name in takes}
        batch = EngineOptions.of(asked.batches, keep=("latents",))
        with arguments.drawn(
            arguments.source_of(wanted.seed, generator, len(prompts) * keep)
        ) as seed:
            request = SearchRequest(
                tuple(prompts),
                EngineSpec(model_of(self), wanted.rewards, asked.sampler, batch, call),
                wanted.search,
                Budget.parse(wanted.budget, wanted.effort),
                seed,
                keep,
                shared=wanted.shared,
                selection=asked.selection,
            )
            search = prepare(request, decisions_of(self))
            stock_call |= search.given
            output.tell(self, stock_call, known)
            found = run(
                search, self, asked.devices, wanted.on_event, wanted.should_stop, form=output_type
            )
        given = {**stock_call, "num_timesteps": len(found.denoiser.schedule.timesteps)}
        output.tell(self, given, known)
        images, more = self.returned(found, search.prompts, output_type)
        if output_type == "pil" and isinstance(images, list):
            output.label_images(images, found.results, found.record)
        output.warn_of_missing(found.results, keep)
        if return_dict:
            return output.make_output(self.output_class, images, found.results, **more)
        return images, found.results

    def returned(
        self, found: SearchOutcome, prompts: Sequence[Prompt], form: str
    ) -> tuple[Any, dict[str, Any]]:
        """What the stock call returns of the images that were found, in a form (output_type); and
        its other fields."""
        denoiser = found.denoiser
        pipe: Any = self
        flagged = form != "latent" and any(found.flags or ())  # in frames no safety checker looks
        if found.latents and denoiser.returns_more and not flagged:
            return self._returned_by_calls(found, prompts, form)
        if form == "latent":
            return self._latents(found), {}
        pixels = [candidate.pixels for result in found.results for candidate in result.images]
        images = output.converted(pixels, form, denoiser.image_dtype, pipe._execution_device)
        return images, {"nsfw_content_detected": found.flags}

    def _latents(self, found: SearchOutcome) -> Any:
        """Final latents in the dtype in which the stock call returns them."""
        if not found.latents:
            return []
        pipe: Any = self
        return found.denoiser.settled(torch.stack(found.latents).to(pipe._execution_device))

    def _returned_by_calls(
        self, found: SearchOutcome, prompts: Sequence[Prompt], form: str
    ) -> tuple[Any, dict[str, Any]]:
        """The same, where stock calls return more than the pictures that searches see."""
        denoiser = found.denoiser
        denoiser.encode(prompts)
        counts = torch.tensor([len(result.images) for result in found.results])
        jobs = torch.arange(len(counts)).repeat_interleave(counts)
        seeds = [image.seed for result in found.results for image in result.images]
        cond = denoiser.conditions(jobs, seeds)
        made = [
            denoiser.returned(latents[None], at, form)
            for latents, at in zip(found.latents, cond, strict=True)
        ]
        pipe: Any = self
        pipe.maybe_free_model_hooks()
        names = vars(made[0]).keys()
        more = {name: output.joined([getattr(each, name) for each in made]) for name in names}
        images = output.joined(list(map(main_of, made)))
        flags = None if form == "latent" else found.flags  # which the stock call checks images for
        return images, {**more, "nsfw_content_detected": flags}
