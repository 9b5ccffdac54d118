"""A pipeline that nobody knows, which does by request what real ones do and a search has to find out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Generator, Tensor, nn


class ToyNet(ModelMixin, ConfigMixin):
    """x, its time and a text's length -> a velocity."""

    @register_to_config
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        moved: Tensor = torch.tanh(self.layer(hidden_states) + text[:, None, None, None])
        return moved * (1 + timestep.view(-1, 1, 1, 1) / 1000)


class ToyPipeline(DiffusionPipeline):
    def __init__(self, transformer: ToyNet, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def prepare_latents(self, generator: Generator) -> Tensor:
        return torch.randn(1, 3, 8, 8, generator=generator)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        num_inference_steps: int = 4,
        generator: Generator | None = None,
        output_type: str = "pt",
        does: str = "",
        shift: Tensor | None = None,
    ) -> Any:
        """does: what it does beside the plain loop; words, separated by blanks."""
        assert generator is not None
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(1, 3, 8, 8, generator=generator) if "inline" in does else self.prepare_latents(generator)
        veil = torch.randn(1, 3, 8, 8, generator=generator) if "veil" in does else torch.zeros(())
        noise = torch.randn(1, 3, 8, 8) if "global" in does else torch.zeros(())
        kept, mask = torch.zeros(()), torch.arange(8) < 4
        first = 0.3 * x if "first" in does else torch.zeros(())
        if shift is not None:
            x = x + shift.add_(0.1)  # in place, as no call should
        text = torch.tensor([len(prompt) / 10])
        for t in self.scheduler.timesteps:
            out = self.transformer(x + 0.3 * veil + noise + first, t.expand(1), text)
            kept = 0.5 * kept + out if "momentum" in does else out
            x = self.scheduler.step(kept, t, x, return_dict=False)[0]
            if "mask" in does:
                x = torch.where(mask, 0.1 * len(prompt), x)
            if "twice" in does:
                x = self.scheduler.step(kept, t, x, return_dict=False)[0]
        if "sound" in does:
            return SimpleNamespace(audios=[0.0])
        return SimpleNamespace(images=(x / 4 + 0.5).clamp(0, 1))


def toy() -> ToyPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ToyNet().eval()
    pipe = ToyPipeline(net, FlowMatchEulerDiscreteScheduler(shift=2.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe
