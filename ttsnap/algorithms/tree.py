"""Best-first tree search over denoising: expand the most promising of all particles ever scored, a
block at a time.

Nodes are particles at block boundaries. From Diffusion Tree Sampling (arXiv 2506.20701) come the
tree that is kept, and expanded where softmax(value / temperature) says; from classical search
(arXiv 2505.23614) a best-first order by scores of x0 estimates. Ours are the value that compares
depths, the temperature that falls with the budget, and the terms for diversity. Only what can still
be finished is bought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ttsnap.core.arrays import FloatArray, IntArray
from ttsnap.core.grid import Task
from ttsnap.core.moves import Kind, Move, Rows
from ttsnap.core.needs import Need
from ttsnap.core.particles import Particles
from ttsnap.files.settings import Count, NotNegative, Settings


class TreeState(NamedTuple):
    """What the search remembers between moves."""

    task: Task
    block: int
    """Grid steps between a node and its children."""
    nodes: int = -1
    """Size of the tree at the last move, -1 before the first."""
    born: int = 0
    """Uids from here on are its own particles; earlier ones belong to whoever handed over to it."""
    given: tuple[int, ...] = ()
    """Uids of the roots that it adopted."""


class Tree(NamedTuple):
    """The tree as it is. All but `uids` are by uid (N,)."""

    uids: IntArray
    """(n,) nodes."""
    value: FloatArray
    """Scores that compare depths."""
    children: IntArray
    """Children of a node."""
    root: IntArray
    """The root above a node."""
    tree: IntArray
    """Expansions of a root's tree."""


@dataclass(frozen=True)
class BestFirst(Settings):
    """Nodes are `block` grid steps apart; the more it has looked at one, the less it is drawn to
    it."""

    n: Count = 8
    """Roots to begin with [ours]."""
    width: Count = 2
    """Nodes expanded at once: more fill the batch, and are chosen with less known [ours]."""
    block: Count | None = None
    """Grid steps of an edge; None: a fifth of the grid [ours]."""
    temperature: NotNegative = 1.0
    """Of the choice at first, in standard deviations of the scores of one depth; it falls in
    proportion to what is left of the budget [ours]."""
    bonus: NotNegative = 1.0
    """How much log(1 + expansions), of a node and of its root's tree, lowers a node, in the same
    unit. On a Gaussian mixture with 400 NFE, .25 finished a hundred images and lost to best-of-N; 1
    finished 20 and won [ours]."""
    reseed: bool = True
    """Whether a fresh seed, worth as much as the average root, may be chosen, too [ours]."""
    needs = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> TreeState:
        if not np.isfinite(task.allowance):
            raise ValueError(
                "best-first plans by its budget: give one in evaluations, FLOPs or seconds"
            )
        return TreeState(
            task, min(self.block or max(1, round(task.grid.steps / 5)), task.grid.steps)
        )

    def adopt(self, state: TreeState, uids: IntArray, particles: Particles) -> TreeState:
        """Take these living particles, best first, for roots in place of fresh seeds.

        Those at step 0 are taken a block further before they are nodes; those that were scored
        later are nodes.
        """
        return state._replace(given=tuple(np.asarray(uids, int).tolist()), born=len(particles))

    def step(
        self, state: TreeState, particles: Particles, rng: np.random.Generator
    ) -> tuple[Move | None, TreeState]:
        tree = self._grow(state, particles)
        if len(tree.uids) == state.nodes:
            # nothing could be paid for: another cap than the one that the allowance is of
            return None, state
        end = state.task.grid.steps
        allowance = state.task.allowance
        waiting = [uid for uid in state.given if uid not in tree.uids]
        left = float(particles.left)
        seen = set[int]()
        rows = list[tuple[int, int, int, int, bool]]()
        scored = tree.uids[
            np.isfinite(tree.value[tree.uids]) & (particles.step[tree.uids] < end)
        ].tolist()
        for _ in range(self.width if len(tree.uids) else self.n):
            # Steps before the last draw noise; a second child over the last one alone would be a
            # copy.
            open_ = [
                (u, int(particles.step[u]))
                for u in scored
                if particles.step[u] < end - 1 or not tree.children[u]
            ]
            options = [(u, at, stop) for u, at in open_ if (stop := self._stop(state, at, left))]
            if (self.reseed or not len(tree.uids)) and (stop := self._stop(state, 0, left)):
                options.append((-1, 0, stop))
            if not options:
                break
            worth = np.array([self._worth(tree, uid) for uid, _, _ in options])
            # The largest sum with Gumbel noise is a draw from softmax(worth / temperature).
            heat = self.temperature * max(0.0, left / allowance)
            uid, at, stop = options[np.argmax(worth + heat * rng.gumbel(size=len(worth)))]
            left -= state.task.evaluations(at, stop)
            if uid < 0:
                root = (Kind.CONTINUE, waiting.pop(0)) if waiting else (Kind.FRESH, -1)
                rows.append((*root, 0, stop, True))
                continue
            # A parent's first row continues it: one that stays where it is keeps the node.
            rows += [(Kind.CONTINUE, uid, at, at, False)] if uid not in seen else []
            rows.append((Kind.CONTINUE, uid, at, stop, True))
            seen.add(uid)
            tree.children[uid] += 1
            tree.tree[tree.root[uid]] += 1
        if not rows:
            return None, state
        kind, parent, start, to, score = (np.array(column) for column in zip(*rows, strict=True))
        return Move(Rows(kind, parent, start, to, score, np.ones(len(rows)))), state._replace(
            nodes=len(tree.uids)
        )

    def _worth(self, tree: Tree, uid: int) -> float:
        if uid < 0:
            return 0.0  # the average of roots, whose scores are in standard deviations from it
        tries = np.log1p(tree.children[uid]) + np.log1p(tree.tree[tree.root[uid]])
        return float(tree.value[uid] - self.bonus * tries)

    def _stop(self, state: TreeState, at: int, left: float) -> int:
        """Where a child from step `at` goes: a block ahead if it can be finished from there, to the
        end, or 0."""
        end = state.task.grid.steps
        ahead = min(at + state.block, end)
        straight = state.task.evaluations(at, end)
        whole = (
            state.task.evaluations(at, ahead) + state.task.evaluations(ahead, end)
            if ahead < end
            else straight
        )
        return ahead if whole <= left + 1e-9 else end if straight <= left + 1e-9 else 0

    def _grow(self, state: TreeState, particles: Particles) -> Tree:
        """The tree as it is, from the particles. A score counts in standard deviations from the
        mean at its depth, as estimates at noisy steps spread less. Those at one depth are children
        of chosen nodes: the mean value of their parents is added, so that an average child is worth
        its parent.
        """
        n = len(particles)
        step = particles.step
        ours = np.arange(n) >= state.born
        ours[list(state.given)] = True
        node = ours & (particles.scored >= state.block)
        given = list(state.given)
        node[given] |= particles.scored[given] > 0
        uids = np.flatnonzero(node)
        parent = particles.parent
        up = np.where((parent >= 0) & node[parent], parent, -1)
        root = np.arange(n)
        value = np.full(n, -np.inf)
        grown = uids[up[uids] >= 0]
        for uid in grown:
            root[uid] = root[up[uid]]
        children = np.bincount(up[grown], minlength=n)
        tree = np.bincount(root[grown], minlength=n)
        for depth in np.unique(step[uids]):
            at = uids[step[uids] == depth]
            score = particles.value(at)
            at = at[np.isfinite(score)]
            score = score[np.isfinite(score)]
            if len(at):
                spread = score.std() or 1.0
                value[at] = (score - score.mean()) / spread + np.where(
                    up[at] < 0, 0.0, value[up[at]]
                ).mean()
        return Tree(uids, value, children, root, tree)
