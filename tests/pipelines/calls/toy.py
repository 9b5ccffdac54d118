"""A pipeline that nobody knows, which does by request what real ones do and a search has to find
out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


@dataclass
class ToyOutput(BaseOutput):
    images: Tensor | None = None
    audio: Tensor | None = None


@dataclass
class ToyCache:
    """What a network keeps of its first call, as keys and values of a picture that is edited."""

    first: Tensor | None = None


class ToyNet(ModelMixin, ConfigMixin):
    """x, its time and a text's length -> a velocity; beside a sound: one for each."""

    @register_to_config
    def __init__(self, channels=3):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(
        self,
        hidden_states,
        timestep,
        text,
        sound=None,
        cache=None,
    ):
        moved = torch.tanh(self.layer(hidden_states) + text[:, None, None, None])
        if cache is not None:
            cache.first = moved if cache.first is None else cache.first
            moved = moved + 0.5 * cache.first
        moved = moved * (1 + timestep.float().view(-1, 1, 1, 1) / 1000)
        if sound is None:
            return moved
        heard, seen = sound.mean((1, 2)), hidden_states.mean((1, 2, 3))
        return moved + 0.5 * heard[:, None, None, None], torch.tanh(sound + seen[:, None, None])


class ToyFlexNet(ToyNet):
    """The same by an operator that torch compiles, and no mode may see."""

    def __init__(self, channels=3):
        super().__init__(channels)
        self.layer.processor = SimpleNamespace(_attention_backend="flex")

    def forward(self, hidden_states, *args, **kwargs):
        assert hidden_states.device.type != "meta"
        assert not _get_current_dispatch_mode_stack()
        return super().forward(hidden_states, *args, **kwargs)


class ToyVae(ModelMixin, ConfigMixin):
    """Latents -> an image with grain, as LTX-2.5's diffusion decoder makes it."""

    @register_to_config
    def __init__(self, grain=0.3):
        super().__init__()
        self.grain, self.layer = grain, nn.Conv2d(3, 3, 1)

    def decode(self, z, generator=None):
        made = self.layer(z)
        return made + self.grain * torch.randn(z.shape, generator=generator, device=z.device)


class ToyWriter(ModelMixin, ConfigMixin):
    """The length of a prompt -> that of a better one, by a call a letter, as language models
    write."""

    @register_to_config
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, length, cache):
        written = self.layer(length)
        return written

    def generate(self, length):
        for _ in range(5):
            length = self(length, ToyCache())
        return length


class ToyPipeline(DiffusionPipeline):
    _optional_components = ("vae", "writer")

    def __init__(
        self,
        transformer,
        scheduler,
        vae=None,
        writer=None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, writer=writer)

    def prepare_latents(self, generator):
        return torch.randn(1, 3, 8, 8, generator=generator)

    def prepare_sound_latents(self, generator):
        return torch.randn(1, 5, 2, generator=generator)

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        num_inference_steps=4,
        generator=None,
        output_type="pt",
        does="",
        shift=None,
    ):
        """does: what it does beside the plain loop; words, separated by blanks."""
        assert generator is not None
        self.scheduler.set_timesteps(num_inference_steps)
        other = copy.deepcopy(self.scheduler)  # as LTX-2 does for a video's sound
        if "untuned" in does:
            other.set_timesteps(sigmas=[0.9, 0.5, 0.4, 0.2])
        x = (
            torch.randn(1, 3, 8, 8, generator=generator)
            if "inline" in does
            else self.prepare_latents(generator)
        )
        veil = torch.randn(1, 3, 8, 8, generator=generator) if "veil" in does else torch.zeros(())
        noise = torch.randn(1, 3, 8, 8) if "global" in does else torch.zeros(())
        kept, mask = torch.zeros(()), torch.arange(8) < 4
        first = 0.3 * x if "first" in does else torch.zeros(())
        if shift is not None:
            x = x + shift.add_(0.1)  # in place, as no call should
        if "rows" in does:
            x = torch.cat([x, x])  # as DiT does for its guidance
        length = torch.tensor([len(prompt) / 10])
        text = (length if self.writer is None else self.writer.generate(length)).expand(len(x))
        cache = ToyCache() if "cache" in does else None
        sound = self.prepare_sound_latents(generator) if "duet" in does else None
        for t, beside in zip(self.scheduler.timesteps, other.timesteps, strict=True):
            given = (
                self.scheduler.scale_model_input(x, t)
                if hasattr(self.scheduler, "scale_model_input")
                else x
            )
            out = self.transformer(
                given + 0.3 * veil + noise + first, t.expand(len(x)), text, sound, cache
            )
            out, heard = out if isinstance(out, tuple) else (out, None)
            if "rows" in does:
                out = out.mean(0, keepdim=True).expand_as(out)
            kept = 0.5 * kept + out if "momentum" in does else out
            more = {"dmd_sigmas": self.scheduler.sigmas} if "told" in does else {}
            stepped = self.scheduler.step(kept, t, x, return_dict=False, **more)[0]
            # as SkyReels V2, whose scheduler keeps x
            x = x.copy_(stepped) if "over" in does else stepped
            if "mask" in does:
                x = torch.where(mask, 0.1 * len(prompt), x)
            if "first" in does:
                x = torch.cat([x[..., :4], x[..., 4:]], dim=-1)  # read before the sound is stepped
            if "peek" in does:
                x = x + 0.1 * x.mean().item()
            if sound is not None:
                sound = other.step(heard, beside, sound, return_dict=False)[0]
            if "twice" in does:
                x = self.scheduler.step(kept, t, x, return_dict=False)[0]
        if "late" in does:
            x = x + 0.3 * torch.randn(x.shape, generator=generator)
        if self.vae is not None:
            x = self.vae.decode(x, generator=generator)
        if "raw" in does and output_type != "np":
            return ToyOutput(x.movedim(1, -1))
        if "mute" in does:
            return ToyOutput(audio=x)
        return ToyOutput((x[:1] / 4 + 0.5).clamp(0, 1), sound)


class ToyCombined(ToyPipeline):
    """Two loops, as Kandinsky's combined pipelines have them."""

    def __init__(
        self,
        transformer,
        scheduler,
        vae=None,
        writer=None,
    ):
        super().__init__(transformer, scheduler, vae, writer)
        self.prior_pipe, self.decoder_pipe = (
            ToyPipeline(transformer, scheduler, vae) for _ in range(2)
        )

    def __call__(self, prompt, generator=None, output_type="pt"):
        self.prior_pipe(prompt, generator=generator)
        return self.decoder_pipe(prompt, generator=generator)


def toy(scheduler=None, vae=None, writer=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ToyNet().eval()
    pipe = ToyPipeline(net, scheduler or FlowMatchEulerDiscreteScheduler(shift=2.0), vae, writer)
    pipe.set_progress_bar_config(disable=True)
    return pipe
