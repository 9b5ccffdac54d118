"""Noise-aware rewards that read no pixels: estimates are scored from latents, or from the denoiser's hidden features.

A decode can cost more than everything else about a check, and the features of a call that is paid for anyway know what
the denoiser makes of its input. A small stem takes the place of the base's first layers; the rest starts as the base's,
so the text, and how a picture is compared with it, need not be learned again. Finished images are scored by the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu
from ttsnap.reward_models.noise_aware.files import HEADER, base_of, fill, fingerprint, read_header, write_adapter
from ttsnap.reward_models.noise_aware.level_embedding import LevelEmbedding
from ttsnap.reward_models.noise_aware.trained_copy import trained_copy
from ttsnap.reward_models.scorer import Scorer

from ttsnap.core.protocols import Reward
from ttsnap.files.settings import Json, check
from ttsnap.profiling.flops import count_flops
from ttsnap.rewards.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel

SPACES = ("latents", "features")
MOST_CHANNELS = 2**16


class Stem(nn.Module):
    """Replaces a network's first layers: ignores its input, and returns features of the tensor that it holds.

    (N, channels, h, w) -> (N, out, *size), normalised per place, since hidden states have channels of any size.
    """

    def __init__(self, channels: int, out: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.GroupNorm(1, channels)
        self.mix = nn.Conv2d(channels, 2 * out, 1)
        self.out = nn.Conv2d(2 * out, out, 3, 1, 1)
        self._held: Tensor | None = None

    @contextmanager
    def holding(self, x: Tensor) -> Iterator[None]:
        """While this is entered, the network sees x (N, channels, h, w)."""
        self._held = x
        try:
            yield
        finally:
            self._held = None

    def forward(self, _: Tensor) -> Tensor:
        if self._held is None:
            raise RuntimeError("the stem holds nothing; enter holding(x) first")
        x = self.out(silu(self.mix(self.norm(self._held))))
        return x if x.shape[-2:] == self.size else interpolate(x, self.size, mode="bilinear", antialias=True)


class Head(RewardModel):
    """A reward whose estimates are latents or features, trained by distill.

    base: a Scorer that says where a stem goes (`graft`). space: "latents" or "features"; channels: of what is read;
    features_block: the denoiser's transformer block that the features come from. ValueError for what does not fit.
    """

    base: Scorer
    network: Network

    def __init__(
        self,
        base: Reward,
        *,
        space: str,
        channels: int,
        features_block: int | None = None,
        spec: str = "",
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        if space not in SPACES or (space == "features") != (features_block is not None):
            raise ValueError(f"space is one of {SPACES}, features with a block; got {space!r} and {features_block}")
        scorer = make_reward(base)
        if not isinstance(scorer, Scorer) or not scorer.graft:
            raise ValueError(f"reward {scorer.name!r} does not say where a stem would go (graft)")
        if min(channels, batch_size) < 1:
            raise ValueError(f"channels and batch_size must be at least 1, got {channels} and {batch_size}")
        self.name, self.base, self.spec = f"{scorer.name}-{space}", scorer, spec or scorer.name
        self.example = scorer.example
        self.estimates = self.space = space
        self.channels, self.features_block, self.batch_size = channels, features_block, batch_size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = Network(scorer, channels)

    def trainable(self) -> dict[str, nn.Parameter]:
        """By stable name; everything else is frozen."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def begin_stage(self, level: float) -> None:
        """One network for all levels: nothing to do."""

    def predict(self, x: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """One batch: (N, channels, h, w), N prompts, levels (N,) -> (N,) float32, differentiable in `trainable()`."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"{self.name} reads {self.space} of {self.channels} channels, got {tuple(x.shape)}")
        scores: Tensor = self.network(x, list(prompts), torch.as_tensor(level).float())
        return scores

    @torch.no_grad()
    def score_estimates(self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """Unfinished estimates (N, channels, h, w), N prompts, levels (N,) -> (N,) float32."""
        levels = torch.as_tensor(level).float().expand(len(x))
        parts = []
        for rows in torch.arange(len(x)).split(self.batch_size) if len(x) else ():
            at = rows.to(x.device)
            parts.append(self.predict(x[at], [prompts[i] for i in rows.tolist()], levels[rows.to(levels.device)]))
        return torch.cat(parts) if parts else torch.zeros(0)

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Tensor:
        """Finished images, by the base. ValueError for decoded estimates, which this reward cannot read."""
        if level is not None and bool((torch.as_tensor(level) > 0).any()):
            raise ValueError(f"{self.name} scores estimates from {self.space}, not from decoded images")
        return self.base(images, prompts)

    def without_alpha(self, images: Tensor) -> Tensor:
        """The base's (Scorer.without_alpha)."""
        return self.base.without_alpha(images)

    def check(self, prompts: Sequence[str]) -> None:
        """The base's warnings."""
        self.base.check(prompts)

    @cached_property
    def flops(self) -> float:
        """FLOPs of one estimate with a prompt of its own, at the stem's own resolution."""
        x = torch.zeros(1, self.channels, *self.network.stem.size, device=self.base.device)
        return count_flops(lambda: self.predict(x, [self.example], torch.tensor([0.5])))

    def save_pretrained(self, folder: str | Path, info: Mapping[str, Json] | None = None) -> None:
        """Write adapter.safetensors and adapter.json; info: whatever JSON can hold, such as how it was trained."""
        header: dict[str, Json] = {
            "kind": "head",
            "base": self.spec,
            "fingerprint": fingerprint(self.base.network),
            "space": self.space,
            "channels": self.channels,
            "features_block": self.features_block,
            "info": dict(info or {}),
        }
        write_adapter(Path(folder), header, self.trainable())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base: Reward | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 256,
    ) -> Head:
        """What `save_pretrained` wrote. ValueError where the folder is damaged, or the base another one."""
        header = read_header(folder, ("head",))
        hints: dict[str, object] = {"space": str, "channels": int, "features_block": int | None}
        try:
            settings = {name: check(name, header.get(name), hint) for name, hint in hints.items()}
            if not 0 < settings["channels"] <= MOST_CHANNELS:
                raise ValueError(f"channels {settings['channels']}")
        except ValueError as error:
            raise ValueError(f"{Path(folder) / HEADER} has settings that no head wrote: {error}") from None
        scorer = base_of(folder, header, base, device=device, dtype=dtype)
        head = cls(scorer, **settings, spec=str(header["base"]), batch_size=batch_size)
        fill(head.trainable(), folder, header)
        return head


class Network(nn.Module):
    """The base's network, frozen, and a trained copy of its image side whose first layers a Stem replaces."""

    def __init__(self, base: Scorer, channels: int) -> None:
        super().__init__()
        self.base = base.network
        width, size = _site(base)
        self.copy = trained_copy(base, "full", 0)
        for name in base.skipped:
            self.copy.set_submodule(name, nn.Identity())
        self.copy.set_submodule(base.graft, Stem(channels, width, size).to(base.device))
        self.scorer = base.on(self.copy)
        self.embedding = LevelEmbedding({base.graft: width}).to(base.device)
        self.embedding.attach(self.copy)
        self.blank = base.preprocess.size
        self.eval()

    @property
    def stem(self) -> Stem:
        stem = self.copy.get_submodule(self.scorer.graft)
        assert isinstance(stem, Stem)
        return stem

    def train(self, mode: bool = True) -> Network:
        return super().train(False)

    def forward(self, x: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """(N, channels, h, w), N prompts, levels (N,) -> (N,) float32."""
        device = self.scorer.device
        blank = torch.zeros(len(x), 3, self.blank, self.blank, device=device)  # what the skipped layers would see
        with self.embedding.at(level.to(device)) as features, self.stem.holding(x.to(device, torch.float32)):
            return self.embedding.rescale(self.scorer.score(blank, prompts), features)


@torch.no_grad()
def _site(base: Scorer) -> tuple[int, tuple[int, int]]:
    """Channels and size of the output (1, C, h, w) that the stem replaces, from one call."""
    shapes: list[torch.Size] = []
    hook = base.network.get_submodule(base.graft).register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    size = base.preprocess.size
    try:
        base.score(torch.zeros(1, 3, size, size, device=base.device), [base.example])
    finally:
        hook.remove()
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ValueError(f"graft {base.graft!r} of {base.name} must give one (N, C, h, w), it gave {shapes}")
    return shapes[0][1], (shapes[0][2], shapes[0][3])
