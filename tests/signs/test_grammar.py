"""Prompts of signs: their form, what is refused, and the words that training never sees."""

from collections import Counter

import numpy as np
import pytest

from ttsnap.signs import HARD_KINDS, KINDS, Sign, caption, parse, sample_prompts
from ttsnap.signs.grammar import COLORS, DARK, LENGTHS, LETTERS, UNSEEN_PAIRS, WORDS, inks, pairs


@pytest.mark.parametrize(
    "text",
    [
        ' A red  sign that says "hello". ',
        "an RED sign that says ‘Hello’",
        "a red sign that says 'HELLO'",
    ],
)
def test_forms_of_a_prompt_are_one(text):
    assert caption(parse(text)) == 'a red sign that says "HELLO"'


def test_a_prompt_may_name_the_letters_colour():
    text, sign = 'a yellow sign that says "EXIT" in black', Sign("EXIT", "yellow", "black")
    assert (parse(text.replace("black", "Black")), caption(sign)) == (sign, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red circle", r"cannot read 'a red circle'.*of the form a red sign that says"),
        ('a red sign that says "HELLO" and more', "cannot read"),
        ('a rde sign that says "HELLO"', r"unknown colour 'rde'; did you mean red\? Known: red"),
        ('a red sign that says "NO"', "'NO' has 2 letters; a sign has 3 to 8"),
        ('a red sign that says "SEVENTEEN"', "9 letters"),
        ('a red sign that says "ROUTE 66"', "has ' ', '6'; the model writes A to Z only"),
        ('a red sign that says "ÉTÉ"', "has 'É'"),
        (
            'a red sign that says "HELLO" in blue',
            "blue letters do not stand out on red; choose yellow or white",
        ),
    ],
)
def test_what_the_model_cannot_write_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_letters_stand_out():
    assert all((ground in DARK) != (ink in DARK) for ground in COLORS for ink in inks(ground))


def test_kinds_are_lengths_and_pairs_that_training_never_saw():
    unseen = sorted(UNSEEN_PAIRS)[0]
    assert Sign("X" + unseen, "red").kind == "pairs"
    for word in WORDS:
        kind = Sign(word, "red").kind
        assert (kind == "pairs") == bool(pairs(word) & UNSEEN_PAIRS)
        assert kind == "pairs" or len(word) in LENGTHS[kind]
    assert 30 < len(UNSEEN_PAIRS) < 80
    assert set().union(*UNSEEN_PAIRS) == set(LETTERS)


def test_prompts_are_distinct_balanced_and_the_same_again():
    found = sample_prompts(40, 3)
    assert found == sample_prompts(40, 3) != sample_prompts(40, 4)
    assert [caption(parse(text)) for text in found] == found
    assert len({parse(text).word for text in found}) == 40
    assert Counter(parse(text).kind for text in found) == dict.fromkeys(KINDS, 10)
    assert {parse(text).kind for text in sample_prompts(6, 0, HARD_KINDS)} == set(HARD_KINDS)
    assert np.mean([parse(text).ink is None for text in sample_prompts(200, 1)]) == pytest.approx(
        0.5, abs=0.15
    )
    with pytest.raises(ValueError, match="short, medium, long, pairs"):
        sample_prompts(1, 0, ["triple"])
    with pytest.raises(ValueError, match="words of 'long'"):
        sample_prompts(400, 0, ["long"])
