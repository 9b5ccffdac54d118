"""Captions, their parser and the prompt sets."""

import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsnap.scenes import sample_prompts, sample_spec
from ttsnap.scenes.grammar import (
    HARD_KINDS,
    KINDS,
    UNSEEN_KINDS,
    WORDS,
    Group,
    Spec,
    caption,
    is_held_out,
    parse,
)


def test_known_captions():
    red, blue = Group(1, "red circle"), Group(2, "blue cross")
    orange = Group(1, "orange square")
    assert caption(Spec((red,))) == "a red circle"
    assert caption(Spec((blue,), background="black")) == "two blue crosses on a black background"
    assert caption(Spec((orange, red), "left of")) == "an orange square left of a red circle"
    assert (
        caption(Spec((red, orange, Group(1, "red cross"))))
        == "a red circle, an orange square and a red cross"
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from((*KINDS, *UNSEEN_KINDS)))
def test_round_trip(seed, kind):
    spec = sample_spec(np.random.default_rng(seed), kind)
    text = caption(spec)
    assert parse(text) == spec
    assert parse("  " + text.upper().replace(" ", "   ") + " . ".strip()) == spec
    assert parse(text.replace("an ", "one ").replace(" and ", ", and ")) == spec
    assert set(text.replace(",", "").split()) <= set(WORDS)
    assert len(spec.objects) == spec.num_objects <= (4 if spec.kind in KINDS else 5)


@pytest.mark.parametrize("kind", [*KINDS, *UNSEEN_KINDS])
def test_a_kind_is_drawn_as_named_and_fits_the_model(kind):
    rng = np.random.default_rng(0)
    for spec in [sample_spec(rng, kind) for _ in range(200)]:
        assert spec.kind == kind
        # of the model's 17 tokens two are begin and end
        assert len(caption(spec).replace(",", " ,").split()) <= 15
        if kind == "binding":  # near-identical objects share two colours and two shapes
            assert len(spec.groups) == 4
            columns = zip(*(group.noun.split() for group in spec.groups), strict=True)
            assert [len(set(column)) for column in columns] == [2, 2]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("four red circles and two blue squares", "crowd"),
        ("two red circles above a blue square", "arrangement"),
        ("a red circle left of three blue squares on a black background", "arrangement"),
        ("two red circles, a blue square and a green cross", "medley"),
        ("two red circles, a red cross and a blue circle", "medley"),
        ("two red circles, a red cross, a blue circle and a blue cross", "binding"),
        ("two red circles, a red cross, a blue circle and a green cross", "medley"),
    ],
)
def test_kinds_that_the_model_never_saw(text, kind):
    assert parse(text).kind == kind
    assert caption(parse(text)) == text


def test_known_kinds_are_drawn_as_ever():
    """Present prompts, pictures and figures depend on the random stream of the kinds that the model
    was trained on."""
    rng = np.random.default_rng(0)
    drawn = [caption(sample_spec(rng)) for _ in range(2000)]
    assert zlib.crc32("\n".join(drawn).encode()) == 4011510721
    assert zlib.crc32("\n".join(sample_prompts(60, 0)).encode()) == 928749425


def test_unknown_words_are_named_and_known_ones_listed():
    with pytest.raises(ValueError, match="unknown words") as error:
        parse("a pink circle and a red dragon")
    assert all(word in str(error.value) for word in (*WORDS, "'pink'", "'dragon'"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "the end"),
        ("red circle", "a number word"),
        ("a circle", "a color"),
        ("two red circle", "does not go with"),
        ("a red circles", "does not go with"),
        ("a red circle above", "the end"),
        ("a red circle left a blue square", "'of'"),
        ("a red circle above a blue square below a red cross", "joins two"),
        ("a red circle, a blue square and a red cross above a green cross", "joins two"),
        ("three red circles above two blue squares", "at most 4"),
        ("a red circle and a red circle", "named twice"),
        ("four red circles and three blue squares", "too many objects: 7"),
        (
            "a red circle, a blue circle, a green circle, an orange circle and a red cross",
            "kinds of object: 5",
        ),
        ("a red circle on a red background", "a background"),
        ("a red circle on a white background and a blue square", "nothing may follow"),
        (
            "a red circle, a blue square, a green cross and a red cross on a white background",
            "without a background",
        ),
    ],
)
def test_outside_the_grammar(text, part):
    with pytest.raises(ValueError, match=rf"(?s){part}.*Accepted forms.*'three blue squares'"):
        parse(text)


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("kinds", [HARD_KINDS, UNSEEN_KINDS])
def test_prompts_are_distinct_balanced_and_repeatable(held_out, kinds):
    prompts = sample_prompts(60, 3, kinds, held_out=held_out)
    assert (
        prompts
        == sample_prompts(60, 3, kinds, held_out=held_out)
        != sample_prompts(60, 4, kinds, held_out=held_out)
    )
    assert len(set(prompts)) == 60
    assert Counter(parse(p).kind for p in prompts) == dict.fromkeys(kinds, 60 // len(kinds))
    assert all(is_held_out(p) == held_out for p in prompts)


def test_a_tenth_is_held_out():
    rng = np.random.default_rng(0)
    captions = {caption(sample_spec(rng)) for _ in range(4000)}
    assert 0.08 < np.mean([is_held_out(c) for c in captions]) < 0.12


def test_too_many_prompts_is_an_error():
    for n, kind, message in (
        (60, "single", "not enough distinct 'single'"),
        (1, "five", "unknown kind 'five'"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_prompts(n, seed=0, kinds=(kind,))
