"""LoRA weights from a folder, a file or the hub, put on a pipeline or on a twin of it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign
from ttsnap.options.model import parse_lora
from ttsnap.pipelines.memory.memo import Memo
from ttsnap.pipelines.pipeline_copy import copied, hooked, shared_copy
from ttsnap.pipelines.quiet import quiet

logger = logging.getLogger(__name__)
SAFE_PEFT = "0.20"
"""The first peft that does not import whatever module a LoRA's file names (its `megatron_core`)."""
_ADAPTER = "lora"
LOADING = threading.RLock()
"""Held while weights are loaded beside searches that other threads make with the same ones."""
HEAD_BYTES = 2**23
"""Most bytes of a LoRA's file before its tensors: names, shapes and metadata. Trainers write a
megabyte at most."""
MOST_ALPHA = 1e6
_MATCHED = {"target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"}
_RANKS = {"r", "rank_pattern"}
_ALPHAS = {"lora_alpha", "alpha_pattern"}


def load_lora(pipe: Any, *texts: str) -> None:
    """Put the LoRA of --lora on a pipeline, or several together, as diffusers does, from
    safetensors only.

    ValueError where there is none, or where it does not fit the model.
    """
    scales: dict[str, float] = {}
    for text in texts:
        where, scale = parse_lora(text)
        adapter = f"{_ADAPTER}{len(scales) + 1}" if scales else _ADAPTER
        add_lora(pipe, where, adapter, f"--lora {text}")
        scales[adapter] = scale
    if list(scales.values()) != [1.0]:
        pipe.set_adapters(list(scales), list(scales.values()))


def add_lora(pipe: Any, where: str, adapter: str, said: str, **more: Any) -> None:
    """Load a LoRA under this adapter name, as diffusers does, from safetensors only.

    where: a folder, a .safetensors file, a hub id, or a hub id and a file of it
    (owner/name/file.safetensors). said: what messages begin with. more: arguments of
    `load_lora_weights`. ValueError where there is none, or where it does not fit the pipeline.
    """
    from diffusers.utils.import_utils import is_peft_available, is_peft_version

    family = type(pipe).__name__
    if is_peft_available() and is_peft_version("<", SAFE_PEFT):
        raise ValueError(
            f"{said}: peft before {SAFE_PEFT} runs a module that the file of a LoRA may name;"
            f" update it: pip install -U 'peft>={SAFE_PEFT}'"
        )
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{said}: diffusers loads no LoRA into a {family}")
    path = Path(where).expanduser()
    source, file = (str(path), None) if path.exists() else hub_file(where, said)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise ValueError(f"{said}: not a LoRA: there is no .safetensors file in that folder")
    for local in (path, *path.glob("*.safetensors")):
        _check_head(local, said)
    named = {} if file is None else {"weight_name": file}
    with foreign(f"{said}: cannot load it into a {family}"), quiet("diffusers"):
        require_repository(source)
        weights, *_, about = pipe.lora_state_dict(
            source, use_safetensors=True, return_lora_metadata=True, **named
        )
        ranks = [w.shape[0] for name, w in weights.items() if ".lora_A" in name]
        _check_config(
            about or {},
            max(ranks or (max(w.shape, default=1) for w in weights.values()), default=1),
        )
        pipe.load_lora_weights(source, adapter_name=adapter, use_safetensors=True, **named, **more)
    if not any(adapter in names for names in pipe.get_list_adapters().values()):
        raise ValueError(
            f"{said}: nothing in it belongs to a {family}; was it made for another family?"
        )


class UnderLora(NamedTuple):
    """A twin of a pipeline under a LoRA."""

    pipe: Any
    own: dict[str, nn.Parameter]
    """The weights that the LoRA added, by name; all others are the pipeline's."""

    def costs_as(self, other: UnderLora) -> bool:
        """Whether the LoRAs change the same layers by weights of the same shapes."""
        return {at: p.shape for at, p in self.own.items()} == {
            at: p.shape for at, p in other.own.items()
        }

    def learn(self, other: UnderLora, networks: Sequence[str]) -> None:
        """Take over what was measured of a twin that costs as much."""
        nets = {getattr(other.pipe, name): getattr(self.pipe, name) for name in networks}
        vars(self.pipe)["_search_memo"] = (
            vars(other.pipe).get("_search_memo", Memo()).of_copies(nets)
        )


def under_lora(
    pipe: Any, networks: Sequence[str], where: str, adapter: str, said: str, scale: float = 1.0
) -> UnderLora:
    """A twin whose networks of these names have the LoRA besides the active adapters; the pipeline
    stays as it is.

    Nothing of the LoRA can leak into the pipeline's own evaluations: its networks are other objects
    over the same weights. Layers for text encoders are left out where `networks` names none.
    ValueError as of `add_lora`, where a LoRA is fused, and for one that widens a network's input.
    """
    with LOADING:
        return _under_lora(pipe, networks, where, adapter, said, scale)


def _under_lora(
    pipe: Any, networks: Sequence[str], where: str, adapter: str, said: str, scale: float
) -> UnderLora:
    nets: dict[str, Any] = {
        name: getattr(net := getattr(pipe, name), "_orig_mod", net) for name in networks
    }
    before = {(name, at): layer for name, net in nets.items() for at, layer in tuned_layers(net)}
    if any(layer.merged for layer in before.values()):
        raise ValueError(
            f"{said}: a LoRA of the model is fused and still loaded; call"
            " pipe.unload_lora_weights()"
        )
    # Loading a LoRA changes them, also of shared weights.
    flags = {
        parameter: parameter.requires_grad
        for net in nets.values()
        for parameter in net.parameters()
    }
    twin = copied(pipe, type(pipe))
    words = list[bool]()
    vars(twin).pop("_search_memo", None)
    # not compiled
    vars(twin).update({name: shared_copy(net) for name, net in nets.items()}, _search_buckets=False)
    if not any(name.startswith("text_encoder") for name in networks):
        leave_out = lambda state, **_: words.append(any("text_encoder" in name for name in state))  # noqa: E731
        vars(twin)["load_lora_into_text_encoder"] = leave_out
    try:
        # The quick way to load patches torch's modules for all threads while it lasts.
        add_lora(twin, where, adapter, said, low_cpu_mem_usage=False)
    finally:
        _restore(flags)
    if any(words):
        logger.warning("%s: its layers for text encoders are left out", said)
    own = {}
    for name, net in nets.items():
        made = getattr(twin, name)
        device = next(net.parameters()).device
        if getattr(made.config, "in_channels", None) != getattr(net.config, "in_channels", None):
            raise ValueError(
                f"{said}: it widens the network's input, as LoRAs for control images do"
            )
        for at, layer in tuned_layers(made):
            was = before.get((name, at))
            layer.enable_adapters(True)
            layer.set_adapter(
                [*([] if was is None or was.disable_adapters else was.active_adapters), adapter]
            )
            layer.set_scale(adapter, scale)
        for at, parameter in made.eval().named_parameters():
            if parameter not in flags:
                parameter.data = parameter.data.to(device)
                own[f"{name}.{at}"] = parameter.requires_grad_(False)
    _restore(flags)
    return UnderLora(twin, own)


def with_adapters(
    under: UnderLora, networks: Sequence[str], scales: Mapping[str, float], off: Collection[str]
) -> UnderLora:
    """A twin over all the same weights, of whose adapters these are on, by these scales, and others
    off. The pipeline's own stay as they are."""
    twin = copied(under.pipe, type(under.pipe))
    vars(twin).pop("_search_memo", None)
    for name in networks:
        net = shared_copy(getattr(twin, name))
        vars(twin)[name] = net
        flags = {parameter: parameter.requires_grad for parameter in net.parameters()}
        for _, layer in tuned_layers(net):
            there = [adapter for adapter in layer.active_adapters if adapter not in off]
            layer.set_adapter(there)
            layer.enable_adapters(bool(there))
            for adapter in scales.keys() & set(there):
                layer.set_scale(adapter, scales[adapter])
        _restore(flags)
    own = {}
    for place, adapter in enumerate(scales):
        for at, parameter in under.own.items():
            if f".{adapter}." in f"{at}.":
                own[at.replace(adapter, str(place))] = parameter
    return UnderLora(twin, own)


def lora_networks(pipe: Any) -> list[str]:
    """The names of the networks of a pipeline that a LoRA may change. ValueError where LoRAs cannot
    be put on twins."""
    loadable = getattr(pipe, "_lora_loadable_modules", ())
    names = [name for name in loadable if isinstance(getattr(pipe, name, None), nn.Module)]
    if not names:
        raise ValueError(f"diffusers loads no LoRA into a {type(pipe).__name__}")
    if hooked(pipe):
        raise ValueError(
            "LoRAs of requests share the weights of the model's networks, which offloading and"
            " other hooks of this pipeline move or cast; do without them"
        )
    return names


def _restore(flags: Mapping[nn.Parameter, bool]) -> None:
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)


def tuned_layers(net: nn.Module) -> list[tuple[str, Any]]:
    """The layers of a network that carry adapters, by name."""
    if not getattr(net, "peft_config", None):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        (name, layer) for name, layer in net.named_modules() if isinstance(layer, BaseTunerLayer)
    ]


def _check_head(path: Path, said: str) -> None:
    """ValueError for a file with more than HEAD_BYTES before its tensors, since JSON takes 35 times
    that parsed."""
    if path.is_file():
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        # damaged where the file is shorter than it says
        if HEAD_BYTES < size < path.stat().st_size:
            raise ValueError(
                f"{said}: {path.name} has {size:,} bytes before its tensors; at most {HEAD_BYTES:,}"
            )


def _check_config(about: Mapping[str, Any], rank: int) -> None:
    """ValueError for a configuration in a LoRA's metadata that peft would never be done with.

    about: by "transformer.r" and the like. rank: the highest that the file's tensors have. Its
    patterns are matched with the names of all modules, and some take for ever; for its ranks memory
    is taken before any tensor is read.
    """
    for key, value in about.items():
        name = key.rpartition(".")[2]
        numbers = list(value.values()) if isinstance(value, dict) else [value]
        patterns = (
            list(value) if isinstance(value, dict) else [value] if isinstance(value, str) else []
        )
        bad = name in _MATCHED and not all(_is_tame(pattern) for pattern in patterns)
        bad |= name in _RANKS and not all(type(n) is int and 0 <= n <= rank for n in numbers)
        bad |= name in _ALPHAS and not all(
            type(n) in (int, float) and abs(n) <= MOST_ALPHA for n in numbers
        )
        if bad:
            raise ValueError(
                f"its metadata says {key} = {value!r:.80}, which is not taken: no trainer writes"
                " that; remove lora_adapter_metadata from the file where you trust it"
            )


def _is_tame(pattern: str) -> bool:
    """Whether matching it with a name takes little, whatever the name: few groups and repetitions,
    none in another."""
    few = len(pattern) <= 2000 and pattern.count("(") <= 2 and pattern.count("*") <= 2
    return few and ")*" not in pattern and re.fullmatch(r"[\w.^$|()\\*-]*", pattern) is not None


def hub_file(where: str, said: str) -> tuple[str, str | None]:
    """A hub id, and the file of it that is meant; ValueError for a text that is neither."""
    parts = where.split("/")
    if (
        where.startswith((".", "/", "~"))
        or len(parts) < 2
        or not all(part.strip() for part in parts)
    ):
        raise ValueError(f"{said}: there is no such folder or file, and it is not a hub id")
    if len(parts) > 2 and not where.endswith(".safetensors"):
        raise ValueError(f"{said}: there is no such folder or file, and it is not a hub id")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None
