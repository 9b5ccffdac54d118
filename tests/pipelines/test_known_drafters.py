"""Published few-step weights as drafters by name, on tiny weights in the layout in which each file
was published.

Layouts are from what others say of the files; rank 64 on these layers makes the sizes that the hub
shows.
"""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ttsnap.pipelines.drafting.drafters import Drafter
from ttsnap.pipelines.drafting.drafting import use_drafter
from ttsnap.pipelines.drafting.known_drafters import BASES, KNOWN
from ttsnap.sampling.drafts import call_times

from .test_drafters import close, denoiser, rows
from .tiny import FAMILIES, shared

FAMILY = {"SDXL": "sdxl", "SD3.5 large": "sd3", "FLUX.1 dev": "flux", "Qwen-Image": "qwen_image"}
RANK, ALPHA = 4, 2.0
LCM_LAYERS = (
    *(
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
    ),
    *("conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)


LAYOUTS = {
    # As diffusers' examples/consistency_distillation/train_lcm_distill_lora_sdxl_wds.py writes the
    # layers of LCM-LoRA.
    "SDXL": (
        lambda name: "lora_unet_" + name.replace(".", "_"),
        lambda name: name.endswith(LCM_LAYERS),
        True,
    ),
    # All linear layers, embedders and norm_out too. InvokeAI's tests list the keys and shapes of a
    # file of Hyper-SD (flux_lora_diffusers_with_norm_out_format.py); by its issue 8415
    # Turbo-Alpha's has such layers, too.
    "FLUX.1 dev": (lambda name: f"transformer.{name}", lambda name: True, False),
    # diffusers' pull request 12119 loads these files.
    "Qwen-Image": (str, lambda name: "attn." in name or "_mlp." in name, True),
}
"""How layers are named in the file of a LoRA, which of them are in it, and whether in the older
form, with an alpha."""


def published(net, base, scale):
    """The tensors of a random LoRA, as in its file, and a copy of the network into which it is
    multiplied here."""
    random, merged, tensors = (
        torch.Generator().manual_seed(0),
        copy.deepcopy(net),
        dict[str, Tensor](),
    )
    named, has, alpha = LAYOUTS[base]
    for name, layer in merged.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and has(name):
            out, *rest = layer.weight.shape
            down = torch.randn(RANK, *rest, generator=random) / math.prod(rest) ** 0.5
            up = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=random)
            strength = scale * (ALPHA / RANK if alpha else 1.0)
            layer.weight.data += strength * (up.flatten(1) @ down.flatten(1)).view(
                layer.weight.shape
            )
            for kind, tensor in zip(
                ("down", "up") if alpha else ("A", "B"), (down, up), strict=True
            ):
                tensors[f"{named(name)}.lora_{kind}.weight"] = tensor
            if alpha:
                tensors[f"{named(name)}.alpha"] = torch.tensor(ALPHA)
    return tensors, merged


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The folder of a repository in an empty cache of the hub, which cannot be reached itself.

    The tiny SD3 counts as one of SD3.5, whose texts are wider.
    """
    monkeypatch.setitem(
        BASES, "SD3.5 large", ("SD3Transformer2DModel", {"joint_attention_dim": 96})
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def folder(repository):
        home = tmp_path / f"models--{repository.replace('/', '--')}"
        snapshot = home / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0" * 40)
        return snapshot

    with torch.no_grad():
        yield folder


def publish(name, net, hub):
    """Put the weights of a drafter on the hub, for the network of a tiny pipeline; the network that
    they make."""
    known = KNOWN[name]
    owner, repository, *file = known.where.split("/")
    folder = hub(f"{owner}/{repository}")
    if file:
        tensors, made = published(net, known.base, known.scale)
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


@pytest.mark.parametrize(
    ("name", "room"),
    [
        *(
            pytest.param(name, True, marks=[] if name in FAST else pytest.mark.slow)
            for name in KNOWN
        ),
        ("sdxl-lcm", False),
        ("flux-hyper-8", False),
        ("qwen-image-lightning-4", False),
    ],
)
def test_a_published_file_drafts_as_the_network_that_it_makes(
    name,
    room,
    hub,
    caplog,
    monkeypatch,
):
    """Also where there is no room to merge it."""
    if not room:
        monkeypatch.setattr("ttsnap.pipelines.drafting.drafters.MOST_MERGED", 0)
    known, family = KNOWN[name], FAMILY[KNOWN[name].base]
    pipe = FAMILIES[family].build()
    base, other = denoiser(pipe, family), denoiser(pipe, family)
    made = publish(name, base.net, hub)
    with caplog.at_level(logging.WARNING, "ttsnap"):
        use_drafter(base, name)
    assert "draft.json" not in caplog.text  # which nobody published
    assert (base.drafts.calls, base.drafts.drafter.settings) == (known.calls, known.settings)
    assert room or base.drafts.drafter.net.peft_config
    given = *rows(base, 0, 2), known.calls
    guess = base.drafts.guess(*given)
    use_drafter(other, Drafter(made, known.settings))
    close(guess, other.drafts.guess(*given))
    use_drafter(other, Drafter(base.net, known.settings))
    assert float((guess - other.drafts.guess(*given)).norm() / guess.norm()) > 1e-2
    # that of the card, whatever the call's
    assert base.drafts.drafter.settings.guidance == known.guidance


@pytest.mark.parametrize(
    ("family", "draft", "said"),
    [
        ("sd3", "sdxl-lcm", "SDXL.*SD3Transformer2DModel.*: sd35-turbo"),
        ("sd3", "sd35-trubo:4", "sd35-turbo"),
        ("sd15", "sdxl-hyper-1:2", "SDXL.*: none"),
        ("flux_schnell", "flux-turbo-alpha", r"FLUX\.1 dev.*: none"),
        ("qwen_image", "qwen-image-lightening-4", "qwen-image-lightning-4"),
        ("sdxl", "sdxl-hypr-4", "sdxl-hyper-4"),
        ("sdxl", "sdxl-lightning", "sdxl-lightning-"),
        ("flux", "schnell", "flux-schnell"),
        # which cannot be had here
        ("sdxl", "sdxl-lightning-4", "ByteDance/SDXL-Lightning/sdxl_lightning_4step"),
    ],
)
def test_names_for_other_models_misspelt_ones_and_weights_that_are_not_there_are_refused(
    family, draft, said
):
    with pytest.raises(ValueError, match=said):
        use_drafter(denoiser(shared(family), family), draft)


SHIFTS = {"SDXL": 1.0, "SD3.5 large": 3.0, "FLUX.1 dev": math.exp(1.15), "Qwen-Image": 3.0}
"""Of the published samplers, from whose trailing steps on they go evenly; that of FLUX is for 1024
x 1024."""


@pytest.mark.parametrize("name", KNOWN)
def test_calls_are_made_at_times_for_which_the_weights_were_trained(name):
    known, shift = KNOWN[name], 1.0 if name == "flux-schnell" else SHIFTS[KNOWN[name].base]
    even = [1 - i / known.steps for i in range(known.steps)]
    there = [shift * t / (1 + (shift - 1) * t) for t in even]
    for _, told in call_times(torch.ones(1), known.calls, known.first_time):
        assert min(abs(float(told) - t) for t in there) < 0.015, (float(told), there)
    assert 0 < known.level < 1
