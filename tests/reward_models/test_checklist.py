"""Checklists: what is asked of a prompt, who answers, in how many calls, and what an answer that
fails costs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ttsnap import BestOfN, search
from ttsnap.cli import main
from ttsnap.core.checklist import is_item, is_list, rewards_of
from ttsnap.core.utility import product
from ttsnap.pipelines import load
from ttsnap.results.course import Course
from ttsnap.results.record import read_record
from ttsnap.reward_models.checklist import Checklist
from ttsnap.reward_models.checklist.likely import ScenesLikely, features
from ttsnap.reward_models.checklist.questions import Item, questions
from ttsnap.reward_models.checklist.worlds import ScenesAnswers, SignsAnswers
from ttsnap.reward_models.checklist.writer import read_items
from ttsnap.reward_models.ocr import OCR
from ttsnap.reward_models.registry import (
    answered_by,
    asked_of,
    check_names,
    make_reward,
    make_rewards,
    parts,
    suits_drafts,
)
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.scenes import caption, check, render, sample_spec
from ttsnap.scenes.grammar import KINDS, UNSEEN_KINDS

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Fake:
    """Answers by a table of questions, and notes what it was asked."""

    name = "fake"
    tokens = 7

    def __init__(self, table, fails=""):
        self.table, self.fails = table, fails
        self.calls: list[list[str]] = []
        self.tokens_taken: Sequence[int] = ()

    def __call__(self, images, prompts):
        self.calls.append(list(prompts))
        if self.fails and self.fails in prompts:
            raise RuntimeError("no answer")
        return [self.table.get(prompt, 0.9) for prompt in prompts]


def together(rewards):
    """As an engine asks them."""
    whole, *others = rewards
    for other in others:
        joined = whole.joined(other)
        assert joined is not None
        whole = joined
    return whole


@pytest.mark.parametrize(
    ("prompt", "items"),
    [
        (
            'two red cats left of a dog, and a sign that says "OPEN"',
            [
                *("count: 2 cats", "the cats are red", "a dog", "the cats are left of the dog"),
                *("a sign", "text: OPEN"),
            ],
        ),
        ("a photo of a cat on the blue table", ["a cat", "the table", "the table is blue"]),
        ("a fox on a white background", ["a fox", "the background is white"]),
        ("moody, cinematic", ["moody, cinematic"]),
        (
            "two red circles left of a blue square on a black background",
            [
                *("two red circles", "a blue square", "the red circle left of the blue square"),
                *("a black background", "3 objects and nothing else"),
            ],
        ),
        ('a blue sign that says "LIBRARY" in white', ["a blue plate", "text: LIBRARY"]),
    ],
)
def test_the_questions_of_a_prompt(prompt, items):
    found = questions(prompt)
    assert [str(item) for item in found][: len(items)] == items
    assert all(need < place for place, item in enumerate(found) for need in item.needs)


@pytest.mark.parametrize("text", ["", "a\nb", "two > one", "count: apples", 3])
def test_an_item_that_cannot_be_asked_is_refused(text):
    with pytest.raises(ValueError, match=r"item|count"):
        Item.parse(text)


def test_rules_say_yes_to_all_items_just_where_the_exact_checker_finds_all_right():
    rng, rules = np.random.default_rng(3), ScenesAnswers()
    for kind in (*KINDS, *UNSEEN_KINDS):
        spec, other = sample_spec(rng, kind), sample_spec(rng, kind)
        images = render([spec] * 2 + [other], rng)
        _, right = check(images, [spec] * 3)
        words = [str(item) for item in questions(caption(spec))]
        tensor = torch.from_numpy(images)
        answers = np.stack([rules(tensor, [word] * 3) for word in words], 1)
        assert ((answers >= 0.5).all(1) == right).all(), (kind, words, answers)
        assert ((answers >= 0) & (answers <= 1)).all()


def test_how_likely_a_draft_becomes_right():
    """Features in closed form; and right pictures are likelier than those of another caption."""
    items = ["two red circles", "a blue square", "the red circle left of the blue square"]
    items += ["a black background", "3 objects and nothing else"]
    found = features(np.array([0.5, 0.2, 0.9, 0.8, 0.001]), items, np.array(0.7))
    logs = [np.log(0.5 * 0.2), np.log(0.9), np.log(0.8), np.log(0.01)]
    np.testing.assert_allclose(found, [*logs, 0.7, np.log(0.2)], rtol=1e-12)
    rng, likely = np.random.default_rng(0), ScenesLikely()
    for kind in UNSEEN_KINDS:
        spec, other = sample_spec(rng, kind), sample_spec(rng, kind)
        images = torch.from_numpy(render([spec, other], rng))
        right, wrong = likely(images, [caption(spec)] * 2)
        assert 0 < wrong < right < 1, (kind, right, wrong)
    staged = make_reward("scenes-likely then checklist")
    staged.check([caption(spec)])
    early, late = (staged(images, [caption(spec)] * 2, torch.full((2,), at)) for at in (0.4, 0.0))
    np.testing.assert_allclose(early, likely(images, [caption(spec)] * 2), rtol=1e-6)
    assert late[0] > 0.9 > late[1]


def test_a_plates_colour_is_told():
    picture = torch.tensor([200, 30, 35.0])[None, :, None, None].expand(1, 3, 32, 96) / 255
    answers = SignsAnswers()
    assert answers(picture, ["a red plate"])[0] > 0.9
    assert answers(picture, ["a blue plate"])[0] < 0.1


def test_all_items_of_a_batch_are_one_call_and_what_is_not_there_is_not_asked_for_its_colour():
    fake = Fake({"a dog": 0.2, "a cat": 0.8, "the cat is red": 0.6})
    rewards = Checklist(by=fake).parts(["a red cat and a blue dog"])
    whole = together(rewards)
    assert whole.names == tuple(f"checklist {i}" for i in range(1, 5))
    prompts = ["a red cat and a blue dog"] * 3
    np.testing.assert_allclose(whole(IMAGES, prompts), [[0.8, 0.6, 0.2, 0.0]] * 3)
    assert fake.calls == [["a cat", "a dog"] * 3, ["the cat is red"] * 3]
    assert rewards[1].asks(prompts[0]) == "the cat is red"
    np.testing.assert_allclose(rewards[1](IMAGES, prompts), 0.6)
    assert fake.calls[2:] == [["a cat"] * 3, ["the cat is red"] * 3]  # and what it needs


def test_searches_that_share_a_list_ask_for_each_of_their_batches_once(engine):
    class Slow(Fake):
        def __call__(self, images, prompts):
            time.sleep(0.005)  # the other threads ask meanwhile
            return super().__call__(images, prompts)

    fake = Slow({})
    items = Checklist(["a cat", "a dog", "a fox"], by=fake).parts(())
    engines = [engine(rewards=items, batch_size=4) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        seeds = range(4)
        found = pool.map(lambda i: search(["a"], BestOfN(12), engines[i], seed=100 * i), seeds)
        results = [result for (result,) in found]
    assert len(fake.calls) == 4 * 3
    assert sum(map(len, fake.calls)) == 4 * 12 * 3
    assert [result.spent.cost.reward_calls for result in results] == [12 * 3] * 4


def test_prompts_with_shorter_lists_have_all_that_is_not_asked():
    fake = Fake({})
    prompts = ["a cat", "a red cat", "moody"]
    rewards = Checklist(by=fake).parts(prompts)
    np.testing.assert_allclose(together(rewards)(IMAGES, prompts), [[0.9, 1], [0.9, 0.9], [0.9, 1]])
    assert [rewards[1].asks(prompt) for prompt in prompts] == [None, "the cat is red", None]
    assert np.asarray(rewards[1](IMAGES[:1], prompts[:1])).tolist() == [1.0]


def test_an_item_that_fails_costs_its_answer_and_no_other():
    own = lambda images, prompts: [0.7] * len(images)  # noqa: E731
    failing = Checklist(["a cat", own], by=Fake({}, fails="a cat")).parts(())
    with pytest.raises(RuntimeError, match="no answer"):
        failing[0](IMAGES, ["x"] * 3)
    assert np.asarray(failing[1](IMAGES, ["x"] * 3)).tolist() == [0.7] * 3
    both = together(failing)
    scores = np.asarray(both(IMAGES, ["x"] * 3))
    np.testing.assert_array_equal(scores, [[np.nan, 0.7]] * 3)
    assert {name: str(error) for name, error in both.failures.items()} == {"a cat": "no answer"}
    beyond = Checklist(["a cat"], by=Fake({"a cat": 3.0})).parts(())
    with pytest.raises(ValueError, match="probability"):
        beyond[0](IMAGES, ["x"] * 3)


def test_tokens_of_each_item_are_told():
    fake = Fake({})

    class Judge(RewardModel):
        name, tokens = "judge", 7

        def __call__(self, images, prompts, level=None):
            self.tokens_taken = [3 if prompt == "a cat" else 5 for prompt in prompts]
            return fake(images, prompts)

    first, second = Checklist(["a cat", "a dog"], by=Judge()).parts(())
    first(IMAGES, ["x"] * 3)
    second(IMAGES, ["x"] * 3)
    assert (first.tokens, first.tokens_taken, second.tokens_taken) == (7, [3] * 3, [5] * 3)
    both = together([first, second])
    both(IMAGES, ["x"] * 3)
    assert (both.tokens, both.tokens_taken) == (14, [8] * 3)


def test_the_first_item_that_one_question_asks_pays_for_the_image():
    class Reader(RewardModel):
        """One question about an image has all of its items."""

        name, joins, tokens, flops, flops_more = "reader", True, 50, 100.0, 7.0

        def __call__(self, images, prompts, level=None):
            return torch.full((len(images),), 0.5, dtype=torch.float64)

    items = Checklist(
        ["text: OPEN", lambda images, prompts: images[:, 0].mean((1, 2)), "two dogs", "a cat"],
        by=Reader(),
    ).parts(["a sign"])
    first, own, *_ = items
    assert (first.flops, own.flops) == (OCR().flops, 0.0)
    whole = together(items)
    assert (whole.flops, whole.tokens) == (OCR().flops + 107.0, 50)
    for lines, flops in ((["two dogs", "a cat"], 107.0), (None, 100.0 + 7 * 7.0)):
        assert Checklist(lines, by=Reader()).flops == flops


def test_by_name_items_of_one_list_share_it_and_nobody_answers_who_is_not_named():
    two = make_rewards(["check:two red circles", "check:a blue square", "brightness"])
    assert [reward.name for reward in two] == ["two red circles", "a blue square", "brightness"]
    first, second, _ = two
    assert first.given is second.given  # type: ignore[attr-defined]
    (by_sea,) = make_rewards(["check:a man by the sea"])
    assert by_sea.name == "a man by the sea"
    named = make_rewards(["check:a man by the sea by brightness"])[0]
    assert named.given.by.name == "brightness"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="unknown reward"):
        check_names("checklist by nobody")
    prompt = ["a red circle and a blue square"]
    assert parts("checklist", prompt, packaged=True) == tuple(f"checklist#{i}" for i in (1, 2, 3))
    assert asked_of(["clip", "checklist#2"], prompt[0]) == {"a blue square": 1}
    with pytest.raises(ValueError, match="nobody is named"):
        parts("checklist", prompt, packaged=False)
    assert parts("check:text: OPEN", prompt, packaged=False) == ("check:text: OPEN",)
    assert not suits_drafts("checklist by judge:yes:model=m")
    assert suits_drafts("checklist")


def test_who_answers_is_loaded_once_and_who_writes_is_asked_once(
    monkeypatch,
):
    loaded, written = list[str](), list[str]()

    def load_one(by, **where):
        loaded.append(by)
        return Fake({})

    def write(self, prompt):
        written.append(prompt)
        return (Item("a cat"), Item(f"thing {len(written)}"))

    monkeypatch.setattr("ttsnap.reward_models.checklist.specs.make_reward", load_one)
    make_rewards(["check:a cat by vqascore", "check:a dog by vqascore"])
    assert loaded == ["vqascore"]
    pytest.importorskip("openai")
    monkeypatch.setattr("ttsnap.reward_models.checklist.writer.Writer._written", write)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    specs = [f"checklist#{i}:model=m,cache=none by vqascore" for i in (1, 2)]
    first, second = make_rewards(specs)
    assert [first.asks("x"), second.asks("x")] == ["a cat", "thing 1"]  # type: ignore[attr-defined]
    assert asked_of(specs, "x") == {"a cat": 0, "thing 1": 1}
    assert written == ["x"]


def test_the_words_of_an_item_name_nobody_who_answers():
    for words in ("a cat by evil.py:f", "a cat by clip", "a cat by nobody", "a cat"):
        (spec,) = rewards_of(None, [words])
        assert answered_by(spec) == ""
        assert asked_of([spec], "x") == {words: 0}
        (spec,) = rewards_of("checklist by vqascore", [words])
        assert answered_by(spec) == "vqascore"
        assert asked_of([spec], "x") == {words: 0}


def test_a_users_reward_is_no_checklist_by_the_names_of_its_methods():
    class Own:
        def parts(self): ...

        def asks(self): ...

    assert not is_list(Own())
    assert not is_item(Own())


@pytest.fixture(scope="module")
def pipe():
    pipe = load(dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_search_has_a_score_of_each_item_by_its_words(pipe):
    prompts = ["two red circles and a blue square", "a red circle"]
    told = {"num_inference_steps": 4, "search": "best-of-n", "seed": 0}
    found = pipe(prompts, reward="checklist", budget="12nfe", report="scenes-strict", **told)
    for result, prompt in zip(found.search, prompts, strict=True):
        words = [str(item) for item in questions(prompt)]
        assert list(result.best.scores) == words == list(result.answers)
        value = product(np.array(list(result.best.scores.values())))
        np.testing.assert_allclose(result.best.reward, value, rtol=1e-6)


def test_answers_are_in_pngs_the_trace_and_the_table(tmp_path, capsys):
    prompt, out = "a red circle and a blue square", str(tmp_path / "out")
    asked = [str(item) for item in questions(prompt)]
    given = ["--reward", "checklist", "--tie", "brightness", "--budget", "12nfe", "--steps", "4"]
    assert main(["generate", prompt, *given, "--algorithm", "best-of-n", "--out", out]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for words in asked:
        assert [line for line in lines if re.fullmatch(f"{words} .* of 3 images", line)], lines
    (path,) = Path(out).rglob("*-seed*.png")
    assert list(read_record(path).to_json()["search"]["scores"]) == [*asked, "brightness"]
    (told,) = json.loads(path.with_name("trace.json").read_text())["results"]
    assert list(told["images"][0]["scores"]) == [*asked, "brightness"]
    assert list(told["answers"]) == asked
    assert all(f" {had or 'none'} of 3" in "".join(lines) for had in told["answers"].values())


def test_answers_under_way_are_those_of_the_end(pipe):
    events = []
    call = {"num_inference_steps": 4, "search": "seed-pruning", "seed": 0, "budget": "20nfe"}
    out = pipe("two red circles", reward="checklist", draft="none", on_event=events.append, **call)
    (result,) = out.search
    live, after = Course(result.levels, result.particles.selection, result.asked), Course.of(result)
    for event in events:
        live.listen(event)
    assert live.answers == after.answers == result.answers
    for uid, one in after.candidates.items():
        for step, score in one.scores.items():
            assert live.candidates[uid].scores[step].answers == score.answers


def test_what_a_model_writes_is_checked():
    told = [{"statement": "a cat", "needs": []}, {"statement": "it is red", "needs": [0]}]
    assert read_items({"statements": told}) == (Item("a cat"), Item("it is red", needs=(0,)))
    for wrong in ([], [{"statement": "x" * 300, "needs": []}], [{"statement": "a", "needs": [0]}]):
        with pytest.raises(ValueError, match=r"it must|statement"):
            read_items({"statements": wrong})


def test_items_that_need_each_other_are_refused():
    items = (Item("a", needs=(1,)), Item("b", needs=(0,)))
    checklist = Checklist(written=lambda prompt: items)
    with pytest.raises(ValueError, match="circle"):
        checklist(torch.zeros(1, 3, 32, 32), ["a b"])
