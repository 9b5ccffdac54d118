"""What a draft of SDXL, SD3.5 medium and FLUX.1-dev takes, worked out without a GPU and without
their weights.

    python benchmarks/draft_on_paper.py                      # a minute on a CPU
    python benchmarks/draft_on_paper.py --models flux --rank 16 --tflops 400 --json flux.json

The networks are the published ones (models.py, "full"), on the meta device, which holds shapes
and no numbers. The LoRA of `ttsnap distill-draft` is put on them, and a row goes forward and back:
what does not fit fails here, within a minute, and not after a day. Counted are the LoRA, FLOPs, and
the bytes that the backward pass needs. From these follow hours at `--tflops`, the speed that a GPU
reaches in practice, for the trajectories and the optimiser steps that are asked for, and what
trajectories take on disk. Text encoders, the VAE, the rewards of the evaluation and the VAE's
decodes are not in these figures.

Cheaper calls of the drafter are counted, too: its LoRA merged, some of its blocks left out, and
half the pixels a side, from pooled noise. What such drafts are worth is not known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate import init_empty_weights
from models import build
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ttsnap.distill.config import DraftConfig
from ttsnap.distill.draft.student import add_lora
from ttsnap.files.writing import markdown
from ttsnap.pipelines.calls.values import mapped
from ttsnap.pipelines.memory.acceleration import network
from ttsnap.pipelines.pipeline_copy import shared_copy

STEPS = {"sdxl": 30, "sd3": 28, "flux": 28}
NAMES = {"sdxl": "SDXL", "sd3": "SD3.5 medium", "flux": "FLUX.1 dev"}
UNGUIDED = {"guidance_scale": 1.0}
"""As a drafter is called."""
NONE = DraftConfig(("none",))
"""The defaults of a training."""
STATE = 20
"""Bytes of a trained number: itself, its gradient, two moments and its average, in float32."""


@dataclass(frozen=True)
class Paper:
    """What one model takes. Bytes and FLOPs of one row, unless said otherwise.

    weights: bytes of the network. layers: linear layers with a LoRA, of `numbers` in all. base,
    call: FLOPs of a pass of the model and of its drafter. cheaper: FLOPs of cheaper calls, by what
    makes them so. back, checkpointed: FLOPs of a row's training, forward and back, and those with
    checkpointing. kept, kept_checkpointed: bytes that the backward pass needs, likewise. latent:
    numbers of a latent.
    """

    model: str
    steps: int
    passes: int
    weights: int
    layers: int
    numbers: int
    base: float
    call: float
    cheaper: Mapping[str, float]
    back: float
    checkpointed: float
    kept: int
    kept_checkpointed: int
    latent: int

    @property
    def trajectory(self) -> float:
        """FLOPs of a trajectory of all steps."""
        return self.steps * self.passes * self.base

    def step(self, config: DraftConfig) -> float:
        """FLOPs of an optimiser step; second calls need the network's first guess, too."""
        row = self.checkpointed if config.checkpointing else self.back
        return config.batch * row + round(config.second * config.batch) * self.call

    @property
    def stored(self) -> int:
        """Bytes of a trajectory on disk: its end in float16."""
        return 2 * self.latent


def worked_out(name: str, size: str, rank: int) -> Paper:
    """Put the LoRA on a model's network, take a row forward and back, and count."""
    case = build(name, size, torch.device("meta" if size == "full" else "cpu"), torch.bfloat16)
    pipe = _at_home(case.pipe)
    call = {key: _at_hand(value) for key, value in case.call.items()}
    call |= {"num_inference_steps": STEPS[name]}
    half = {**call, **{side: call[side] // 2 for side in ("height", "width")}}
    both = _given(pipe, call)
    one = _given(pipe, {**call, **UNGUIDED})
    small = _given(pipe, {**half, **UNGUIDED})
    passes = len(both[0])
    net = network(pipe).to("meta")
    with _fused_attention():
        plain = _flops(lambda: _out(net, both), grad=False)
        cheaper = {
            words: _flops(partial(_out, leave_out(net, depth), given), grad=False)
            for words, depth, given in (
                ("LoRA merged", 1.0, one),
                ("half of the blocks", 0.5, one),
                ("a fifth of the blocks", 0.2, one),
                ("half the pixels a side", 1.0, small),
                ("both: half of the blocks, half the pixels a side", 0.5, small),
            )
        }
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        with init_empty_weights(include_buffers=False):
            lora = add_lora(net, rank)
        net.to(torch.bfloat16)  # in which autocast computes
        called = _flops(lambda: _out(net, one), grad=False)
        net.train()
        back, kept = _trained(net, one)
        net.enable_gradient_checkpointing()
        checkpointed, kept_checkpointed = _trained(net, one)
    return Paper(
        model=NAMES[name],
        steps=STEPS[name],
        passes=passes,
        weights=weights,
        layers=len(lora) // 2,
        numbers=sum(p.numel() for p in lora.values()),
        base=plain / passes,
        call=called,
        cheaper=cheaper,
        back=back,
        checkpointed=checkpointed,
        kept=kept,
        kept_checkpointed=kept_checkpointed,
        latent=one[0].numel(),
    )


# --- on the meta device ---------------------------------------------------------------------------


class Given(NamedTuple):
    """What a network is called with, on the meta device."""

    latents: Tensor
    args: Any
    kwargs: Any


class AskedError(Exception):
    """The network is asked; its arguments follow."""


def _at_home(pipe: Any) -> Any:
    """The pipeline as if it computed on the CPU, wherever its network is: schedules and noise are
    real numbers."""
    home = property(lambda self: torch.device("cpu"))
    pipe.__class__ = type("OnPaper", (type(pipe),), {"device": home, "_execution_device": home})
    return pipe


def _at_hand(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


def _given(pipe: Any, call: Mapping[str, Any]) -> Given:
    """Of the first step of a stock call."""

    def stop(net: nn.Module, args: Any, kwargs: Any) -> None:
        raise AskedError(args, kwargs)

    hook = network(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        pipe(**call)
    except AskedError as asked:
        args, kwargs = mapped(asked.args, lambda each: each.to("meta"))
        return Given(args[0] if args else kwargs["hidden_states"], args, kwargs)
    finally:
        hook.remove()
    raise ValueError("the stock call asked no network")


def leave_out(net: nn.Module, depth: float) -> nn.Module:
    """A copy with this share of each list of alike blocks of a network, spread evenly; the last
    block stays."""
    thin: nn.Module = shared_copy(net)
    for name, part in thin.named_modules():
        if name.rpartition(".")[2] in ("transformer_blocks", "single_transformer_blocks"):
            last, kept = len(part) - 1, max(1, round(depth * len(part)))
            stay = {last - round(i * last / max(kept - 1, 1)) for i in range(kept)}
            for i in range(len(part)):
                if i not in stay:
                    del part._modules[str(i)]
    return thin


def _out(net: Any, given: Given) -> Tensor:
    out: Tensor = net(*given.args, **{**given.kwargs, "return_dict": False})[0]
    return out


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as GPUs compute it: the matrix of scores is never kept. Its FLOPs are counted,
    forward and back."""

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        if attn_mask is not None:
            raise ValueError(
                "this network masks its attention, whose fused kernel is not counted here"
            )
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return found

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", fused):
        yield


def _flops(call: Any, *, grad: bool) -> float:
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _trained(net: Any, given: Given) -> tuple[float, int]:
    """FLOPs of a row forward and back, and the bytes that are kept in between."""
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def both() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = _out(net, given)
        found.float().pow(2).mean().backward()

    flops = _flops(both, grad=True)
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    if missing:
        print(
            f"no gradient reaches {len(missing)} of the LoRA's matrices, which stay as they are:"
            f" {missing[0]}, ..."
        )
    return flops, sum(kept.values())


# --- the table ------------------------------------------------------------------------------------


def table(papers: Sequence[Paper], tflops: float, count: int, config: DraftConfig) -> str:
    """In Markdown: a row a figure, a column a model."""

    def hours(flops: float) -> str:
        return f"{flops / (tflops * 1e12) / 3600:.1f} h"

    rows: list[tuple[str, list[str]]] = [
        ("weights of the network, bfloat16", [f"{p.weights / 1e9:.1f} GB" for p in papers]),
        ("layers with a LoRA", [f"{p.layers:,}" for p in papers]),
        (
            f"numbers of the LoRA, rank {config.rank}",
            [f"{p.numbers / 1e6:.0f} million" for p in papers],
        ),
        ("its file, bfloat16", [f"{2 * p.numbers / 1e6:.0f} MB" for p in papers]),
        ("its training state", [f"{STATE * p.numbers / 1e9:.1f} GB" for p in papers]),
        ("kept for the backward pass, a row", [f"{p.kept / 1e9:.1f} GB" for p in papers]),
        (
            "the same with checkpointing",
            [f"{p.kept_checkpointed / 1e9:.2f} GB and a block" for p in papers],
        ),
        ("a pass of the model", [f"{p.base / 1e12:.1f} TFLOP" for p in papers]),
        (
            "a trajectory",
            [f"{p.steps} x {p.passes} passes, {p.trajectory / 1e15:.2f} PFLOP" for p in papers],
        ),
        ("a call of the drafter", [f"{p.call / p.base:.2f} passes" for p in papers]),
        *(
            (f"the same, {words}", [f"{p.cheaper[words] / p.base:.2f} passes" for p in papers])
            for words in papers[0].cheaper
        ),
        ("a row of training", [f"{p.back / p.base:.2f} passes" for p in papers]),
        ("the same with checkpointing", [f"{p.checkpointed / p.base:.2f} passes" for p in papers]),
        (
            f"{count:,} trajectories on disk",
            [f"{count * p.stored / 1e9:.1f} GB" for p in papers],
        ),
        (
            f"{count:,} trajectories at {tflops:g} TFLOP/s",
            [hours(count * p.trajectory) for p in papers],
        ),
        (
            f"{config.updates:,} x {config.batch} rows at {tflops:g} TFLOP/s"
            + (", checkpointing" if config.checkpointing else ""),
            [hours(config.updates * p.step(config)) for p in papers],
        ),
    ]
    return markdown(["", *(p.model for p in papers)], [[name, *row] for name, row in rows])


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--models", nargs="+", choices=tuple(STEPS), default=list(STEPS))
    p.add_argument("--rank", type=int, default=NONE.rank)
    p.add_argument("--trajectories", type=int, default=10_000, metavar="N")
    p.add_argument(
        "--tflops", type=float, default=250.0, help="that the GPU reaches, in 1e12 FLOPs a second"
    )
    p.add_argument("--json", type=Path, help="file for the figures")
    a = p.parse_args()
    config = replace(NONE, rank=a.rank, checkpointing=True)
    papers = [worked_out(name, "full", a.rank) for name in a.models]
    print(table(papers, a.tflops, a.trajectories, config))
    if a.json is not None:
        a.json.write_text(json.dumps([asdict(paper) for paper in papers], indent=1) + "\n")


if __name__ == "__main__":
    main()
