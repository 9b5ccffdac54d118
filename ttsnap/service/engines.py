"""Engines of the service: one for each spec, on the device of this process or on many, over the
LoRAs that clients choose by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from ttsnap.cluster.actor_group import Pool
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.core.checklist import Spec, is_item, is_list, item_of, read_list
from ttsnap.core.protocols import Engine
from ttsnap.engine.live import LiveEngine
from ttsnap.engine.shared_denoiser import SharedDenoiser
from ttsnap.files.reading import foreign
from ttsnap.options.model import ModelOptions
from ttsnap.pipelines.engine_factory import EngineBuilder
from ttsnap.pipelines.lora import UnderLora, lora_networks, under_lora, with_adapters
from ttsnap.pipelines.mixin import SearchMixin
from ttsnap.pipelines.opening import opened, reward_placement
from ttsnap.request.request import EngineSpec, Lora
from ttsnap.reward_models.checklist import Checklist
from ttsnap.reward_models.registry import make_rewards
from ttsnap.rewards.reward_model import RewardError, RewardModel
from ttsnap.sampling.denoiser import Capability

SUFFIX = ".safetensors"
USUAL = "pytorch_lora_weights.safetensors"
"""How the names of files end; that of diffusers' own file in a folder."""
MOST_TWINS = 16
"""Most twins that are kept: each has modules of its own."""


def loras_in(folder: Path) -> tuple[Lora, ...]:
    """The LoRAs in a folder: NAME.safetensors, or a folder NAME with such a file. ValueError where
    there is no such folder.

    Names come from the folder, so that what a client writes is never part of a path.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--loras {folder}: there is no such folder; give one that holds NAME{SUFFIX}"
        )
    with foreign(f"--loras {folder} cannot be read"):
        files = {path.name.removesuffix(SUFFIX): _file(path) for path in sorted(folder.iterdir())}
    return tuple(Lora(name, str(path)) for name, path in files.items() if path is not None)


def _file(path: Path) -> Path | None:
    """The file of the LoRA at a path, if there is one."""
    if path.name.startswith(".") or not path.name.isprintable():
        return None
    if not path.is_dir():
        # a pipe would be waited for
        return path if path.suffix == SUFFIX and path.is_file() else None
    inside = [each for each in path.glob(f"*{SUFFIX}") if each.is_file()]
    return path / USUAL if path / USUAL in inside else inside[0] if len(inside) == 1 else None


class LoadedLoras:
    """Twins of a pipeline, each under the LoRAs of some requests. All share the weights of the
    pipeline and those of the LoRAs, which are read here."""

    def __init__(self, pipe: Any, loras: Iterable[Lora] = ()) -> None:
        """ValueError for a LoRA that does not fit the model."""
        self.pipe = pipe
        self.offered = {lora.name: lora for lora in loras}
        """By the names that clients use."""
        self._networks = lora_networks(pipe) if self.offered else []
        self._all = UnderLora(pipe, {})
        for lora in self.offered.values():
            said = f"the LoRA {lora.name}"
            one = under_lora(self._all.pipe, self._networks, lora.path, self._adapter(lora), said)
            self._all = UnderLora(one.pipe, {**self._all.own, **one.own})
        self._twins: OrderedDict[tuple[Lora, ...], UnderLora] = OrderedDict()

    def _adapter(self, lora: Lora) -> str:
        """The name of its adapter: those of files may have dots, which peft takes for modules."""
        return f"request_{list(self.offered).index(lora.name)}"

    def under(self, loras: tuple[Lora, ...]) -> Any:
        """The pipeline under these LoRAs; for none the pipeline itself."""
        if not loras:
            return self.pipe
        if loras not in self._twins:
            scales = {self._adapter(lora): lora.scale for lora in loras}
            others = {self._adapter(lora) for lora in self.offered.values()} - scales.keys()
            twin = with_adapters(self._all, self._networks, scales, others)
            alike = next((each for each in self._twins.values() if twin.costs_as(each)), None)
            if alike is not None:  # to count FLOPs takes long
                twin.learn(alike, self._networks)
            if len(self._twins) == MOST_TWINS:
                self._twins.popitem(last=False)
            self._twins[loras] = twin
        self._twins.move_to_end(loras)
        return self._twins[loras].pipe


# --- engines --------------------------------------------------------------------------------------


class Engines(Protocol):
    """A model to serve, and rewards for it."""

    pipe: SearchMixin
    """The pipeline in this process, which finishes images."""
    rewards: OfferedRewards
    """Rewards in this process, by the names that clients use; those of a report are called here."""
    loras: LoadedLoras
    """Those of requests, over the pipeline."""

    def engine(self, spec: EngineSpec) -> AbstractContextManager[Engine]:
        """An engine, until the block ends. ValueError for a spec that the model cannot do."""


class OfferedRewards(dict[str, RewardModel]):
    """Rewards by the names that clients use; items of a checklist as searches name them:
    "checklist#2 by NAME"."""

    def __missing__(self, name: str) -> RewardModel:
        place, _, by = read_list(name) if is_item(name) else (None, "", "")
        if place is None:
            raise KeyError(name)
        return self.lists[by].item(place)

    @property
    def lists(self) -> dict[str, Checklist]:
        """The checklists among them, by their names."""
        return {name: one for name, one in self.items() if isinstance(one, Checklist)}

    def parts(self, spec: Spec, prompts: Sequence[str]) -> tuple[Spec, ...]:
        """The items of a checklist for these prompts; any other reward as it is."""
        if not is_list(spec):
            return (spec,)
        length = self.lists[read_list(spec)[2]].length(prompts)
        return tuple(item_of(spec, i) for i in range(length))


class OneDevice:
    """Engines that share the weights of this process's pipeline and rewards.

    Engines that differ in their steps and rewards alone share the denoiser's batches as well.
    """

    def __init__(
        self,
        pipe: SearchMixin,
        rewards: Mapping[str, RewardModel],
        loras: Iterable[Lora] = (),
    ) -> None:
        """ValueError for a LoRA that does not fit the model."""
        self.pipe = pipe
        self.loras = LoadedLoras(pipe, loras)
        # Rewards' own names would tell clients of the operator's files and servers.
        self.rewards = OfferedRewards(
            {name: reward.called(name) for name, reward in rewards.items()}
        )
        self._networks: WeakValueDictionary[Hashable, SharedDenoiser] = WeakValueDictionary()

    @contextmanager
    def engine(self, spec: EngineSpec) -> Iterator[Engine]:
        rewards = tuple(self.rewards[name] for name in spec.rewards)
        drafts = spec.sampler.drafted_by(None).draft is not None
        pipe = self.loras.under(spec.loras)
        network = None if drafts else self._network(spec, pipe)
        engine = pipe.engine_of(spec, network, rewards)
        try:
            yield engine
        finally:
            engine.leave()

    def _network(self, spec: EngineSpec, pipe: SearchMixin) -> SharedDenoiser | None:
        """The network of all engines of this spec, on this pipeline, but for steps and rewards;
        None where each has its own."""
        call = dict(spec.call)
        size = tuple(
            sorted((name, value) for name, value in call.items() if name != "num_inference_steps")
        )
        key = (pipe, size, spec.sampler)
        network = self._networks.get(key)
        if network is None:
            denoiser = pipe.sampling_denoiser(spec.sampler, **call)
            if Capability.SHARE not in denoiser.can:
                return None
            network = self._networks[key] = SharedDenoiser(denoiser)
        return network


def build_engine(
    spec: EngineSpec, model: ModelOptions, rewards: Mapping[str, str], loras: tuple[Lora, ...]
) -> LiveEngine:
    """An engine in an actor, whose pipeline, rewards and LoRAs stay loaded for all specs of one
    model.

    spec: without a scheduler; its rewards go by the names that clients use. model: as it is opened
    here. rewards: as `--reward` takes them, by those names. loras: that are offered. ValueError for
    a spec that does not fit. RuntimeError where the model cannot be loaded here, and RewardError where a reward cannot:
    neither is the client's mistake.
    """
    try:
        loaded = _loras(model, loras)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    try:
        made = {name: _reward(reward, model) for name, reward in rewards.items()}
    except ValueError as error:
        raise RewardError(str(error)) from error
    named = OfferedRewards({name: reward.called(name) for name, reward in made.items()})
    called = [named[name] for name in spec.rewards]
    return EngineBuilder(spec).engine_of(loaded.under(spec.loras), called)


@cache
def _loras(model: ModelOptions, loras: tuple[Lora, ...]) -> LoadedLoras:
    return LoadedLoras(opened(model), loras)


@cache
def _reward(spec: str, model: ModelOptions) -> RewardModel:
    place, dtype = reward_placement(model.device, model.dtype)
    (reward,) = make_rewards(spec, device=place, dtype=dtype)
    return reward


class ManyDevices:
    """Engines of many actors each."""

    def __init__(
        self,
        here: OneDevice,
        model: ModelOptions,
        specs: Mapping[str, str],
        pool: Callable[[Callable[[], LiveEngine]], Pool],
    ) -> None:
        """model: as actors open it. specs: rewards as `--reward` takes them, by the names that
        clients use. pool: gives actors whose engine a function makes (RayPool), on the same devices
        for all specs."""
        self.pipe = here.pipe
        self.rewards = here.rewards
        self.loras = here.loras
        self.model = model
        self.specs = specs
        self._pool = pool

    @contextmanager
    def engine(self, spec: EngineSpec) -> Iterator[Engine]:
        names = {read_list(name)[2] if is_item(name) else name for name in spec.rewards}
        rewards = {name: self.specs[name] for name in names}
        loras = tuple(self.loras.offered.values())
        pool = self._pool(partial(build_engine, spec, self.model, rewards, loras))
        try:
            yield ClusterEngine(pool)
        finally:
            pool.close()
