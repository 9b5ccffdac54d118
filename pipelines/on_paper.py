"""A search pipeline without weights: its parts are made of their configurations, on torch's meta
device.

Its calls run on the CPU. A part that is called answers with zeros of the shapes that it makes on
the meta device, and what it takes of memory is noted. So the steps, the price and the passes of a
call are those of the model's own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.fx.experimental._config
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from ttsnap.files.hub import require_repository
from ttsnap.files.reading import JSON_BYTES, foreign, read_bytes
from ttsnap.pipelines import index_of, located, upgrade
from ttsnap.pipelines.calls.values import holds_memory, mapped, size_of, tensors_in
from ttsnap.profiling.on_paper import Fused, Live

CONFIGS = (
    "model_index.json",
    "*/config.json",
    "*/scheduler_config.json",
    "*/guider_config.json",
    "*/tokenizer_config.json",
    "ttsnap.json",
)
"""What is read of a model."""
ALL: Any = torch.fx.experimental._config
FULL = "meta_nonzero_assume_all_nonzero"
METHODS = ("forward", "encode", "decode")
"""Of a part: those that answer."""


class Answers:
    """A part without weights. peak: the most bytes that a call of it has held since this was set to
    0."""

    def __init__(self, part: nn.Module) -> None:
        self.peak = 0
        self.remembers = False
        """Whether a call of a size that was called before is not made again, so that nobody counts
        its FLOPs."""
        self._known: dict[Hashable, tuple[Any, int]] = {}
        """What calls of one size made, and took."""
        kind = type(part)
        methods = {
            name: self._answering(getattr(kind, name)) for name in METHODS if hasattr(kind, name)
        }
        self.part = _here(part, methods)

    def _answering(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def answer(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if all(each.is_meta for each in tensors_in((args, kwargs))):
                return method(part, *args, **kwargs)
            key = method, size_of(args), size_of(kwargs)
            known = self._known.get(key) if self.remembers else None
            made, peak = known or self._made(part, method, args, kwargs)
            if not holds_memory((args, kwargs, made)):
                self._known[key] = made, peak
            self.peak = max(self.peak, peak)
            return mapped(made, lambda each: torch.zeros(each.shape, dtype=each.dtype))

        return answer

    def _made(self, part: nn.Module, method: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        """What a call makes, on the meta device, and the most bytes that it holds."""
        on_meta = mapped((args, kwargs), lambda each: each.to("meta"))
        with torch.no_grad(), Fused(), ALL.patch(FULL, True), Live() as live:  # masks are full
            made = method(part, *on_meta[0], **on_meta[1])
        return made, live.peak


def on_paper(model: str | Path, dtype: torch.dtype) -> tuple[Any, dict[str, Answers]]:
    """The pipeline of a folder or a hub repository, and its networks. ValueError for what cannot be
    made of configurations alone."""
    folder = configurations(model)
    index = index_of(folder, (), trusted=False)
    stock = getattr(diffusers, str(index.get("_class_name")), None)
    if stock is None:
        raise ValueError(
            f"{folder} names no pipeline of diffusers, got {index.get('_class_name')!r:.60}"
        )
    with foreign(f"cannot make {model} of its configurations"):
        parts = {
            name: _part(folder / name, kind[0], kind[1], dtype) if _names_part(kind) else kind
            for name, kind in index.items()
            if not name.startswith("_")
        }
        pipe = upgrade(stock(**parts))
    return without_weights(pipe)


def without_weights(pipe: Any) -> tuple[Any, dict[str, Answers]]:
    """A search pipeline whose networks are on the meta device, as one that runs its calls on the
    CPU; and its networks, by name. The pipeline is changed: it makes no image again."""
    found = {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}
    for part in found.values():
        for layer in part.modules():  # pipelines read statistics that networks keep in buffers
            for key, buffer in layer.named_buffers(recurse=False):
                layer._buffers[key] = torch.ones_like(buffer, device="cpu")
        part.eval().requires_grad_(requires_grad=False)
    networks = {name: Answers(part) for name, part in found.items()}
    pipe.set_progress_bar_config(disable=True)
    return _here(pipe, {}), networks


def _names_part(value: Any) -> bool:
    """Whether an entry of model_index.json names a part, by its library and its class."""
    named = isinstance(value, list) and len(value) == 2
    return named and all(isinstance(each, str | None) for each in value)


def _here(each: Any, methods: Mapping[str, Any]) -> Any:
    """A pipeline or a network that says it is on the CPU, with these methods in the place of its
    own."""
    kind = type(each)
    cpu = property(lambda self: torch.device("cpu"))
    # transformers knows classes by their whole names.
    members = {"__module__": kind.__module__, "device": cpu, "_execution_device": cpu, **methods}
    each.__class__ = type(kind.__name__, (kind,), members)
    return each


def configurations(model: str | Path) -> Path:
    """The folder with the configurations of a model; of a hub repository nothing else is fetched.
    ValueError where there is none."""
    where = located(model)
    if where is not None:
        return where
    from huggingface_hub import snapshot_download

    require_repository(str(model))
    with foreign(f"cannot fetch the configurations of {model}"):
        return Path(snapshot_download(str(model), allow_patterns=list(CONFIGS)))


def _part(folder: Path, library: str | None, name: str | None, dtype: torch.dtype) -> Any:
    """A part of a pipeline: a network without weights, a scheduler, a tokenizer. None where there
    is none, and for what reads pictures."""
    if library is None or name is None:
        return None
    kind = simple_get_class_obj(library, name)
    if issubclass(kind, diffusers.SchedulerMixin | BaseGuidance):
        return kind.from_pretrained(folder)
    if issubclass(kind, PreTrainedTokenizerBase):
        return _tokenizer(folder)
    if issubclass(kind, ProcessorMixin):  # which reads texts, too
        both = _tokenizer(folder)
        both.tokenizer = both
        both.image_processor = None
        return both
    if not issubclass(kind, nn.Module):
        return None
    with torch.device("meta"):
        if issubclass(kind, diffusers.ModelMixin):
            part = kind.from_config(kind.load_config(folder))
        else:
            part = kind(kind.config_class.from_pretrained(folder))
    # diffusers would warn of what from_pretrained keeps in float32
    return nn.Module.to(part, dtype)


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One that makes a token of four letters, about as many as others do."""
    file = folder / "tokenizer_config.json"
    # Most files hold 10^30, which is no number of ours.
    most = (
        json.loads(read_bytes(file, JSON_BYTES)).get("model_max_length") if file.is_file() else None
    )
    own = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "</s>": 2}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split(Regex(".{1,4}"), behavior="isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=own,
        model_max_length=most if isinstance(most, int) and most < 10**6 else 512,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made
