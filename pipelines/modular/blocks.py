"""A workflow of a modular pipeline, split at its loop, and its blocks run one by one.

`ModularPipeline.__call__` runs all blocks for one batch. Here blocks before the loop run once for a prompt or a seed.
Those in the loop run for rows at any steps, and those after it for any latents.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks, PipelineState
from PIL.Image import Image, new
from torch import Generator, Tensor, as_tensor

Block: TypeAlias = Any
"""A ModularPipelineBlocks; diffusers' types lack its call and its inputs."""
CallState: TypeAlias = Any
"""A PipelineState: values by name."""
STEP = "after_denoiser"
"""The block in every loop of diffusers' workflows that calls the scheduler's step. Blocks before it denoise."""
SOUND = "audio"
"""The field with the sound of a video, in the workflows that make it."""


class Parts(NamedTuple):
    """The blocks of a workflow."""

    before: tuple[Block, ...]
    """Those before the loop."""
    loop: Block
    """The loop itself, whose inputs are what rows need."""
    denoise: tuple[Block, ...]
    """Those of the loop before the scheduler's step."""
    end: tuple[Block, ...]
    """Those after the loop, which make images of latents."""
    sound: tuple[Block, ...]
    """Those after the loop that make the sound of a video."""


def parts_of(workflow: Block) -> Parts:
    """The parts of a workflow without conditional blocks (get_execution_blocks). ValueError for other loops."""
    blocks = list(workflow.sub_blocks.values())
    loops = [i for i, block in enumerate(blocks) if isinstance(block, LoopSequentialPipelineBlocks)]
    if len(loops) != 1 or STEP not in blocks[loops[0]].sub_blocks:
        raise ValueError(f"{type(workflow).__name__} has {len(loops)} loops of blocks, or none with a block {STEP!r}; "
                         "search takes pipelines that denoise in one such loop")  # fmt: skip
    at = loops[0]
    names = takewhile(lambda name: name != STEP, blocks[at].sub_blocks)
    denoise = tuple(blocks[at].sub_blocks[name] for name in names)
    end = [block for block in blocks[at + 1 :] if SOUND not in block.intermediate_output_names]
    sound = [block for block in blocks[at + 1 :] if SOUND in block.intermediate_output_names]
    return Parts(tuple(blocks[:at]), blocks[at], denoise, tuple(end), tuple(sound))


def fitted(block: Block, *, sized: bool, classic: bool) -> Block:
    """The block, or what takes its place so that pictures of any form and shape can be given.

    sized: whether it is a video of a size, which the block of a first frame replaces by one of
    that frame's shape.
    classic: whether frames are left to the VAE's processor, as in classic pipelines; else the
    block's own filter resizes the first, and the last is cropped as its block does.
    """
    if "_auto_resize" in block.input_names:
        return partial(_processed, block)
    for frame in ("image", "last_image") if classic else ("image",):
        if sized and f"resized_{frame}" in block.intermediate_output_names:
            return partial(_at_size, frame, classic)
    return block


def _at_size(frame: str, classic: bool, pipe: Any, state: CallState) -> tuple[Any, CallState]:
    picture = state.get(frame)
    every = pipe.vae_scale_factor_spatial * pipe.patch_size_spatial
    width, height = (state.get(side) // every * every for side in ("width", "height"))
    state.set("width", width)
    state.set("height", height)
    if isinstance(picture, Image) and not classic:
        picture = picture.resize((width, height))
    state.set(f"resized_{frame}", picture)
    return pipe, state


def _processed(block: Block, pipe: Any, state: CallState) -> Any:
    """FLUX Kontext's block, for tensors and arrays (1, ...) as well: it reads no size of these."""
    image, processor = state.get("image"), pipe.image_processor
    if getattr(image, "ndim", 0) != 4:
        return block(pipe, state)
    height, width = processor.get_default_height_width(image)
    state.set("image", new("RGB", (width, height)))
    block(pipe, state)
    height, width = state.get("processed_image").shape[-2:]
    state.set("processed_image", processor.preprocess(image, height, width))
    return pipe, state


def start(workflow: Block, given: Mapping[str, Any]) -> CallState:
    """The state at the beginning of a call with these arguments, completed with defaults."""
    state = PipelineState()
    for parameter in workflow.inputs:
        if parameter.name is not None:
            state.set(parameter.name, given.get(parameter.name, parameter.default), parameter.kwargs_type)
    return state


def check_inputs(workflow: Block, task: str, call: Mapping[str, Any], besides: Collection[str] = ()) -> None:
    """ValueError for arguments that no block of this workflow reads, which the stock call ignores silently, and for
    videos without num_frames. besides: inputs that its blocks take and do not use."""
    read = set(workflow.input_names) - set(besides)
    if unread := sorted({name for name, value in call.items() if value is not None} - read):
        raise ValueError(f"{' and '.join(unread)} cannot be used here: a call with these images does {task}, whose "
                         "blocks read nothing of the kind")  # fmt: skip
    if any("num_frames" in block.intermediate_output_names for block in workflow.sub_blocks.values()):
        raise ValueError("give num_frames: without it a network chooses the length for each prompt, but videos of one "
                         "search have one length")  # fmt: skip


def forked(state: CallState, **changes: Any) -> CallState:
    """A copy of a state with some values changed."""
    other = PipelineState(dict(state.values), {kind: list(names) for kind, names in state.kwargs_mapping.items()})
    for name, value in changes.items():
        other.set(name, value)
    return other


def run(pipe: Any, blocks: Iterable[Block], state: CallState) -> CallState:
    """The state after these blocks, run one after the other."""
    for block in blocks:
        _, state = block(pipe, state)
    return state


def first_that_draws(
    pipe: Any, blocks: Iterable[Block], state: CallState, generator: Generator
) -> tuple[int, CallState]:
    """Run these blocks with this generator: the index of the first block that draws from it, and the state after all.

    Blocks before that one run once for a prompt; it and all after it run once for a seed. Many blocks take a generator
    and draw nothing, as VAE encoders that take the mean.
    """
    state.set("generator", generator)
    first = None
    for i, block in enumerate(blocks):
        before = generator.get_state()
        _, state = block(pipe, state)
        if first is None and not bool((generator.get_state() == before).all()):
            first = i
    if first is None:
        raise ValueError("no block of this workflow draws initial noise from the generator, so no seed is like another")
    return first, state


class AlreadyScaled:
    """The scheduler while the blocks of a loop run, for rows that `Schedule.scaled` has scaled, each for its own step.

    No scheduler's `scale_model_input` can scale rows at different steps. sigmas (P,): those of the network at each
    position.
    """

    def __init__(self, scheduler: Any, sigmas: Tensor) -> None:
        self.config, self.sigmas = scheduler.config, sigmas

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        """The sample, unchanged."""
        return sample


class OneSide:
    """Timesteps (N,) of rows that all lie on one side of a boundary, for blocks that choose a network by it.

    Blocks compare `t >= boundary` as if all rows were at one timestep; `above` is the result.
    """

    def __init__(self, timesteps: Tensor, above: bool) -> None:
        self.timesteps, self.above = timesteps, above

    def __ge__(self, boundary: float) -> bool:
        return self.above

    def expand(self, *size: int) -> Tensor:
        """The timesteps, as tensors expand."""
        return self.timesteps.expand(*size)


def with_parts(pipe: Any, **changes: Any) -> Any:
    """A copy of the pipeline object, over the same weights, with some components replaced."""
    other = copy.copy(pipe)
    vars(other).update(changes)
    return other


def check_decoder(vae: Any, call: Mapping[str, Any]) -> None:
    """ValueError where this VAE draws noise while it decodes, with these arguments of a call."""
    level = call.get("decode_noise_scale")
    level = call.get("decode_timestep", 0.0) if level is None else level
    if vae.config.get("timestep_conditioning") and bool(as_tensor(level).any()):
        raise ValueError(f"this VAE mixes drawn noise into latents before it decodes them (decode_noise_scale, or "
                         f"decode_timestep without it, is {level}), and what is decoded on the way would differ from "
                         "what comes out in the end; set decode_noise_scale=0.0")  # fmt: skip
