"""Rewards by name: from a spec (a name, a function, a file, an address, an object) to a
RewardModel."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ttsnap.core.checklist import CHECK, NOBODY, is_item, of_list, read_list
from ttsnap.core.names import did_you_mean, load_object, unknown
from ttsnap.core.protocols import Reward, Scores
from ttsnap.rewards.reward_model import RewardModel, adapted, stated

if TYPE_CHECKING:
    import torch

    Device = torch.device | str
Spec: TypeAlias = str | Reward | Callable[..., Scores]
"""A reward as a user gives it: see make_reward."""
REWARDS: dict[str, str] = {
    "scenes": "ttsnap.reward_models.scenes:ScenesReward",
    "scenes-likely": "ttsnap.reward_models.checklist.likely:ScenesLikely",
    "scenes-learned": "ttsnap.reward_models.scenes:ScenesLearned",
    "scenes-noise-aware": "ttsnap.reward_models.scenes:ScenesNoiseAware",
    "scenes-strict": "ttsnap.reward_models.scenes:ScenesStrict",
    "clip": "ttsnap.reward_models.clip:CLIPScore",
    "open_clip": "ttsnap.reward_models.clip:OpenClipScore",
    "pickscore": "ttsnap.reward_models.pickscore:PickScore",
    "hpsv2": "ttsnap.reward_models.hpsv2:HPSv2",
    "hpsv2.1": "ttsnap.reward_models.hpsv2:HPSv21",
    "imagereward": "ttsnap.reward_models.image_reward:ImageReward",
    "hpsv3": "ttsnap.reward_models.vlm.hpsv3:HPSv3",
    "editreward": "ttsnap.reward_models.vlm.edit_reward:EditReward",
    "editscore": "ttsnap.reward_models.vlm.edit_score:EditScore",
    "unifiedreward": "ttsnap.reward_models.vlm.unified_reward:UnifiedReward",
    "videoalign": "ttsnap.reward_models.vlm.video_align:VideoAlign",
    "aesthetics": "ttsnap.reward_models.aesthetics:Aesthetics",
    "noise-aware": "ttsnap.reward_models.noise_aware.student:NoiseAware",
    "vqascore": "ttsnap.reward_models.vqa:VQAScore",
    "signs-noise-aware": "ttsnap.reward_models.signs:SignsNoiseAware",
    "counting": "ttsnap.reward_models.detection:CountReward",
    "safe": "ttsnap.reward_models.safe:Safe",
    "ocr": "ttsnap.reward_models.ocr:OCR",
    "compressibility": "ttsnap.reward_models.closed_form:Compressibility",
    "incompressibility": "ttsnap.reward_models.closed_form:Incompressibility",
    "brightness": "ttsnap.reward_models.closed_form:Brightness",
    "colourfulness": "ttsnap.reward_models.closed_form:Colourfulness",
    "place": "ttsnap.reward_models.closed_form:Place",
}
"""The class of each name. A class with `from_pretrained` has weights, which NAME:ID_OR_PATH
overrides."""
LIKENESSES = AUTO, PIXELS, DINO, REWARD = "auto", "pixels", "dino", "reward"
"""By what images are compared, besides rewards that have features (reward_models/likeness.py)."""
CHOSEN = (*REWARDS, "ocr:line")
"""Specs that a model's folder may recommend: none names a file."""
JUDGE = "judge"
"""The name of rewards behind an API. It is not in REWARDS: a user may choose such a reward, a file
may not."""

_NAMES = (*REWARDS, JUDGE)
_OR = ", or write file.py:function or module:attribute"


def refuse_credentials(spec: object) -> None:
    """ValueError, without the address, for a spec (or one of several) whose address holds a name or
    a password.

    Call it before a user's spec is printed. The values of a judge's options are checked one by one:
    names of models may have an @.
    """
    if isinstance(spec, list | tuple):
        for one in spec:
            refuse_credentials(one)
    if not isinstance(spec, str):
        return
    parts = re.split(r",\w+=", spec) if f"{JUDGE}:" in spec else [spec]
    # also http:/NAME
    if any(re.search(r"(://|\bhttps?:).*@", part, re.IGNORECASE | re.DOTALL) for part in parts):
        raise ValueError(
            "a reward's address holds a name or a password, which would show in messages and files:"
            " leave out what is before the @, and set TTSNAP_REWARD_KEY=NAME:PASSWORD, for a judge"
            " OPENAI_API_KEY (an @ of a path is %40)"
        )


def without_queries(spec: object) -> str:
    """A spec for messages: the query of an address may hold a key."""
    return re.sub(r"(\bhttps?:[^\s'\"?]*\?)[^\s'\"]*", r"\1...", str(spec), flags=re.IGNORECASE)


def make_reward(
    spec: Spec, *, device: Device | None = None, dtype: torch.dtype | None = None
) -> RewardModel:
    """The reward that a spec means. ValueError says what is wrong with a spec.

    spec: a name of REWARDS; "name:weights" with a local file or folder or a hub id;
    "file.py:function" or "module:attribute", which is imported, that is, executed; a function or an
    object. "http://..." is a reward server (reward_models/http.py), "judge:..." a model behind an
    API (reward_models/judge/). "A then B" scores estimates by A and finished images by B.
    "noise-aware:FOLDER on BASE" gives the base, where its weights are not the published ones;
    FOLDER may be one of the hub with DOG-Trim's files, as OWNER/NAME/FOLDER
    (noise_aware/released.py).
    device, dtype: of rewards with weights; by default the CPU and the dtype that they were trained
    in. A RewardModel is returned as it is, another object or function as the `given` of a
    FunctionReward.
    """
    refuse_credentials(spec)
    if isinstance(spec, str) and of_list(spec):
        ((reward,),) = _listed([spec], device=device, dtype=dtype)
        return reward
    if isinstance(spec, str) and len(stages := _stages(spec)) > 1:
        early, late = (make_reward(stage, device=device, dtype=dtype) for stage in stages)
        staged: RewardModel = _load("ttsnap.reward_models.staged:Staged", spec)(early, late)
        return staged
    if isinstance(spec, str) and (place := _elsewhere(spec)) is not None:
        elsewhere: RewardModel = _load(place, spec)(spec)
        return elsewhere
    what = _what(spec)
    name = ""
    weights = ""
    more: dict[str, Any] = {
        k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None
    }
    if isinstance(spec, str) and spec.partition(":")[0] in REWARDS:
        name, _, weights = spec.partition(":")
        if name == "noise-aware":
            if " on " in weights and not Path(weights).is_dir():
                weights, _, base = weights.rpartition(" on ")
                more["base"] = make_reward(base.strip(), device=device, dtype=dtype)
            if weights and not (Path(weights) / "adapter.json").is_file():
                what = _load("ttsnap.reward_models.noise_aware.released:ReleasedNoiseAware", spec)
    load = stated(what, "from_pretrained", None)
    if weights and load is None:
        raise ValueError(
            f"reward {name!r} has no weights to choose, got {without_queries(spec)!r}; write"
            f" {name!r} alone"
        )
    if isinstance(what, type):
        return adapted(what() if load is None else load(*[weights] * bool(weights), **more))
    return adapted(what)


def make_rewards(
    specs: Spec | list[Spec] | tuple[Spec, ...],
    *,
    device: Device | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[RewardModel, ...]:
    """One spec of make_reward or a list of them -> rewards with different names."""
    many = specs if isinstance(specs, list | tuple) else [specs]
    asked = list(filter(of_list, many))
    answers = iter(_listed(asked, device=device, dtype=dtype) if asked else ())
    rewards = list[RewardModel]()
    for spec in many:
        if of_list(spec):
            rewards += next(answers)
        else:
            rewards.append(make_reward(spec, device=device, dtype=dtype))
    names = [r.name for r in rewards]
    if not rewards or len(set(names)) < len(names):
        raise ValueError(f"need at least one reward, each with a name of its own, got {names}")
    return tuple(rewards)


def answered_by(spec: str) -> str:
    """The reward that answers the questions of a checklist or of an item; "" where none is named.
    The words of an item may have a "by" of their own: "a man by the sea"."""
    if not spec.startswith(CHECK):
        return read_list(spec)[2]
    _, _, by = spec.rpartition(" by ")
    if by == NOBODY:
        return ""
    head, colon, _ = by.partition(":")
    known = head in _NAMES or _elsewhere(by) is not None or (bool(colon) and " " not in head)
    return by if known and " by " in spec else ""


def _listed(specs: Sequence[Spec], **where: Any) -> list[tuple[RewardModel, ...]]:
    """The rewards of each of these checklists and items, which share their answers."""
    made: list[tuple[RewardModel, ...]] = load_object("ttsnap.reward_models.checklist.specs:made")(
        specs, **where
    )
    return made


def parts(spec: Spec, prompts: Sequence[str], *, packaged: bool) -> tuple[Spec, ...]:
    """The items of a checklist for these prompts; any other reward as it is.

    packaged: whether the model is. ValueError where nobody is named who answers."""
    if not of_list(spec):
        return (spec,)
    found: tuple[Spec, ...] = load_object("ttsnap.reward_models.checklist.specs:parts")(
        spec, prompts, packaged
    )
    return found


def asked_of(specs: Sequence[Spec], prompt: str) -> dict[str, int]:
    """What the items of a checklist among these rewards ask of images of this prompt, in words,
    and which of the rewards each is."""
    if not any(map(is_item, specs)):
        return {}
    asks = load_object("ttsnap.reward_models.checklist.specs:asks")
    words = {i: asks(spec, prompt) for i, spec in enumerate(specs) if is_item(spec)}
    return {told: i for i, told in words.items() if told is not None}


def named(text: str) -> tuple[str, str]:
    """The name and the spec in NAME=SPEC; a spec alone is its own name."""
    name, equals, spec = text.partition("=")
    if equals and name.replace("-", "").replace("_", "").isalnum():
        return name, spec
    return text, text


def check_names(specs: object) -> None:
    """ValueError for a spec (or one of several) with an unknown name, a missing file or a missing
    module.

    Nothing is loaded or imported.
    """
    refuse_credentials(specs)
    for spec in _stages(specs):
        name, colon, _ = str(spec).partition(":")
        if of_list(spec):
            if isinstance(spec, str):
                check_names(answered_by(spec) or [])
            continue
        if not isinstance(spec, str) or name in REWARDS or _elsewhere(spec) is not None:
            continue
        if not colon:
            raise ValueError(_unknown(spec))
        place, _, attribute = spec.rpartition(":")
        if place.endswith(".py"):
            _check_file(Path(place), attribute, without_queries(spec))
        top = place.partition(".")[0]
        if (
            not place.endswith(".py")
            and top not in sys.modules
            and (not top or importlib.util.find_spec(top) is None)
        ):
            said = (
                f"cannot load reward {without_queries(spec)!r}: no module named"
                f" {without_queries(place)!r}"
            )
            raise ValueError(f"{said}{did_you_mean(name, _NAMES)}")


def _check_file(path: Path, attribute: str, spec: str) -> None:
    """ValueError where there is no such file, or its text, which is not run, never names this."""
    if not path.is_file():
        raise ValueError(f"cannot load reward {spec!r}: no such file: {without_queries(path)}")
    text = path.read_text("utf-8", "replace")
    if not re.search(rf"\b{re.escape(attribute)}\b|import \*", text):
        defined = re.findall(r"^(?:def |class )?(\w+)", text, re.MULTILINE)
        said = f"{path} has no {attribute}{did_you_mean(attribute, defined)}"
        raise ValueError(f"cannot load reward {spec!r}: {said}")


def suits_drafts(specs: Spec | Sequence[Spec]) -> bool:
    """Whether rewards may score drafts by default: none pays tokens for each of many drafts.

    No weights are loaded; the spec's file or module is imported, that is, executed. ValueError for
    an unknown name.
    """
    judged = any(
        isinstance(stage, str) and JUDGE in (stage.partition(":")[0], _judge(stage))
        for stage in _stages(specs)
    )
    return not judged and not any(stated(what, "tokens", 0) for what in _here(specs))


def _judge(stage: str) -> str:
    """The name of what answers a checklist; "" for other rewards."""
    return answered_by(stage).partition(":")[0] if of_list(stage) else ""


def have_weights(specs: Spec | Sequence[Spec]) -> bool:
    """Whether rewards that run in this process load weights. Their files or modules are imported,
    that is, executed."""
    return any(stated(what, "from_pretrained", None) is not None for what in _here(specs))


def _stages(specs: Any) -> list[Any]:
    """The single specs of a list, and both of "A then B"."""
    many = specs if isinstance(specs, list | tuple) else [specs]
    parts = (
        [stage.strip() for stage in one.split(" then ", 1)] if isinstance(one, str) else [one]
        for one in many
    )
    return [stage for part in parts for stage in part]


def _elsewhere(spec: str) -> str | None:
    """The maker of a reward at an address or behind an API; None for other rewards."""
    if spec.startswith(("http://", "https://")):
        return "ttsnap.reward_models.http:HttpReward"
    return (
        "ttsnap.reward_models.judge.rewards:from_spec" if spec.partition(":")[0] == JUDGE else None
    )


def _what(spec: Spec) -> Any:
    """The class, function or object that a spec names, or is."""
    return _load(REWARDS.get(spec.partition(":")[0], spec), spec) if isinstance(spec, str) else spec


def _here(specs: Spec | Sequence[Spec]) -> list[Any]:
    """The classes, functions and objects of all rewards that run in this process."""
    stages = [
        (answered_by(stage) if of_list(stage) else stage) if isinstance(stage, str) else stage
        for stage in _stages(specs)
    ]
    return [
        _what(stage)
        for stage in stages
        if not isinstance(stage, str) or (stage and _elsewhere(stage) is None)
    ]


def _load(path: str, spec: str) -> Any:
    """The object at "module:attribute" or "file.py:attribute". spec: the user's, for messages."""
    if not path.rpartition(":")[0]:
        raise ValueError(_unknown(spec))
    try:
        return load_object(path)
    except ImportError as error:
        raise ValueError(f"cannot load reward {without_queries(spec)!r}: {error}") from error


def _unknown(spec: str) -> str:
    return unknown("reward", spec, _NAMES, _OR)
