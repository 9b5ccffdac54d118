"""What a benchmark of `ttsnap bench` runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ttsnap.cli import arguments, common
from ttsnap.cli.parser import Arguments
from ttsnap.loop.budget import Budget
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
        self._a, self._devices = a, arguments.read(DeviceOptions, a)

    def of(self, bench: Bench) -> BenchModel:
        """The same, for the searches of this benchmark. The first one's loads."""
        searches = cast("Mapping[str, Prepared]", bench.searches)
        if self.pipe is None:
            self.pipe, self._first = common.loaded(
                self._a, searches[bench.arms[0].name], self._devices
            )
        self.bench = bench._replace(
            searches={name: search.on(self._first) for name, search in searches.items()}
        )
        for reward in self._first.request.selection.reported:
            reward.check([prompt.read for prompt in bench.texts])
        return self

    @contextmanager
    def engine(self, arm: Arm) -> Iterator[Engine]:
        """An engine of an arm, on one device or on many, until the block ends."""
        from ttsnap.pipelines.engine_factory import open_engine

        spec = cast("Prepared", self.bench.searches[arm.name]).engine
        with open_engine(spec, self._devices, self.pipe) as (engine, self._denoiser):
            if self._denoiser.frames is not None:
                raise ValueError(
                    "a benchmark is of images, and this model makes videos; use ttsnap generate"
                )
            yield engine

    def run(
        self,
        search: LoopSearch,
        prompts: Sequence[Prompt],
        engine: Engine,
        listener: Listener,
        *,
        sheets: bool,
    ) -> tuple[list[Result], SearchRecord]:
        """Results as a call of the pipeline returns them, and their record."""
        from ttsnap.pipelines.run import run_on
        from ttsnap.results.outputs import Recorder

        wanted = replace(cast("Prepared", search), prompts=tuple(prompts))
        budget = search.budget if wanted.request.budget == Budget() else wanted.request.budget
        told, seen = replace(wanted, budget=budget), Recorder() if sheets else None
        found = run_on(engine, self._denoiser, wanted, self.pipe, [listener], seen, told=told)
        return found.results, found.record
