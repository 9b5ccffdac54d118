"""Published few-step weights as drafters by name, on tiny weights in the layout in which each file was published.

The layouts are from what others say of the files. Rank 64 on these layers makes the sizes that the hub shows: 197
million numbers for SDXL (787 MB in float32, 394 MB in float16), 347 million for FLUX.1 (1.39 GB, 694 MB), 425 million
for Qwen-Image (1.7 GB).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from ttsnap.pipelines.drafting.drafters import Drafter
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.drafting.known_drafters import BASES, KNOWN
from ttsnap.sampling.drafts import call_times

from .test_drafters import close, denoiser, rows
from .tiny import FAMILIES, STABLE_DIFFUSION_BETAS, shared

FAMILY = {"SDXL": "sdxl", "SD3.5 large": "sd3", "FLUX.1 dev": "flux", "Qwen-Image": "qwen_image"}
RANK, ALPHA = 4, 2.0
LCM_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
    *("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)


class Layout(NamedTuple):
    """How the layers of a network are named in a file of a LoRA, and which of them are in it."""

    named: Callable[[str], str]
    down: str
    up: str
    alpha: bool
    has: Callable[[str], bool]


LAYOUTS = {
    # As diffusers' examples/consistency_distillation/train_lcm_distill_lora_sdxl_wds.py writes the layers of LCM-LoRA.
    "SDXL": Layout(
        lambda name: "lora_unet_" + name.replace(".", "_"),
        *("lora_down", "lora_up", True, lambda name: name.endswith(LCM_LAYERS)),
    ),
    # All linear layers, embedders and norm_out too. InvokeAI's tests list the keys and shapes of a file of Hyper-SD
    # (flux_lora_diffusers_with_norm_out_format.py); by its issue 8415 Turbo-Alpha's has such layers, too.
    "FLUX.1 dev": Layout(lambda name: f"transformer.{name}", "lora_A", "lora_B", False, lambda name: True),
    # diffusers' pull request 12119 loads these files.
    "Qwen-Image": Layout(str, "lora_down", "lora_up", True, lambda name: "attn." in name or "_mlp." in name),
}


def published(net: Any, layout: Layout, scale: float) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a random LoRA, as in its file, and a copy of the network into which it is multiplied here."""
    random, merged, tensors = torch.Generator().manual_seed(0), copy.deepcopy(net), dict[str, Tensor]()
    for name, layer in merged.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layout.has(name):
            out, *rest = layer.weight.shape
            down = torch.randn(RANK, *rest, generator=random) / math.prod(rest) ** 0.5
            up = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=random)
            strength = scale * (ALPHA / RANK if layout.alpha else 1.0)
            layer.weight.data += strength * (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
            tensors[f"{layout.named(name)}.{layout.down}.weight"] = down
            tensors[f"{layout.named(name)}.{layout.up}.weight"] = up
            if layout.alpha:
                tensors[f"{layout.named(name)}.alpha"] = torch.tensor(ALPHA)
    return tensors, merged


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """The folder of a repository in an empty cache of the hub, which cannot be reached itself.

    The tiny SD3 counts as one of SD3.5, whose texts are wider.
    """
    monkeypatch.setitem(BASES, "SD3.5 large", ("SD3Transformer2DModel", {"joint_attention_dim": 96}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def folder(repository: str) -> Path:
        home = tmp_path / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0" * 40)
        (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
        return home / "snapshots" / ("0" * 40)

    with torch.no_grad():
        yield folder


def publish(name: str, net: Any, hub: Callable[[str], Path]) -> Any:
    """Put the weights of a drafter on the hub, for the network of a tiny pipeline; the network that they make."""
    known = KNOWN[name]
    owner, repository, *file = known.where.split("/")
    folder = hub(f"{owner}/{repository}")
    if file:
        tensors, made = published(net, LAYOUTS[known.base], known.scale)
        save_file(tensors, folder / file[0])
        return made
    made = copy.deepcopy(shared("flux_schnell").transformer if name == "flux-schnell" else net)
    for parameter in made.parameters():
        parameter.data *= 1.1
    made.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text("{}")
    return made


FAST = ("sdxl-lcm", "sd35-turbo", "flux-hyper-8", "flux-schnell", "qwen-image-lightning-4")
"""Every layout of a file, whole networks, and a strength and a guidance of a card."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in KNOWN])
def test_a_published_file_drafts_as_the_network_that_it_makes(
    name: str, hub: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    known, family = KNOWN[name], FAMILY[KNOWN[name].base]
    pipe = FAMILIES[family].build()
    base, other = denoiser(pipe, family), denoiser(pipe, family)
    made = publish(name, base.net, hub)
    with caplog.at_level(logging.WARNING, "ttsnap"):
        use_drafter(base, name)
    assert "draft.json" not in caplog.text  # which nobody published
    assert base.drafts.calls == known.calls
    assert base.drafts.drafter.settings == known.settings
    x, steps, at = rows(base, 0, 2)
    use_drafter(other, Drafter(made, known.settings))
    guess = base.drafts.guess(x, steps, at, known.calls)
    close(guess, other.drafts.guess(x, steps, at, known.calls))
    use_drafter(other, Drafter(base.net, known.settings))
    bare = other.drafts.guess(x, steps, at, known.calls)
    assert float((guess - bare).norm() / guess.norm()) > 1e-2
    if known.guidance is not None:  # that of the card, whatever the call's
        assert base.drafts.twin().embedded_scale == known.guidance


@pytest.mark.parametrize("name", ["sdxl-lcm", "flux-hyper-8", "qwen-image-lightning-4"])
def test_the_same_holds_where_there_is_no_room_to_merge(
    name: str, hub: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.pipelines.drafting.drafters.MOST_MERGED", 0)
    family = FAMILY[KNOWN[name].base]
    pipe = FAMILIES[family].build()
    base, other = denoiser(pipe, family), denoiser(pipe, family)
    use_drafter(other, Drafter(publish(name, base.net, hub), KNOWN[name].settings))
    use_drafter(base, name)
    assert base.drafts.drafter.net.peft_config
    x, steps, at = rows(base, 0, 2)
    close(base.drafts.guess(x, steps, at, 1), other.drafts.guess(x, steps, at, 1))


def test_the_number_of_calls_may_be_given_and_the_file_itself_is_another_drafter(hub: Callable[[str], Path]) -> None:
    pipe = FAMILIES["flux"].build()
    base = denoiser(pipe, "flux")
    publish("flux-hyper-8", base.net, hub)
    use_drafter(base, "flux-hyper-8:1")
    named = base.drafts
    assert (named.calls, KNOWN["flux-hyper-8"].calls) == (1, 2)
    use_drafter(base, KNOWN["flux-hyper-8"].where)  # at its full strength, and the guidance of the call
    x, steps, at = rows(base, 0, 2)
    assert base.drafts.calls == 1
    assert float((named.guess(x, steps, at, 1) - base.drafts.guess(x, steps, at, 1)).norm()) > 1e-2
    use_drafter(base, "flux-hyper-8")
    assert base.drafts.drafter.net is named.drafter.net


def test_weights_that_cannot_be_had_are_named() -> None:
    with pytest.raises(ValueError, match=r"ByteDance/SDXL-Lightning/sdxl_lightning_4step"):
        use_drafter(denoiser(shared("sdxl"), "sdxl"), "sdxl-lightning-4")


@pytest.mark.parametrize(("family", "draft", "said"), [
    ("sd3", "sdxl-lcm", "SDXL.*SD3Transformer2DModel.*: sd35-turbo"), ("sd3", "sd35-trubo:4", "sd35-turbo"),
    ("sd15", "sdxl-hyper-1:2", "SDXL.*: none"), ("flux_schnell", "flux-turbo-alpha", r"FLUX\.1 dev.*: none"),
    ("qwen_image", "qwen-image-lightening-4", "qwen-image-lightning-4"), ("sdxl", "sdxl-hypr-4", "sdxl-hyper-4"),
    ("sdxl", "sdxl-lightning", "sdxl-lightning-"), ("flux", "schnell", "flux-schnell"),
])  # fmt: skip
def test_a_name_for_another_model_and_a_misspelt_one_are_refused(family: str, draft: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use_drafter(denoiser(shared(family), family), draft)


# --- the table ----------------------------------------------------------------------------------------------------

BETAS = {**STABLE_DIFFUSION_BETAS, "steps_offset": 1}
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def published_times(name: str) -> list[float]:
    """The noise levels (flows) or shares of all timesteps at which the published sampler calls the network."""
    known = KNOWN[name]
    if known.base == "SDXL":
        spaced: Any = {"hyper-1": TCDScheduler(**BETAS), "lcm": LCMScheduler(**BETAS)}
        trailing = DDIMScheduler if "hyper" in name else EulerDiscreteScheduler
        scheduler = spaced.get(name.removeprefix("sdxl-"), trailing(**BETAS, timestep_spacing="trailing"))
        scheduler.set_timesteps(known.steps)
        return [(float(t) + 1) / 1000 for t in scheduler.timesteps]
    sigmas = [1 - i / known.steps for i in range(known.steps)]
    if name in ("flux-hyper-8", "flux-turbo-alpha"):  # at 1024 x 1024
        FLUX.set_timesteps(sigmas=sigmas, mu=1.15)
        return FLUX.sigmas.tolist()
    shifted = FlowMatchEulerDiscreteScheduler(shift=1.0 if name == "flux-schnell" else 3.0)
    shifted.set_timesteps(sigmas=sigmas)
    return shifted.sigmas.tolist()


@pytest.mark.parametrize("name", KNOWN)
def test_calls_are_made_at_times_for_which_the_weights_were_trained(name: str) -> None:
    known, there = KNOWN[name], published_times(name)
    for _, told in call_times(torch.ones(1), known.calls, known.first_time):
        assert min(abs(float(told) - t) for t in there) < 0.015, (float(told), there)


def test_every_family_of_the_table_is_known() -> None:
    assert {known.base for known in KNOWN.values()} == BASES.keys() == FAMILY.keys()
    assert all(0 < known.level < 1 and known.calls <= known.steps for known in KNOWN.values())
