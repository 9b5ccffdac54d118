"""LiveEngine: carries moves out on a real model, with continuous batching.

Rows of one denoiser batch come from any prompt and any step. When pruning frees a row, another
prompt's particle takes it, so the batch stays full.

Its parts: rows.py makes rows of a plan, scheduler.py chooses which run, executor.py runs them. A
stepper (stepper.py) takes them from step to step, scoring.py scores them, store.py keeps particles
between moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from weakref import proxy

import numpy as np
import torch

from ttsnap.core.cost import NAMES, Cost
from ttsnap.core.memory import NotEnoughMemoryError, lacks_memory
from ttsnap.core.needs import Gradient, Need
from ttsnap.core.outcome import Outcome
from ttsnap.core.plans import Plan
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Engine, Reward
from ttsnap.engine.background import Asked, Background
from ttsnap.engine.batch_sizes import BatchSizes, seconds_of, sizes_for
from ttsnap.engine.executor import Executor
from ttsnap.engine.fair import FairTurns, Stage
from ttsnap.engine.gradient_steppers import AscentStepper, GuidedStepper
from ttsnap.engine.looks import check_drafts
from ttsnap.engine.noise import InitialNoise
from ttsnap.engine.prompts import EncodedPrompts
from ttsnap.engine.rows import Row, RowBuilder
from ttsnap.engine.scheduler import ScheduledBatch, Scheduler, by_job, next_batch
from ttsnap.engine.scoring import BegunScores, Later, RowScorer
from ttsnap.engine.shared_denoiser import PendingEval, SharedDenoiser
from ttsnap.engine.stepper import Stepper
from ttsnap.engine.store import Node, Particle, Store
from ttsnap.options.engine import EngineOptions
from ttsnap.profiling.meter import Meter
from ttsnap.reward_models.registry import make_rewards
from ttsnap.rewards.reward_model import turn_of
from ttsnap.sampling.denoiser import Capability, Denoiser
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.kernels import Kernel


class LiveEngine(Engine):
    """Runs a Denoiser and rewards in full batches.

    options: how large batches are, and what is handed to listeners (each field says what it does).
        Where a batch size is None and the device tells its memory, a few throw-away calls measure
        it (`calibration_cost`). Too large a size is halved. With classifier-free guidance the
        network sees twice as many rows.
    kernel: the pipeline's own by default.
    guidance: steps follow the rewards' gradient (guided_steps.py).
    network: that of engines which fill each other's batches, until they `leave`; plain steps
        without drafts only, else ValueError.

    `stats` counts what ran.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rewards: Sequence[Reward],
        options: EngineOptions | None = None,
        *,
        kernel: Kernel | None = None,
        guidance: RewardGuidance | None = None,
        network: SharedDenoiser | None = None,
    ) -> None:
        options = options or EngineOptions()
        self.network = SharedDenoiser(denoiser) if network is None else network
        if network is not None:
            network.welcome(denoiser, guided=guidance is not None)
        self.denoiser = denoiser
        self.rewards = make_rewards(tuple(rewards))
        self.grid = denoiser.grid
        self.kernel = kernel if kernel is not None else denoiser.kernel
        self.calibration_cost = Cost()
        self.draft_calls = 0 if denoiser.drafts is None else denoiser.drafts.calls
        # Parts hold their owner weakly: an engine that is dropped goes at once, with its tensors
        # and networks, where a cycle waits for a full collection, which in a service is rare.
        me = proxy(self)
        network = proxy(self.network)
        prompts = EncodedPrompts(self.network.denoiser, lambda: network.encode())
        self.noise = InitialNoise(denoiser, self.kernel, prompts)
        self.store = Store()
        self.stats: dict[str, int] = defaultdict(int)
        given = options.batch_size, options.decode_batch_size
        self._sizes = BatchSizes(
            *given, lambda denoise, decode: me._found_sizes(denoise, decode), self.stats
        )
        check_drafts(denoiser, self.kernel)
        self.scorer = RowScorer(
            denoiser,
            self.rewards,
            self.grid,
            preview=options.preview,
            frames=options.frames,
            features=options.features,
        )
        self.reward_names = self.scorer.names
        self.keep = tuple(options.keep)
        self.executor = Executor(
            self.network, self.noise, self.scorer, self._sizes, self.stats, padded=options.padded
        )
        self.scheduler: Scheduler[Row] = Scheduler(FairTurns() if options.fair else None)
        self.later: Later | None = Background().submit
        self.asked = Asked()
        self._arrived = list[Outcome]()
        self.row_builder = RowBuilder(self.noise, self.store)
        self.gradient_batch_size = options.gradient_batch_size
        self.stepper = Stepper(denoiser, self.kernel)
        if guidance is not None:
            if denoiser.starter is not None:
                raise ValueError(
                    "guidance by gradients starts from noise; set finish to noise and leave variety"
                    " out, or leave guide out"
                )
            self.later = None  # steps ask rewards, too
            self.stepper = GuidedStepper(
                guidance,
                self.kernel,
                denoiser,
                self.rewards,
                self.gradient_batch_size,
                self.scorer.shown,
            )
        self.calibration_cost += self.stepper.tried
        self._price: Price | None = None
        self.network.peers[self.executor.peer] = lambda most: me._waiting(most)

    def leave(self) -> None:
        """Share the network no more: nothing of this engine runs any longer."""
        del self.network.peers[self.executor.peer]

    # --- what it can do and what that costs -------------------------------------------------------

    @property
    def price(self) -> Price:
        """FLOPs per unit, counted once; seconds per unit once `calibrate` has run."""
        if self._price is None:
            self._price = self.stepper.priced(self.scorer.price(self.denoiser))
            if self.executor.prompts.living:  # FLOPs were counted for another prompt
                self.executor.prompts.encode()
        return self._price

    def calibrate(self) -> Cost:
        """Measure seconds per unit with a few throw-away calls, for budgets in seconds; returns
        what they took."""
        seconds, spent = seconds_of(self.denoiser, self.scorer, self._sizes)
        if self.executor.prompts.living:  # the calls were made for another prompt
            self.executor.prompts.encode()
        seconds, more = self.stepper.timed(seconds)
        self._price = replace(self.price, seconds=seconds)
        self.calibration_cost += spent + more
        return spent + more

    @property
    def offers(self) -> frozenset[Need]:
        """What algorithms may need of it, which depends on whether the sampler draws noise, has a
        path, no history."""
        simple = self.grid.evals is None and not self.kernel.keeps_history
        offered = {Need.MIX, Need.ASCEND} if self.denoiser.mixes_noise else set[Need]()
        if self.kernel.stochastic:
            offered |= {Need.BRANCH, Need.NEAR} if simple else {Need.BRANCH}
        if simple and Capability.PATH in self.denoiser.can:
            offered.add(Need.RENOISE)
        if self.denoiser.drafts is not None:
            offered.add(Need.DRAFT)
        if self.noise.starter is not None:  # no gradient goes back to where particles begin
            offered.discard(Need.ASCEND)
        return frozenset(offered)

    @property
    def batch_size(self) -> int:
        return self._sizes.batch_size

    @property
    def decode_batch_size(self) -> int:
        return self._sizes.decode_batch_size

    @property
    def batch_sizes(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "decode_batch_size": self.decode_batch_size}

    def _found_sizes(self, denoise: int | None, decode: int | None) -> tuple[int, int]:
        prompts = self.executor.prompts
        denoise, decode, spent = sizes_for(
            self.denoiser, self.scorer, prompts.living, denoise, decode, padded=self.executor.padded
        )
        if spent != Cost() and prompts.living:  # it encoded a prompt of its own
            prompts.encode()
        self.calibration_cost += spent
        return denoise, decode

    @property
    def notices(self) -> tuple[str, ...]:
        return self.denoiser.notices

    @property
    def capacity(self) -> int:
        """Pending rows that keep it busy."""
        return 2 * self.batch_size

    @property
    def nfe(self) -> int:
        """With drafts, by their forward passes."""
        drafted = self.stats["draft_calls"]
        return self.stats["nfe"] + (int(drafted * self.price.nfe_per_draft) if drafted else 0)

    @property
    def ran(self) -> Cost:
        return Cost(*(self.stats[name] for name in NAMES))

    @property
    def room(self) -> int:
        return self.stats["room"]

    def meter(self) -> Meter:
        """Measures memory and energy of a run."""
        return Meter(self.denoiser.device)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds in denoise, decode and reward since `start`."""
        return self.executor.watch.seconds

    def differentiate(self, gradient: Gradient) -> None:
        """Get ready for rows that ascend in initial noise; search() asks for it where an algorithm
        needs gradients.

        ValueError for a sampler or reward that cannot be differentiated."""
        if self.network.denoiser is not self.denoiser:
            raise ValueError(
                "an engine that shares its network follows no gradients; let it have its own"
            )
        self.later = None
        self.stepper = AscentStepper(
            self.noise, self.rewards, gradient, self.gradient_batch_size, self.scorer.shown
        )
        self.calibration_cost = self.calibration_cost + self.stepper.tried
        self._price = None

    # --- plans ------------------------------------------------------------------------------------

    def check(self, prompts: Sequence[Prompt]) -> None:
        for reward in self.rewards:
            with turn_of(reward):
                reward.check([prompt.read for prompt in prompts])

    def start(self) -> None:
        self.scheduler = Scheduler(FairTurns() if self.scheduler.turns is not None else None)
        self.asked.drop()
        self._arrived = []
        self.store.clear()
        self.noise.forget()
        self.executor.prompts.clear()
        self.network.forget_prompts()
        self.executor.watch.reset()

    def admit(self, prompts: Sequence[Prompt]) -> None:
        self.check(prompts)
        self.executor.prompts.admit(prompts)
        self.calibration_cost += self.stepper.prepare([prompt.read for prompt in prompts])

    def release(self, job: int) -> None:
        self.store.remove(job, [uid for of, uid in self.store if of == job])
        self.executor.prompts.release(job)
        self.noise.forget(job)
        self.denoiser.trim(len(self.store) + len(self.scheduler) + self.asked.row_count)
        if self.scheduler.turns is not None:
            self.scheduler.turns.share.weights.pop(job, None)

    def weigh(self, job: int, weight: float) -> None:
        if self.scheduler.turns is not None:
            self.scheduler.turns.share.weigh(job, weight)

    def submit(self, job: int, plan: Plan) -> None:
        rows = self.row_builder.rows_of(job, plan)
        self.stepper.mark(rows)
        self.scheduler.add(rows)

    def pending(self) -> int:
        return len(self.scheduler)

    def drop(self, job: int, uids: Sequence[int]) -> None:
        self.store.remove(job, uids)

    def arrived(self) -> list[Outcome]:
        told = self._arrived
        self._arrived = []
        return told

    @torch.no_grad()
    def cancel(self, job: int) -> Outcome:
        if job in self.asked.jobs:
            self._hear_all()
        return self._rest(job, self.scheduler.remove_job(job))

    @torch.no_grad()
    def tick(self) -> list[Outcome]:
        """NotEnoughMemoryError where one row is too many; first all rows are scored that can be,
        and told."""
        try:
            self._tick()
            return self.arrived()
        except BaseException as error:
            if lacks_memory(error):
                self._hear_all()
            else:
                self.asked.drop()
            if isinstance(error, Exception):
                self.denoiser.trim(0)  # errors are kept for long, and with them all that waits here
            raise

    def _tick(self) -> None:
        scheduler = self.scheduler
        executor = self.executor
        executor.ascend(scheduler.going, self.stepper)
        executor.advance(scheduler.going, self.stepper)
        if self.asked and self._wait_for_scores():
            return
        batch = next_batch(scheduler.first(self.batch_size), self.batch_size)
        full = True
        try:
            executor.forward(batch, self.stepper, self._from_peers(batch))
        except NotEnoughMemoryError:
            if not scheduler.arrived:
                raise
            full = False
        executor.advance(scheduler.going, self.stepper)
        through = scheduler.collect()
        self._arrived += [
            self._rest(job, [through[i] for i in at]) for job, at in by_job(through).items()
        ]
        due = (
            scheduler.due(self.decode_batch_size, hold=self.denoiser.offloaded)
            if full
            else [*scheduler.arrived]
        )
        self._score(due, self.later)
        self.denoiser.trim(len(self.store) + len(scheduler) + self.asked.row_count)
        self.calibration_cost += self.denoiser.tried()

    def _from_peers(self, batch: ScheduledBatch[Node]) -> list[PendingEval]:
        """Nodes of other engines on this network that fill up a batch which is evaluated by it."""
        if batch.stage is not Stage.STEP or not batch.evaluations:
            return []
        room = self.batch_size - len(batch.gradients) - len(batch.evaluations)
        return self.network.fill_from_peers(self.executor.peer, room)

    def _waiting(self, most: int) -> Sequence[Node]:
        """At most so many nodes that wait for their evaluation, which another engine's batch takes
        along."""
        self.executor.advance(self.scheduler.going, self.stepper)
        return next_batch(self.scheduler.first(most), most).evaluations

    def _score(self, due: Sequence[Row], later: Later | None) -> None:
        """Score these arrived rows, or begin to, where rewards are asked by `later`."""
        while due:
            try:
                begun, n = self.executor.begin_scores(due, later)
            except NotEnoughMemoryError:
                if not self._arrived:
                    raise
                return
            due = due[n:]
            if begun.waits:
                self.asked.append(begun)
                self.scheduler.leave(begun.rows)
            else:
                self._end_scores(begun)
            while len(self.asked) > 1 and self.asked.row_count > self.capacity:
                self._hear_first()

    def _end_scores(self, begun: BegunScores) -> None:
        """These rows are done once they have their scores."""
        scored = self.executor.end_scores(begun)
        rows = begun.rows
        self.scheduler.leave(rows)
        self._arrived += [
            scored.added_to(self._rest(job, [rows[i] for i in at]), at, latents=bool(self.keep))
            for job, at in by_job(rows).items()
        ]

    def _wait_for_scores(self) -> bool:
        """Wait for those without which the next batch would lack rows; whether there were any.

        They are those of prompts that wait for scores alone, where the others do not fill a batch.
        So all batches of one prompt are as if rewards were asked at once. Where jobs take turns,
        what is there is told, and waited for is only where nothing goes on.
        """
        scheduler = self.scheduler
        before = len(self.asked)
        alone = self.asked.jobs - {row.job for row in (*scheduler.going, *scheduler.arrived)}
        lacking = not scheduler.going
        if scheduler.turns is None:
            lacking = not scheduler.fills(self.batch_size)
        else:
            while self.asked and all(future.done() for future in self.asked[0].waits):
                self._hear_first()
        while lacking and alone and alone <= self.asked.jobs:
            self._hear_first()
        return len(self.asked) < before

    def _hear_first(self) -> None:
        """Wait for the rows that were asked about first. Where memory was short, they are scored in
        parts, here."""
        begun = self.asked.popleft()
        self.scheduler.arrived[:0] = begun.rows
        try:
            self._end_scores(begun)
            return
        except Exception as error:
            if not lacks_memory(error):
                raise
        self._score(begun.rows, None)

    def _hear_all(self) -> None:
        """Wait for all rows that were asked about. Those that fail have arrived again, and fail in
        the next tick."""
        while self.asked:
            with suppress(Exception):
                self._hear_first()

    def _rest(self, job: int, rows: Sequence[Row]) -> Outcome:
        """These rows stop here, without scores; their particles keep their state, ready for another
        move."""
        for row in rows:
            self.store[job, row.uid] = Particle(row.node, row.key)
        where = [row.node.step(self.grid) for row in rows]
        report = self.stepper.report([row.node for row in rows])
        return Outcome(
            job,
            uids=np.array([row.uid for row in rows], int),
            step=np.array([step for step, _ in where], int),
            cached=np.array([paid for _, paid in where], bool),
            look_cost=Cost().plus(*(row.look.cost for row in rows)),
            log_ratio=report.log_ratio,
            has_gradient=report.has_gradient,
            begun=(
                np.array([self.noise.may_begin(row.node) for row in rows], bool)
                if self.noise.starter is not None
                else None
            ),
        )
