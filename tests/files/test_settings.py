"""Settings: dataclasses from plain values, their bounds, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import MaxLen

from ttsnap.files.settings import (
    Count,
    Decay,
    FieldError,
    Positive,
    Settings,
    Share,
    build,
    check,
    to_json,
)


@dataclass(frozen=True)
class Part(Settings):
    width: Count
    shares: tuple[Share, ...] = (0.5,)


@dataclass(frozen=True)
class Whole(Settings):
    rate: Positive = 0.1
    keep: Decay = 0.9
    share: Share = 1.0
    one: Part = Part(1)
    many: tuple[Part, ...] = (Part(2), Part(3))


def test_what_is_left_out_keeps_its_default():
    assert build(Whole, {}) == Whole()
    found = build(
        Whole, {"rate": 1e-3, "one": {"width": 4}, "many": [{"width": 5, "shares": [0, 1]}]}
    )
    assert found == Whole(rate=0.001, one=Part(4), many=(Part(5, (0.0, 1.0)),))
    plain = to_json(Whole(one=Part(7), many=()))
    assert plain == {
        "rate": 0.1,
        "keep": 0.9,
        "share": 1.0,
        "one": {"width": 7, "shares": [0.5]},
        "many": [],
    }
    assert build(Whole, plain) == Whole(one=Part(7), many=())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rate": 0}, r"^rate must be greater than 0, got 0$"),
        ({"keep": 1}, r"^keep must be less than 1, got 1$"),
        ({"share": float("1.5")}, r"^share must be less than or equal to 1, got 1\.5$"),
        ({"rate": "nan"}, "^rate must be a valid number, got 'nan'"),
        ({"one": {"width": 2.5}}, r"^one\.width must be a valid integer, got 2\.5$"),
        (
            {"many": [{"width": 1}, {"width": 1, "shares": [0.5, 2]}]},
            r"^many\[1\]\.shares\[1\] must .* 1, got 2",
        ),
        ({"one": {}}, r"^one\.width is missing$"),
        ({"one": 3}, "^one must be .*, got 3"),
        ({"other": 3}, r"^other is unknown; known are rate, keep, share, one, many$"),
        ({"a\n\x1b": 3}, r"^a\\n\\x1b is unknown; known are"),
        ([], "^the settings must be .*got "),
    ],
)
def test_what_does_not_fit_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        build(Whole, data)


def test_no_item_of_a_list_that_is_too_long_is_looked_at():
    class Unread(list[str]):
        def __iter__(self):
            raise AssertionError("its items were looked at")

    with pytest.raises(ValueError, match=r"^x\[0\] .*'a'"):
        check("x", Unread(["a"] * 10**6), Annotated[list[int], MaxLen(3)])


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Count | Literal["all"], 0, "^x must .* 1 or 'all', got 0$"),
        (
            Count | Literal["all"],
            "al",
            "^x must .* 'all', got 'al'; did you mean all[?]$",
        ),
        (str | list[float], [1, "a"], r"^x\[1\] must be a valid number, got 'a'$"),
        (
            dict[Literal["scale"], float],
            {"scal": 1},
            "^key of x must be 'scale', got 'scal'; did you mean scale[?]",
        ),
    ],
)
def test_of_several_kinds_the_nearest_is_told(hint, value, message):
    with pytest.raises(FieldError, match=message) as error:
        check("x", value, hint)
    assert error.value.field == "x"


def test_bounds_hold_without_a_file_too():
    with pytest.raises(ValueError, match="0, got -1"):
        Whole(rate=-1)
