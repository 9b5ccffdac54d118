"""Drafters of a pipeline: networks that guess finished images, found by name.

A drafter is a network object of its own, so that it cannot leak into the model's evaluations. It is
never an adapter that is switched on and off. A drafter made by a LoRA shares weights of the model's
network.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ttsnap.core.names import unknown
from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign
from ttsnap.options.model import EMBEDDED
from ttsnap.options.sampler import HOT, SELF, calls_of
from ttsnap.pipelines.drafting.known_drafters import KnownDrafter, known_drafter, names_for
from ttsnap.pipelines.lora import LOADING, hub_file, tuned_layers, under_lora
from ttsnap.pipelines.memory.memo import Memo
from ttsnap.pipelines.packaged import draft_folder
from ttsnap.pipelines.patches import refuse_patches
from ttsnap.pipelines.pipeline_copy import hooked
from ttsnap.sampling.drafts import (
    DRAFT_FILE,
    HOT_FILE,
    HOT_SETTINGS,
    DraftSettings,
    read_draft,
    read_hot,
)

logger = logging.getLogger(__name__)
_ADAPTER = "ttsnap_draft"
_MEETS = (
    *(
        "in_channels",
        "out_channels",
        "patch_size",
        "cross_attention_dim",
        "encoder_hid_dim",
        "addition_embed_type",
    ),
    *("joint_attention_dim", "pooled_projection_dim", "caption_channels", "cap_feat_dim"),
)
"""Settings of networks that decide which latents and texts they read, and their output."""
MOST_MERGED = 2**30
"""Most bytes of layers that are copied to merge a LoRA into them; on CUDA devices a quarter of the
free memory, if that is more."""


@dataclass(frozen=True)
class Drafter:
    """A network that guesses finished images."""

    net: nn.Module
    """Of the class of the model's own network."""
    settings: DraftSettings = field(default_factory=DraftSettings)
    calls: int = 1
    """The calls of a guess."""
    arrives: bool = False
    """Whether it is the model itself, a flow map, told to arrive at the end."""


DraftSpec: TypeAlias = str | nn.Module | Drafter
"""A value of the option `draft`."""


def make_drafter(pipe: Any, network: str, spec: DraftSpec) -> Drafter:
    """The drafter of a spec, for the network of this name ("unet", "transformer") of a pipeline.

    spec is one of these. ":CALLS" after a text says how many calls a guess takes.
    - a name of known_drafters.KNOWN: published few-step weights, which say their number of calls,
      too.
    - "hot": the model itself, at a lower noise level than the latents have; or a .json file with
      its settings.
    - "self": the model itself, which has to be a flow map, from any step to the end.
    - "embedded": the packaged model's own draft.
    - a LoRA: a folder, a .safetensors file, a hub id, or owner/name/file.safetensors.
    - a network: a folder or a hub id, also of a whole pipeline.
    - a network object, or a Drafter.

    What was loaded is kept with the pipeline. ValueError where there is none, or it does not fit
    the model.
    """
    base = _bare(getattr(pipe, network))
    if isinstance(spec, Drafter):
        return replace(spec, net=_fitting(base, spec.net, "draft.net"))
    if isinstance(spec, nn.Module):
        return Drafter(_fitting(base, spec, "draft"))
    if not isinstance(spec, str):
        raise ValueError(f"draft must be a text, a network or a Drafter, got {type(spec).__name__}")
    where, calls = calls_of(spec)
    if (known := known_drafter(where, base)) is not None:
        where, calls = known.where, known.calls if where == spec else calls
    path = draft_folder(pipe, where)
    where = str(path) if path.exists() else where
    if where == HOT or where.endswith(HOT_FILE):
        settings = HOT_SETTINGS if where == HOT else read_hot(path)
        return Drafter(getattr(pipe, network), settings, calls)
    if where == SELF:
        return Drafter(getattr(pipe, network), calls=calls, arrives=True)
    key = ("draft", where, network, known)
    state = (_state(base), _stamps(path))
    memo = vars(pipe).setdefault("_search_memo", Memo())
    if memo.get(key, (None,))[0] != state:
        with LOADING:
            if memo.get(key, (None,))[0] != state:  # no other thread has loaded it meanwhile
                memo[key] = (state, _loaded(pipe, network, where, known))
    kept: Drafter = memo[key][1]
    # A draft.json on disk is read anew: the drafter may have been checked since.
    anew = known is None and path.exists()
    return replace(kept, calls=calls, settings=_settings(where) if anew else kept.settings)


def _loaded(pipe: Any, network: str, where: str, known: KnownDrafter | None) -> Drafter:
    """The drafter at a path or on the hub. known: what is known of it, in the place of its
    draft.json."""
    said = f"draft {where}"
    base = _bare(getattr(pipe, network))
    if not Path(where).exists():
        if "/" not in where:
            names = (HOT, SELF, EMBEDDED, *names_for(base))
            raise ValueError(
                unknown("draft", where, names, ", or the path of a folder or a file, or a hub id")
            )
        repository = hub_file(where, said)[0]
        with foreign(f"{said}: cannot load it"):
            require_repository(repository)
    settings = _settings(where) if known is None else known.settings
    config, subfolder = _config(base, where, network)
    if config is None:
        return Drafter(
            _under_lora(pipe, network, where, said, 1.0 if known is None else known.scale), settings
        )
    if config["_class_name"] != type(base).__name__:
        raise ValueError(
            f"{said}: it is a {config['_class_name']}, but the model's network is a"
            f" {type(base).__name__}"
        )
    place = next(base.parameters())
    with foreign(f"{said}: cannot load it"):
        net = type(base).from_pretrained(
            where, subfolder=subfolder, torch_dtype=place.dtype, use_safetensors=True
        )
    frozen = _fitting(base, net, said).to(pipe._execution_device).eval().requires_grad_(False)
    return Drafter(frozen, settings)


# --- a network under a LoRA -----------------------------------------------------------------------


def _under_lora(pipe: Any, network: str, where: str, said: str, scale: float) -> nn.Module:
    """A copy of the network that shares its weights, with the LoRA at a scale besides the active
    adapters."""
    if hooked(pipe):
        raise ValueError(
            f"{said}: a LoRA for drafts shares the weights of the model's network, which offloading"
            " and other hooks of this pipeline move or cast; do without them, or use draft='hot'"
        )
    # Drafts read prompts as the model encoded them, so that layers for text encoders are not
    # loaded.
    net: nn.Module = getattr(
        under_lora(pipe, (network,), where, _ADAPTER, said, scale).pipe, network
    )
    if not tuned_layers(_bare(getattr(pipe, network))):  # whose adapters may change between calls
        _merge(net)
    return net


def _merge(net: nn.Module) -> None:
    """Merge the LoRA of a network into copies of the layers that it changes, where there is room
    for these.

    The layers may share their weights with another network, which stay as they are. Quantised
    weights are not merged.
    """
    layers = [layer.get_base_layer() for _, layer in tuned_layers(net)]
    weights = [p for layer in layers for p in layer.parameters()]
    most = MOST_MERGED
    device = weights[0].device
    if device.type == "cuda":
        most = max(most, torch.cuda.mem_get_info(device)[0] // 4)
    plain = all(type(p) is nn.Parameter and p.is_floating_point() for p in weights)
    if not plain or sum(p.nbytes for p in weights) > most:
        return
    for layer in layers:
        for name, p in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(p.detach().clone(), requires_grad=False))
    net.fuse_lora()  # type: ignore[operator]
    net.unload_lora()  # type: ignore[operator]


def _state(net: nn.Module) -> Hashable:
    """What a drafter made of a network depends on: its weights, their device and dtype, and the
    active adapters.

    Weights go by id and by some of their numbers, since a merged drafter keeps no weights whose ids
    would stay theirs.
    """
    tensors: list[Tensor] = [*net.parameters(), *net.buffers()]
    adapters = [
        (
            name,
            tuple(layer.active_adapters),
            tuple(layer.scaling.items()),
            layer.disable_adapters,
            layer.merged,
        )
        for name, layer in tuned_layers(net)
    ]
    numbers = [
        _sample(t) for t in tensors if type(t) in (nn.Parameter, Tensor) and t.device.type != "meta"
    ]
    return (
        tensors[0].dtype,
        tensors[0].device,
        tuple(map(id, tensors)),
        tuple(numbers),
        tuple(adapters),
    )


def _sample(tensor: Tensor) -> float:
    numbers = tensor.detach().flatten()
    return float(numbers[:: max(1, len(numbers) // 64)].double().sum())


# --- another network ------------------------------------------------------------------------------


def _config(base: Any, where: str, network: str) -> tuple[dict[str, Any] | None, str | None]:
    """The configuration of a network in a folder or on the hub, and its subfolder; None for a
    LoRA."""
    path = Path(where)
    if path.is_file() or (not path.exists() and hub_file(where, f"draft {where}")[1] is not None):
        return None, None
    for subfolder in (None, network):
        try:
            config: dict[str, Any] = type(base).load_config(where, subfolder=subfolder)
        except OSError:
            continue
        if "_class_name" in config:
            return config, subfolder
    return None, None


def _stamps(path: Path) -> Hashable:
    """The times and sizes of the weights of a drafter on disk, which may be replaced."""
    files = (
        [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    )
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _fitting(base: Any, net: Any, said: str) -> nn.Module:
    """The network, if it has the model's class and reads the same latents and texts. ValueError for
    others."""
    bare = _bare(net)
    if not isinstance(bare, type(base)):
        raise ValueError(
            f"{said}: it is a {type(bare).__name__}, but the model's network is a"
            f" {type(base).__name__}"
        )
    for name in _MEETS:
        mine = _plain(base.config.get(name))
        theirs = _plain(bare.config.get(name))
        if mine != theirs:
            raise ValueError(
                f"{said}: its {name} is {theirs}, that of the model's network {mine}; a drafter"
                " must read the same latents and texts"
            )
    refuse_patches({said: bare})
    fitting: nn.Module = net
    return fitting


def _plain(value: object) -> object:
    """Lists, as in configurations on disk, as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _bare(net: Any) -> Any:
    """Without the wrapper of torch.compile."""
    return getattr(net, "_orig_mod", net)


# --- draft.json -----------------------------------------------------------------------------------


def _settings(where: str) -> DraftSettings:
    """The draft.json beside a drafter's weights, in a folder or on the hub; defaults where there is
    none."""
    path = Path(where)
    said = f"draft {where}"
    if path.exists():
        return read_draft(path.parent if path.is_file() else path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with foreign(f"{said}: cannot read its {DRAFT_FILE}"):
            return read_draft(Path(hf_hub_download(hub_file(where, said)[0], DRAFT_FILE)).parent)
    except ValueError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            logger.warning(
                "%s: the hub cannot be asked for its %s, whose defaults are taken", said, DRAFT_FILE
            )
        elif not isinstance(error.__cause__, EntryNotFoundError):
            raise
        return DraftSettings()
