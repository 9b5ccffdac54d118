"""A checklist among rewards: one number of several answers, in closed form, and how it is
written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ttsnap.core.checklist import is_item, is_list, read_list, rewards_of
from ttsnap.core.requirement import Gate
from ttsnap.core.selection import Selection
from ttsnap.core.utility import FLOOR, TIED, geometric, mean, product, tied
from ttsnap.options.selection import SelectionOptions

RNG = np.random.default_rng(0)
ANSWERS = RNG.random((50, 5))


def test_the_product_and_the_geometric_mean_of_answers():
    for row, value, root in zip(ANSWERS, product(ANSWERS), geometric(ANSWERS), strict=True):
        logs = [math.log(max(answer, FLOOR)) for answer in row]
        np.testing.assert_allclose(value, math.exp(math.fsum(logs)), rtol=1e-13)
        np.testing.assert_allclose(root, math.exp(math.fsum(logs) / 5), rtol=1e-13)
    one_missed, two_missed = product(np.array([[1.0, 1, 0], [1, 0, 0]]))
    assert (one_missed, two_missed) == (FLOOR, FLOOR**2)
    assert product(ANSWERS.astype(np.float32)).dtype == np.float64


def test_a_tie_is_broken_by_the_other_rewards_and_nothing_else_is():
    utility = tied(product, 2)
    scores = np.column_stack([ANSWERS[:, :2], 1e3 * RNG.standard_normal(50)])
    u, m = product(scores[:, :2]), scores[:, 2]
    expected = (np.floor(TIED * u) + (1 + m / (1 + abs(m))) / 2) / TIED
    np.testing.assert_allclose(utility(scores), expected, rtol=1e-12)
    order = np.lexsort((m, np.floor(TIED * u)))
    assert utility(scores).argsort().tolist() == order.tolist()
    assert utility(np.array([[0.29, 1, -5], [0.28, 1, 5]])).argmax() == 0  # the last bit of .29


def test_how_lists_and_items_are_written():
    assert is_list("checklist")
    assert is_list("checklist:model=m by judge:yes:model=n")
    assert not is_item("checklist by vqascore")
    assert is_item("checklist#2 by vqascore")
    assert is_item("check:two dogs")
    assert not is_list("checklists")
    assert read_list("checklist#2:model=m by vqascore") == (1, "model=m", "vqascore")
    assert read_list("checklist") == (None, "", "")
    items = ["two dogs", "a man by the sea"]
    assert rewards_of("checklist by vqascore", items, "imagereward") == (
        "check:two dogs by vqascore",
        "check:a man by the sea by vqascore",
        "imagereward",
    )
    assert rewards_of(["clip", "hpsv2"]) == ("clip", "hpsv2")
    assert rewards_of(None) == ()
    with pytest.raises(ValueError, match="checklist"):
        rewards_of("clip", tie="hpsv2")


def test_a_selection_of_a_checklist_multiplies_its_items_alone():
    options, items = SelectionOptions(), ("check:a", "check:b")
    scores = np.column_stack([ANSWERS[:, :2], 5 * ANSWERS[:, 2]])
    np.testing.assert_array_equal(
        options.read(1, items).values(scores[:, :2]), product(scores[:, :2])
    )
    np.testing.assert_array_equal(
        options.read(1, (*items, "clip")).values(scores), tied(product, 2)(scores)
    )
    np.testing.assert_array_equal(options.read(1, ("x", "y", "z")).values(scores), mean(scores))
    by_root = SelectionOptions(utility="geometric").read(1, items)
    np.testing.assert_array_equal(by_root.values(scores[:, :2]), geometric(scores[:, :2]))


def test_a_requirement_on_a_checklist_is_one_on_each_item():
    options = SelectionOptions(require="checklist>=0.9", until=["checklist", "clip>20"])
    spread = options.over(("check:a", "check:b"))
    assert [str(one) for one in spread.requirements] == ["check:a>=0.9", "check:b>=0.9"]
    assert [str(one) for one in spread.ends] == ["check:a>=0.5", "check:b>=0.5", "clip>20"]
    assert SelectionOptions(require="clip").over(()).requirements[0].reward == "clip"


def test_a_search_has_enough_when_as_many_images_as_it_keeps_meet_all():
    gate = Gate.of(["a", "b"], ["a", "b"])
    scores = np.array([[0.9, 0.9], [0.9, 0.1], [0.8, math.nan], [0.5, 0.5]])
    assert Selection(enough=gate).ends(scores[:1])
    assert not Selection(enough=gate).ends(scores[1:3])
    assert not Selection(enough=gate, keep=2).ends(scores[:3])
    assert Selection(enough=gate, keep=2).ends(scores)
    assert not Selection().ends(scores)
