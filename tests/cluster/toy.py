"""An engine that loads in no time, and a reward that ends its process, for the processes of workers."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.pipelines.engine_factory import EngineBuilder
from ttsnap.sampling.mixture import MixtureDenoiser


class Deadly:
    """Mean pixel values. Where `folder` holds a file `deadly` it takes it away and kills the process, at its tenth
    call; where it holds `interrupt`, that call is interrupted as by Ctrl-C."""

    name = "deadly"

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, images: torch.Tensor, prompts: Any, level: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == 10 and self._told("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == 10 and self._told("interrupt"):
            raise KeyboardInterrupt
        return images.double().mean((1, 2, 3))

    def _told(self, what: str) -> bool:
        """Whether the file is there, which is then gone: one process alone is told."""
        try:
            (self.folder / what).unlink()
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True)
class ToyBuilder(EngineBuilder):
    """A Gaussian mixture in place of a pipeline; the reward is the folder of a Deadly one."""

    def opened(self) -> Any:
        return SimpleNamespace(scheduler=None, device=torch.device("cpu"), dtype=torch.float32, call_arguments=tuple)

    def engine_of(self, pipe: Any) -> LiveEngine:
        torch.set_num_threads(1)
        means = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        mixture = MixtureDenoiser(means, torch.full((4,), 0.3), torch.full((4,), 0.25), steps=4)
        return LiveEngine(mixture, [Deadly(self.spec.rewards[0])], EngineOptions(2))
