"""Calls of several frames as one, and what may not be one."""

from __future__ import annotations

import pytest
import torch

from ttsnap.pipelines.calls.joining import (
    PartArguments,
    UnlikeError,
    close,
    image_of,
    joined,
    parted,
    stacked,
)


def test_rows_are_joined_what_all_share_is_not_and_results_come_apart_again():
    table = torch.arange(3.0)

    def call(n, time):
        more = {"ids": table.clone(), "more": [torch.ones(n, 1)]}
        return PartArguments((torch.full((n, 4), float(n)), torch.tensor(time)), more)

    calls = [call(1, 7.0), call(2, 7.0)]
    one = joined(calls, aligned=True)
    assert one.args[0].tolist() == [[1.0] * 4, [2.0] * 4, [2.0] * 4]
    assert (one.args[1].ndim, one.kwargs["more"][0].shape) == (0, (3, 1))
    assert torch.equal(one.kwargs["ids"], table)
    apart = joined([call(1, 7.0), call(2, 3.0)], aligned=False)
    assert apart.args[1].tolist() == [7.0, 3.0, 3.0]
    first, second = parted((one.args[0], [one.args[0]] * 3), calls)
    assert (len(first[0]), len(second[1])) == (1, 3)
    assert close(second[0], calls[1].args[0])
    assert not close(second[0], calls[1].args[0] + 0.1)


def test_lists_are_rows_where_the_input_is_one():

    def call(n):
        return PartArguments(([torch.ones(2, 2)] * n,), {"texts": [torch.ones(n, 3)] * n})

    calls = [call(1), call(2)]
    one = joined(calls, aligned=True)
    assert (len(one.args[0]), len(one.kwargs["texts"])) == (3, 3)
    assert [len(each) for each in parted(one.args[0], calls)] == [1, 2]


def test_images_that_are_not_wanted_are_left_out_and_have_the_last_ones_result():
    rows = torch.arange(6.0)[:, None]  # two passes of three images
    table = torch.zeros(6)
    three = PartArguments((rows, table), {}, 3, 0, 2, frozenset({(0,)}))
    one = PartArguments((10 + rows[:2], table), {}, rowed=three.rowed)
    whole = joined([three, one], aligned=True)
    assert whole.args[0].flatten().tolist() == [0, 1, 10, 3, 4, 11]
    assert whole.args[1] is table
    answers = parted(whole.args[0] * 2, [three, one])
    assert [answer.flatten().tolist() for answer in answers] == [[0, 2, 2, 6, 8, 8], [20, 22]]
    assert image_of(answers[0], three, 1).flatten().tolist() == [2, 8]
    alone = [joined([three.alone(image)], aligned=True).args[0] for image in range(3)]
    assert torch.equal(stacked(alone, three), rows)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"ids": torch.zeros(3)}, {"ids": torch.ones(3)}),
        ({"scale": 1.0}, {"scale": 2.0}),
        ({"texts": torch.zeros(1, 4)}, {"texts": torch.zeros(1, 5)}),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_what_differs_without_rows_keeps_calls_apart(
    first,
    second,
):
    x = torch.zeros(1, 2)
    with pytest.raises(UnlikeError):
        joined([PartArguments((x,), first), PartArguments((x,), second)], aligned=True)
