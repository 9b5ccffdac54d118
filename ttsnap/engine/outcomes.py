"""What the engine tells of rows that are done, or that were cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ttsnap.core.cost import Cost
from ttsnap.core.outcome import Outcome
from ttsnap.engine.rows import Row
from ttsnap.engine.scoring import Scored
from ttsnap.engine.stepper import Stepper


def at_rest(job: int, rows: Sequence[Row], stepper: Stepper) -> Outcome:
    """Where these rows of one job are, without scores."""
    where, report = [row.node.step(stepper.grid) for row in rows], stepper.report([row.node for row in rows])
    return Outcome(
        job,
        uids=np.array([row.uid for row in rows], int),
        step=np.array([step for step, _ in where], int),
        cached=np.array([paid for _, paid in where], bool),
        look_cost=Cost().plus(*(row.look.cost for row in rows)),
        log_ratio=report.log_ratio,
        has_gradient=report.has_gradient,
    )


def with_scores(outcome: Outcome, found: Scored, at: Sequence[int], kept: Sequence[dict[str, Tensor]]) -> Outcome:
    """The same with what scoring its rows has found, which are rows `at` of all that were scored. kept: what listeners
    get of each of all these beside its image, or nothing."""
    return replace(
        outcome,
        scores=found.scores[list(at)],
        images=[found.images[i] for i in at],
        errors=[found.errors[i] for i in at],
        kept=[kept[i] for i in at] if kept else (),
        unspent=Cost(tokens=int(found.tokens_left[list(at)].sum())),
    )
