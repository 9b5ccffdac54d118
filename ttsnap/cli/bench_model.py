"""What a benchmark of `ttsnap bench` runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ttsnap.cli import arguments, common
from ttsnap.cli.parser import Arguments
from ttsnap.options.engine import DeviceOptions
from ttsnap.request.request import Prepared

if TYPE_CHECKING:
    from ttsnap.bench.arms import Arm
    from ttsnap.bench.run import Bench
    from ttsnap.core.prompt import Prompt
    from ttsnap.core.protocols import Engine
    from ttsnap.core.results import Result
    from ttsnap.loop.request import Listener, LoopSearch
    from ttsnap.results.record import SearchRecord


class BenchModel:
    """The pipeline of a benchmark, its rewards and the metrics, once loaded: what
    `ttsnap.bench.run` runs on."""

    pipe: Any = None

    def __init__(self, a: Arguments) -> None:
        self._devices = arguments.read(DeviceOptions, a)

    def of(self, bench: Bench) -> BenchModel:
        """The same, for the searches of this benchmark. The first one's loads."""
        self.bench = bench
        first = cast("Prepared", bench.searches[bench.arms[0].name])
        if self.pipe is None:
            self.pipe, self._loaded = common.loaded(first, self._devices)
        for reward in self._loaded.reports or ():
            reward.check([prompt.read for prompt in bench.texts])
        return self

    @contextmanager
    def engine(self, arm: Arm) -> Iterator[Engine]:
        """An engine of an arm, on one device or on many, until the block ends."""
        from ttsnap.pipelines.engine_factory import open_engine

        spec = cast("Prepared", self.bench.searches[arm.name]).engine
        scoring = self._loaded.scoring
        with open_engine(spec, self._devices, self.pipe, scoring) as (engine, self._denoiser):
            if self._denoiser.frames is not None:
                raise ValueError(
                    "a benchmark is of images, and this model makes videos; use ttsnap generate"
                )
            yield engine

    def run(
        self,
        arm: Arm,
        search: LoopSearch,
        prompts: Sequence[Prompt],
        engine: Engine,
        listener: Listener,
        *,
        sheets: bool,
    ) -> tuple[list[Result], SearchRecord]:
        """Results as a call of the pipeline returns them, and their record."""
        from ttsnap.pipelines.run import Opened, run_on
        from ttsnap.results.outputs import Recorder

        opened = Opened(engine, self._denoiser, prompts, self._loaded.reports or ())
        seen = Recorder() if sheets else None
        asked = cast("Prepared", self.bench.searches[arm.name])
        found = run_on(opened, asked, self.pipe, [listener], seen, loop=search)
        return found.results, found.record
