"""Captions, their parser and the prompt sets."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsnap.scenes import grammar
from ttsnap.scenes.grammar import (
    HARD_KINDS,
    KINDS,
    WORDS,
    Group,
    Spec,
    caption,
    is_held_out,
    parse,
    sample_prompts,
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return grammar.sample_spec(rng, draw(st.sampled_from(KINDS)))


def test_known_captions() -> None:
    red, blue = Group(1, "red", "circle"), Group(2, "blue", "cross")
    orange = Group(1, "orange", "square")
    assert caption(Spec((red,))) == "a red circle"
    assert caption(Spec((blue,), background="black")) == "two blue crosses on a black background"
    assert caption(Spec((orange, red), "left of")) == "an orange square left of a red circle"
    assert caption(Spec((red, orange, Group(1, "red", "cross")))) == "a red circle, an orange square and a red cross"


@given(specs())
def test_round_trip(spec: Spec) -> None:
    text = caption(spec)
    assert parse(text) == spec
    assert parse("  " + text.upper().replace(" ", "   ") + " . ".strip()) == spec
    assert parse(text.replace("an ", "one ").replace(" and ", ", and ")) == spec
    assert set(text.replace(",", "").split()) <= set(WORDS)


@given(specs())
def test_kind_and_count(spec: Spec) -> None:
    assert spec.kind in KINDS
    assert len(spec.objects) == spec.num_objects <= 4


def test_unknown_words_are_named_and_known_ones_listed() -> None:
    with pytest.raises(ValueError, match="unknown words") as error:
        parse("a pink circle and a red dragon")
    message = str(error.value)
    assert "'pink'" in message
    assert "'dragon'" in message
    assert all(word in message for word in WORDS)


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
        ("two red circles above a blue square", "joins two"),
        ("a red circle and a red circle", "named twice"),
        ("three red circles and two blue squares", "too many objects: 5"),
        ("a red circle on a red background", "a background"),
        ("a red circle on a white background and a blue square", "nothing may follow"),
        ("two red circles, a blue square and a green cross", "one of each"),
    ],
)
def test_outside_the_grammar(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part) as error:
        parse(text)
    assert "Accepted forms" in str(error.value)
    assert "'three blue squares'" in str(error.value)


@pytest.mark.parametrize("held_out", [True, False])
def test_prompts_are_distinct_balanced_and_repeatable(held_out: bool) -> None:
    prompts = sample_prompts(60, seed=3, held_out=held_out)
    assert prompts == sample_prompts(60, seed=3, held_out=held_out) != sample_prompts(60, seed=4, held_out=held_out)
    assert len(set(prompts)) == 60
    kinds = [parse(p).kind for p in prompts]
    assert all(kinds.count(k) == 10 for k in HARD_KINDS)
    assert all(is_held_out(p) == held_out for p in prompts)


def test_a_tenth_is_held_out() -> None:
    rng = np.random.default_rng(0)
    captions = {caption(grammar.sample_spec(rng)) for _ in range(8000)}
    assert 0.08 < np.mean([is_held_out(c) for c in captions]) < 0.12


def test_too_many_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="not enough distinct 'single'"):
        sample_prompts(60, seed=0, kinds=("single",))
    with pytest.raises(ValueError, match="unknown kind 'five'"):
        sample_prompts(1, seed=0, kinds=("five",))


def test_import_is_light() -> None:
    code = "import sys, ttsnap.scenes; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
