"""Folders of noise-aware rewards: adapter.safetensors holds what was trained, adapter.json
describes it.

adapter.json: format (1), kind (one of noise_aware.KINDS), base (for make_reward), network (the
reward whose network was trained, where that is not the base), fingerprint (of that network's
weights), sha256 (of adapter.safetensors), info (its trainer's notes), and student.SETTINGS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ttsnap.core.protocols import Reward
from ttsnap.files import reading as files
from ttsnap.files.settings import Json
from ttsnap.files.writing import sha256, write_text, write_whole
from ttsnap.reward_models.registry import CHOSEN, REWARDS, make_reward
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import read_state
from ttsnap.rewards.reward_model import RewardModel, adapted

FORMAT = 1
HEADER = "adapter.json"
TENSORS = "adapter.safetensors"


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of names, shapes and values. Values count as bfloat16: a base in float32 and in
    bfloat16 has the same."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().to(torch.bfloat16) if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_adapter(folder: Path, header: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each whole or not at all; reading notices files of two writes.

    ValueError where the folder cannot be made, or the header does not fit into JSON.
    """
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    try:
        text = json.dumps(
            {"format": FORMAT, **header, "sha256": hashlib.sha256(data).hexdigest()}, indent=1
        )
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"cannot save to {folder}: {error}") from error
    write_whole(folder / TENSORS, lambda file: file.write(data))
    write_text(folder / HEADER, text)


def read_header(folder: str | Path | None, kinds: Collection[str]) -> dict[str, Json]:
    """adapter.json of a folder. ValueError unless it is of this format and one of these kinds."""
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f"a noise-aware reward is a folder with {HEADER}, as noise-aware:FOLDER; got"
            f" {str(folder or '')!r}"
        )
    path = Path(folder) / HEADER
    try:
        header = files.read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read, is {folder} a noise-aware reward? {error}"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not of format {FORMAT}; it was written by another program or version"
        )
    if header.get("kind") == "head":
        raise ValueError(
            f"{path} is of a head on {header.get('space')!r:.20}; ttsnap no longer has heads, as"
            " they ranked worse than students that read pixels (docs/journal/reward_heads.md);"
            " distill one of those, as student.kind lora"
        )
    if header.get("kind") not in tuple(kinds):
        raise ValueError(
            f"{path} is of the unknown kind {header.get('kind')!r:.60}; known are"
            f" {', '.join(kinds)}"
        )
    return header


def named_by(
    folder: str | Path,
    header: Mapping[str, Json],
    key: str,
    given: Reward | None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> RewardModel:
    """`given`, or the reward that the header names as its "base" or its "network".

    ValueError for one that a file cannot choose.
    """
    if given is not None:
        return adapted(given)
    spec = header.get(key)
    by_hand = "base=" if key == "base" else "scorer="
    wanted = (
        f"write 'noise-aware:{folder} on {spec}' to say that you want them (in Python: {by_hand})"
    )
    # A header from elsewhere must not make us import what it names: only registered rewards are
    # made.
    if not isinstance(spec, str) or spec.partition(":")[0] not in REWARDS.keys() - {"noise-aware"}:
        raise ValueError(
            f"{folder} is for the {key} {spec!r:.200}, which is no reward's name; load it with"
            f" {by_hand}" + f", or write 'noise-aware:{folder} on REWARD'" * (key == "base")
        )
    if spec not in CHOSEN:  # weights elsewhere: a file or a hub id that the user has not named
        raise ValueError(
            f"{folder} is for the {key} {spec!r}, whose weights are not loaded because a file names"
            f" them; {wanted}"
        )
    try:
        return make_reward(spec, device=device, dtype=dtype)
    except ValueError as error:
        raise ValueError(
            f"cannot load {spec!r}, the {key} of {folder}: {error}; or load it with {by_hand}"
        ) from error


def trained_for(folder: str | Path, header: Mapping[str, Json], scorer: Reward) -> None:
    """ValueError unless this is the network that was trained."""
    if not isinstance(scorer, Scorer):
        raise ValueError(f"{folder} needs a base with weights, got {scorer.name!r}")
    if fingerprint(scorer.network) != header.get("fingerprint"):
        raise ValueError(
            f"{folder} was trained for another checkpoint of"
            f" {header.get('network', header.get('base'))!r}; give that one (in float32 or"
            " bfloat16) as base"
        )


def fill(
    parameters: Mapping[str, nn.Parameter], folder: str | Path, header: Mapping[str, Json]
) -> None:
    """Set parameters from adapter.safetensors. ValueError where that is damaged, or has other names
    or shapes."""
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {TENSORS}; copy both files")
    if path.stat().st_size > files.TENSOR_BYTES or sha256(path) != header.get("sha256"):
        raise ValueError(
            f"{path} is not the one that {HEADER} describes: damaged, or of another save; copy both"
            " again"
        )
    state = read_state(path)
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    odd = sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    )
    if odd:
        raise ValueError(
            f"{path} is for another model: {len(odd)} tensors differ, such as {odd[0]}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
