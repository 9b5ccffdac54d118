"""Weights of rewards: located (a local file or folder, or a hub id), read, renamed, and loaded.

Formats: safetensors, or pickles without code. A checkpoint has the names of its authors' code; a
table of patterns translates them.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ttsnap.files.hub import require_repository
from ttsnap.files.reading import foreign, read_object, reason
from ttsnap.files.settings import check

T = TypeVar("T")
INDEX = "model.safetensors.index.json"
"""Names the files of a checkpoint in several, as transformers writes it."""
NUMBERS = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""Dtypes of weights; numbers of others are quantised, complex or bits."""


def locate(name_or_path: str | Path, files: Sequence[str]) -> Path:
    """The path of a file of weights: `name_or_path`, where that is a file, or the first of `files`
    in it.

    name_or_path: a file, a folder or the id of a hub repository. ValueError where it holds none of
        `files`.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        places = [path / name for name in files]
        what = f"folder {path}"
        found = next((place for place in places if place.is_file()), None)
    else:
        what = f"repository {name_or_path}"
        found = next(filter(None, (_downloaded(str(name_or_path), name) for name in files)), None)
    if found is None:
        raise ValueError(f"{what} holds none of {', '.join(files)}; give the file itself")
    return found


def _downloaded(repo: str, name: str) -> Path | None:
    """A file of a hub repository in the cache; None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(explained(lambda: hf_hub_download(repo, name), repo))
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return None
        raise


def beside(weights: Path, files: Sequence[str], other: str | Path) -> str:
    """The folder of weights (a file or a folder) where it holds one of `files`, such as a
    tokenizer's; else `other`."""
    folder = weights.parent if weights.is_file() else weights
    return str(folder if any((folder / name).is_file() for name in files) else other)


def pretrained(kind: Any, source: str, **options: Any) -> Any:
    """What a class of transformers loads from a folder or a hub id. ValueError where it cannot be
    loaded."""
    return explained(lambda: kind.from_pretrained(source, **options), source)


def explained(load: Callable[[], T], source: str) -> T:
    """The result of a library's `load`; any error as a ValueError that names the source and says
    what to give instead.

    Every exception counts, as in ttsnap.files.reading.foreign: each library raises others for
    damaged files.
    """
    try:
        require_repository(source)
        return load()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"cannot load {source!r}: {reason}; give a local folder or file, or the id of a hub"
            " repository that can be reached"
        ) from error


Names = Sequence[tuple[str, str]]
"""Patterns and replacements, each applied in turn to a tensor's name."""


def renamed(name: str, names: Names) -> str:
    """A tensor's name here, given its published one."""
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def read_state(path: Path, names: Names = (), unused: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Dense tensors by name, unwrapped from "state_dict" or "model". ValueError for other files.

    names: from published names to the network's; unused: beginnings of published names to leave
        out.
    """
    from safetensors.torch import load_file

    if not path.is_file():  # a pipe may never end
        raise ValueError(f"no such file of weights: {path}")
    state: Any
    try:
        with foreign(f"{path} cannot be read as weights, is it whole?"):
            safe = path.suffix == ".safetensors"
            if not safe:
                _check_unpacked(path)
            state = (
                load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
            )
    except ValueError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which could run code; convert it to"
            f" safetensors: {reason(error.__cause__)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(map(_plain, state.values())):
        raise ValueError(f"{path} does not hold plain tensors by name; is it a checkpoint?")
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    return {
        renamed(name, names): value for name, value in plain.items() if not name.startswith(unused)
    }


def _check_unpacked(path: Path) -> None:
    """ValueError for what no torch.save writes.

    That is a zip that unpacks to more than its own size, and a file that begins as neither a zip
    nor a pickle: torch would try it as a tar archive, which it unpacks into a folder of its own.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":  # torch's older format, a pickle
        return
    if start != b"PK\3\4":
        raise ValueError("it begins as no file of weights does")
    with zipfile.ZipFile(path) as packed:
        entries = packed.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    # torch reads another table of entries
    moved = min(entry.header_offset for entry in entries) > 0
    if moved or unpacked > path.stat().st_size:
        raise ValueError("it would unpack to more than its size; save it again by torch.save")


def _plain(value: object) -> bool:
    """Whether it is a tensor whose numbers are there, and can be copied to another dtype."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        return False
    return not value.is_meta and value.dtype in NUMBERS


def read_weights(name_or_path: str | Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a checkpoint in safetensors, by their published names. ValueError for pickles
    and other files.

    name_or_path: a file, or a folder or hub id with one of `names`, or with INDEX and the files
        that it lists.
    """
    path = locate(name_or_path, [*names, INDEX])
    if path.name.endswith(".index.json"):
        listed = read_object(path, what="index of weights").get("weight_map")
        shards = sorted({str(file) for file in listed.values()}) if isinstance(listed, dict) else []
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError(f"{path} must list the files of its tensors, beside it, in weight_map")
        beside = path.parent if Path(name_or_path).expanduser().exists() else name_or_path
        paths = [locate(beside, [shard]) for shard in shards]
    else:
        paths = [path]
    wrong = next((path for path in paths if path.suffix != ".safetensors"), None)
    if wrong is not None:
        raise ValueError(
            f"{wrong} is no safetensors file; docs/rewards.md shows how to convert a checkpoint"
            " to one"
        )
    return {name: value for path in paths for name, value in read_state(path).items()}


def merge_adapters(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights plus peft's low-rank adapters, if any: W + scale * B @ A, in float32. Names lose
    peft's additions.

    scale: the adapters' alpha / rank. ValueError for half an adapter, or an adapter without a
        weight of its shape.
    """
    plain = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    out = {
        name.replace(".base_layer.", "."): value
        for name, value in plain.items()
        if ".lora_" not in name
    }
    for name, down in plain.items():
        if ".lora_A." in name:
            target = f"{name.partition('.lora_A.')[0]}.weight"
            up = plain.get(name.replace(".lora_A.", ".lora_B."))
            weight = out.get(target)
            if (
                up is None
                or weight is None
                or weight.flatten(1).shape != (len(up), down.flatten(1).shape[-1])
            ):
                raise ValueError(
                    f"the adapter {name} needs a lora_B, and {target} of its shape, beside it"
                )
            product = (up.flatten(1).float() @ down.flatten(1).float()).view(weight.shape)
            out[target] = (weight.float() + scale * product).to(weight.dtype)
    return out


def adapter_scale(settings: Mapping[str, Any], rank: str = "r") -> float:
    """The factor of low-rank adapters by peft's settings. rank: the name of the rank in them."""
    alpha, r = (check(name, settings.get(name), float) for name in ("lora_alpha", rank))
    return alpha / (r**0.5 if settings.get("use_rslora") else r)


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, assign: bool = False
) -> None:
    """Load `state` into every parameter and buffer of `module`.

    source: of the state, for messages. assign: for modules on the meta device, take the tensors
    with their dtype, not copies. ValueError where names or shapes are not the module's.
    """
    wanted = module.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys())
    shapes = [n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape]
    if missing or extra or shapes:
        mismatches = [
            f"{len(names)} {what} (such as {names[0]})"
            for names, what in (
                (missing, "missing"),
                (extra, "unknown"),
                (sorted(shapes), "of another shape"),
            )
            if names
        ]
        raise ValueError(f"the weights in {source} are for another model: {'; '.join(mismatches)}")
    module.load_state_dict(dict(state), assign=assign)
