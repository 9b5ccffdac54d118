"""Shared test tools: a counted Gaussian mixture, a reward that fails on purpose."""

from __future__ import annotations

import functools
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.option import taken
from ttsnap.sampling.mixture import MixtureDenoiser
from ttsnap.simulation.calibrate import calibrate

# The tests' tensors are tiny, and threads that wait for each other are slow on busy machines. The variable is read by
# processes that are started from here: xdist's, in which numpy heeds it as well, and those of tests.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# glibc gives large tensors back to the system when they go, which zeroes each new one page by page: a sixth of the time
# of a small model on a CPU. Read by processes that are started from here, too.
os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


@pytest.fixture(autouse=True, scope="session")
def _float32_on_every_cpu() -> Iterator[None]:
    """--dtype auto is float32 in tests, whatever the CPU can do, so that they see the same images on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        yield


FIRST = ("tests/test_notebooks.py", "tests/demo/", "tests/cluster/", "tests/service/")
"""What takes longest begins first, so that no process of `make test` is left alone with it at the end."""
TOGETHER = ("tests/demo", "tests/cluster", "tests/service")
"""Folders whose modules share a server or Ray, which would otherwise be begun in each process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`pytest -n 2` hands out whole modules, whose tests share fixtures, unless it is told another `--dist`."""
    if config.getoption("numprocesses", None) and config.getoption("dist") == "no":
        config.option.dist = "loadscope"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadscope`: modules are handed out in the order of the tests, not by how many tests they hold."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module: str = super()._split_scope(nodeid)
            return next((folder for folder in TOGETHER if module.startswith(f"{folder}/")), module)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that leaves torch more threads fails: all tests after it take many times as long in that process."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"torch has {left} threads after this test"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as on a terminal; under nohup, and in a background of scripts, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on two cores of this machine, once for all tests of a run, as it takes about ten seconds. Workers import this
    repository's tests, too, where a test sends them some."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


class Counted(MixtureDenoiser):
    """Counts what runs, row by row, independently of the engine and the ledger. Tests may set what it says it has."""

    has_path, offloaded, frames = True, False, None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = self.decodes = self.batches = 0

    def predict(self, x: Any, step: Any, cond: Any) -> Any:
        self.calls += len(x)
        self.batches += 1
        return super().predict(x, step, cond)

    def decode(self, x0: Any) -> Any:
        self.decodes += len(x0)
        images = super().decode(x0)
        if self.frames is None:
            return images
        return images[:, None] * torch.linspace(0.5, 1, self.frames)[:, None, None, None]  # each frame lighter


class Brightness:
    """Mean pixel value; fails (raises or gives nan) on a share of its calls, decided by the pixels alone.

    `spared`: the first call never fails, so that the failures do not end the search at once. `times`: images of one
    score, where they are frames of a video.
    """

    def __init__(
        self, name: str = "brightness", nan: float = 0.0, broken: float = 0.0, spared: bool = False, times: int = 1
    ) -> None:
        self.name, self.nan, self.broken, self.spared, self.images = name, nan, broken, spared, 0
        self.times = times
        self.hopeless: bool | None = None
        """Whether it failed on all of the first images (an exception, or eight nan); None before that is told."""

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        self.images += len(images)
        scores = images.double().flatten(1).mean(1)
        if self.spared and self.images == len(images):
            return scores
        draw = torch.tensor([zlib.crc32(i.numpy().tobytes()) / 2**32 for i in images.cpu()])
        down = bool((draw < self.broken).any())
        scores[draw < self.nan + self.broken] = float("nan")
        if self.hopeless is None:
            scored = not down and not bool(scores.reshape(-1, self.times).isnan().any(1).all())
            self.hopeless = False if scored else True if down or self.images >= 8 * self.times else None
        if down:
            raise RuntimeError("the scorer is down")
        return scores

    def differentiable(self, images: Any, prompts: Any, level: Any) -> Any:
        return images.double().mean((1, 2, 3))


@pytest.fixture
def shallow_model(request: pytest.FixtureRequest) -> Iterator[None]:
    """The embedded model is loaded as `shallow` says, but for tests with Ray, whose processes load the whole one."""
    from tests.shallow import shallow

    with nullcontext() if "ray_session" in request.fixturenames else shallow():
        yield


@pytest.fixture
def real_flops() -> None:
    """For tests of what FLOPs are, where others have `any_flops`."""


@pytest.fixture
def any_flops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLOPs of pipelines are not counted, which takes several times as long as a search with a tiny one."""
    if "real_flops" not in request.fixturenames:
        monkeypatch.setattr("ttsnap.pipelines.memory.flops.counted", lambda denoiser, decoder: (1e6, 1e5))
        monkeypatch.setattr("ttsnap.pipelines.memory.flops.counted_draft", lambda denoiser: 1e6)


@pytest.fixture
def few_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ttsnap calibrate` finds the prices of two budgets on 30 seeds, not of seven on 200, for other tests."""
    quick = functools.partial(calibrate, images=(3, 8), seeds=30)
    monkeypatch.setattr("ttsnap.simulation.calibrate.calibrate", quick)


@pytest.fixture
def counted() -> Callable[..., Counted]:
    def make(steps: int = 8, prompts: int = 3, **kwargs: Any) -> Counted:
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(4, 3, generator=generator)
        offsets = torch.randn(prompts, 3, generator=generator)
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
        return Counted(means, torch.full((4,), 0.3), weights, steps=steps, by_prompt=offsets, **kwargs)

    return make


@pytest.fixture
def engine(counted: Callable[..., Counted]) -> Callable[..., LiveEngine]:
    def make(steps: int = 8, rewards: Any = None, batch_size: int = 4, prompts: int = 3, **kwargs: Any) -> LiveEngine:
        given = {"batch_size": batch_size, **kwargs}
        options = taken(EngineOptions, given)
        return LiveEngine(counted(steps, prompts), rewards or [Brightness()], options, **given)

    return make
