"""Few-step weights of others that may draft, by the names that `draft` takes.

None of these weights was run here: what is known of them is what their cards say. The calls of a
guess and the level to finish it from are where to begin, and are to be measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttsnap.sampling.drafts import DraftSettings


@dataclass(frozen=True)
class KnownDrafter:
    """Published few-step weights."""

    base: str
    """The models that they draft for, a name of BASES."""
    where: str
    """Hub id and file of a LoRA, or the hub id of whole weights."""
    steps: int
    """That they were published for."""
    calls: int
    """Of a guess, unless the user says. They are made at times of the published steps."""
    card: str
    """The sampler that its authors recommend."""
    guidance: float | None = None
    """Of the calls, by the card. None: none."""
    scale: float = 1.0
    """Strength of the LoRA, by the card."""
    first_time: float = 1.0
    """What the first call is told, as a share of the true time."""
    level: float = 0.6
    """Noise level to try to finish a guess from; on these models none was measured."""

    @property
    def settings(self) -> DraftSettings:
        """How it is called."""
        return DraftSettings(
            first_time=self.first_time, guidance=self.guidance, finish=f"{self.level:g}"
        )


BASES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "SDXL": ("UNet2DConditionModel", {"addition_embed_type": "text_time"}),
    "SD3.5 large": ("SD3Transformer2DModel", {"joint_attention_dim": 4096}),
    "FLUX.1 dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
}
"""Class of a base's network, and the settings that tell it from others of the class."""

_sdxl, _flux, _qwen = (
    functools.partial(KnownDrafter, base) for base in ("SDXL", "FLUX.1 dev", "Qwen-Image")
)
_HYPER = "ByteDance/Hyper-SD"
_LIGHTNING = "ByteDance/SDXL-Lightning"
_LCM = "latent-consistency/lcm-lora-sdxl"
_ALIMAMA = "alimama-creative/FLUX.1-Turbo-Alpha"
_LIGHTX2V = "lightx2v/Qwen-Image-Lightning"
_DDIM = "DDIM, trailing, guidance 0"
_EULER = "Euler, trailing, guidance 0"
_TURBO = "Euler, shift 3, guidance 0"
_DISTILLED = "Euler, shift 3, guidance 1, which is none"
KNOWN: Mapping[str, KnownDrafter] = {
    "sdxl-hyper-1": _sdxl(
        f"{_HYPER}/Hyper-SDXL-1step-lora.safetensors", 1, 1, "TCD, 1 to 8 steps, guidance 0"
    ),
    "sdxl-hyper-2": _sdxl(f"{_HYPER}/Hyper-SDXL-2steps-lora.safetensors", 2, 2, _DDIM),
    "sdxl-hyper-4": _sdxl(f"{_HYPER}/Hyper-SDXL-4steps-lora.safetensors", 4, 4, _DDIM),
    "sdxl-hyper-8": _sdxl(f"{_HYPER}/Hyper-SDXL-8steps-lora.safetensors", 8, 4, _DDIM),
    "sdxl-lightning-2": _sdxl(f"{_LIGHTNING}/sdxl_lightning_2step_lora.safetensors", 2, 2, _EULER),
    "sdxl-lightning-4": _sdxl(f"{_LIGHTNING}/sdxl_lightning_4step_lora.safetensors", 4, 4, _EULER),
    "sdxl-lightning-8": _sdxl(f"{_LIGHTNING}/sdxl_lightning_8step_lora.safetensors", 8, 4, _EULER),
    "sdxl-lcm": _sdxl(
        f"{_LCM}/pytorch_lora_weights.safetensors",
        4,
        4,
        "LCM, 2 to 8 steps, guidance off or 1 to 2",
    ),
    "sd35-turbo": KnownDrafter(
        "SD3.5 large", "stabilityai/stable-diffusion-3.5-large-turbo", 4, 2, _TURBO
    ),
    "flux-hyper-8": _flux(
        f"{_HYPER}/Hyper-FLUX.1-dev-8steps-lora.safetensors", 8, 2, "guidance 3.5", 3.5, 0.125
    ),
    "flux-turbo-alpha": _flux(
        f"{_ALIMAMA}/diffusion_pytorch_model.safetensors", 8, 2, "guidance 3.5", 3.5
    ),
    "flux-schnell": _flux(
        "black-forest-labs/FLUX.1-schnell", 4, 4, "Euler, guidance 0, which it does not read"
    ),
    "qwen-image-lightning-4": _qwen(
        f"{_LIGHTX2V}/Qwen-Image-Lightning-4steps-V2.0.safetensors", 4, 2, _DISTILLED
    ),
    "qwen-image-lightning-8": _qwen(
        f"{_LIGHTX2V}/Qwen-Image-Lightning-8steps-V2.0.safetensors", 8, 2, _DISTILLED
    ),
}
"""By name."""


def known_drafter(name: str, net: Any) -> KnownDrafter | None:
    """The drafter of a name, for a model's network; None for what is no name of KNOWN. ValueError
    for one that is for other models."""
    known = KNOWN.get(name)
    if known is not None and name not in (fit := names_for(net)):
        raise ValueError(
            f"draft {name} is for {known.base}, and this model's {type(net).__name__} is not of it;"
            f" known for this model: {', '.join(fit) or 'none'}"
        )
    return known


def names_for(net: Any) -> list[str]:
    """The names of KNOWN that are for a model's network."""

    def fits(kind: str, settings: Mapping[str, object]) -> bool:
        return type(net).__name__ == kind and all(
            net.config.get(key) == value for key, value in settings.items()
        )

    return [name for name, known in KNOWN.items() if fits(*BASES[known.base])]
