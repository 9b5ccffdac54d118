"""Judges behind an API: known answers, servers that fail in every way, what leaves the machine and what does not."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from ttsnap import make_algorithm, search
from ttsnap.cli import generate
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results.outputs import write_results
from ttsnap.results.record import SearchRecord
from ttsnap.reward_models.judge import Judge, JudgeOptions, PairJudge
from ttsnap.reward_models.judge.client import Cache
from ttsnap.reward_models.judge.questions import CRITERIA
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.scoring import score_images

from .judge_stub import (
    Stub,
    drip,
    flood,
    likely,
    raw,
    said,
    slow,
    stub_server,
    truncated,
    words,
)

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b {} 😀", "c"]
KEY = "sk-very-secret-0123456789"
MARKS = dict.fromkeys(CRITERIA, 5) | {"counts": 10}


@pytest.fixture(scope="session")
def server() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


@pytest.fixture
def stub(server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The server, with nothing planned, and an environment that names it."""
    server.reset()
    for name, value in {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": KEY, "TTSNAP_JUDGE_MODEL": "tiny"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_: 0.01)
    return server


def judge(kind: str = "yes", **options: Any) -> Judge:
    return Judge(kind, JudgeOptions(**{"retries": 0, **options}))


# --- known answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ({"Yes": 0.6, "No": 0.2, "The": 0.1}, 0.6 / (0.6 + 0.2)),
        ({" yes": 0.3, "YES": 0.2, "no": 0.1, "No\n": 0.05}, (0.3 + 0.2) / (0.3 + 0.2 + 0.1 + 0.05)),
        ({"Yes": 1e-9, "No": 3e-9}, 1e-9 / (1e-9 + 3e-9)),
        ({"Yes": 0.9, "Maybe": 0.1}, 1.0),
        ({"Yes": 0.0, "No": 0.5}, 0.0),
    ],
)
def test_the_probability_of_yes_is_known(stub: Stub, p: dict[str, float], expected: float) -> None:
    stub.default = likely(p)
    score = judge()(IMAGES[:1], ["a"])
    assert score.dtype == torch.float64
    assert score.item() == pytest.approx(expected, rel=1e-14)


def test_what_is_asked(stub: Stub) -> None:
    judge(detail="low")(IMAGES[1:2], PROMPTS[1:2])
    (body,) = stub.bodies
    picture, question = body["messages"][0]["content"]
    assert question["text"] == 'Does this figure show "b {} 😀"? Please answer yes or no.'
    head, _, data = picture["image_url"]["url"].partition(",")
    assert (head, picture["image_url"]["detail"]) == ("data:image/png;base64", "low")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(seen, (IMAGES[1] * 255).round().byte().permute(1, 2, 0).numpy())
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 1)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert stub.paths == ["/v1/chat/completions"]
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"


def test_scores_come_back_in_order_while_questions_run_side_by_side(stub: Stub) -> None:
    def by_prompt(handler: Any, body: Any) -> None:
        name = body["messages"][0]["content"][1]["text"].partition('"')[2][0]
        slow(0.03, likely({"Yes": {"a": 0.1, "b": 0.2, "c": 0.3}[name], "No": 0.5}))(handler, body)

    stub.default = by_prompt
    scores = judge(concurrency=2)(IMAGES, PROMPTS)
    assert scores.tolist() == pytest.approx([0.1 / 0.6, 0.2 / 0.7, 0.3 / 0.8])
    assert stub.most_at_once == 2


def test_a_rubric_is_the_mean_of_its_marks(stub: Stub) -> None:
    stub.default = words(json.dumps(MARKS))
    rubric = judge("rubric")
    assert rubric(IMAGES[:1], ["two cats"]).item() == (4 * 5 + 10) / 5
    (body,) = stub.bodies
    held = body["response_format"]["json_schema"]
    assert held["strict"] is True
    assert held["schema"]["required"] == list(CRITERIA)
    assert held["schema"]["properties"]["counts"] == {"type": "integer", "enum": list(range(11))}
    assert "two cats" in body["messages"][0]["content"][1]["text"]
    assert body["max_tokens"] == 300
    assert Judge("rubric", JudgeOptions(), {"mood": "it is sad"}).criteria == {"mood": "it is sad"}


def test_a_tournament_of_pairs(stub: Stub) -> None:
    """The brighter image wins by 3 to 1, whichever is shown first: Bradley-Terry strengths differ accordingly."""

    def brighter(handler: Any, body: Any) -> None:
        shown = [part["image_url"]["url"] for part in body["messages"][0]["content"][:2]]
        a, b = (np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).mean() for url in shown)
        likely({"A": 0.75 if a > b else 0.25, "B": 0.25 if a > b else 0.75})(handler, body)

    stub.default = brighter
    images = torch.stack([torch.full((3, 8, 8), x) for x in (0.9, 0.5, 0.1)])
    pairs = make_reward("judge:pairs:rounds=6,cache=none")
    assert isinstance(pairs, PairJudge)
    scores = np.asarray(pairs(images, ["a"] * 3))
    assert scores[0] > scores[1] > scores[2]
    assert scores.sum() == pytest.approx(0, abs=1e-6)
    assert pairs.usage.answered == 18


# --- servers that fail ----------------------------------------------------------------------------------------------


def test_a_full_or_failing_server_is_asked_again(stub: Stub) -> None:
    stub.planned.extend([raw("{}", 429, Retry_After="0"), raw("oops", 500)])
    assert judge(retries=2)(IMAGES[:1], ["a"]).item() == pytest.approx(0.75)
    assert len(stub.bodies) == 3


NOT_MARKS = [
    ("no json", "cannot be used: its content must be a JSON object"),
    ('{"counts": 5}', "must hold marks for objects, attributes"),
    (json.dumps(MARKS | {"counts": 11}), "whole number from 0 to 10"),
    (json.dumps(MARKS | {"counts": 5.5}), "whole number from 0 to 10"),
    (json.dumps(MARKS | {"counts": True}), "whole number from 0 to 10"),
    (json.dumps(MARKS | {"counts": "10"}), "whole number from 0 to 10"),
    (json.dumps(MARKS | {"more": 1}), "must hold marks"),
    (None, "must be a text"),
]


def one_token(entry: Any) -> Any:
    return said({"logprobs": {"content": [{"top_logprobs": [entry]}]}})


NO_ANSWERS = [
    (raw("{}", 429, Retry_After="0"), "tiny refused with status 429: too many questions, or no credit left"),
    (raw("oops", 500), "tiny refused with status 500"),
    (raw("{}", 404), "tiny refused with status 404: there is no such model or address; check TTSNAP_JUDGE_MODEL"),
    (raw("", 307, Location="http://127.0.0.1:1/"), "307"),
    (raw("not json"), "cannot be used: "),
    (raw(b"\xff\xfe"), "cannot be used: "),
    (raw("[" * 100_000), "cannot be used: "),
    (raw("[]"), "cannot be used: "),
    (raw('{"choices": []}'), "must hold a list of choices"),
    (raw('{"choices": {"0": 1}}'), "must hold a list of choices"),
    (truncated, "could not be asked ("),
    (drip, "gave no answer within 0.5 s"),
    (flood, "more than 1,048,576 bytes"),
    (slow(0.8, likely({"Yes": 1.0})), "gave no answer within 0.5 s"),
    (said({}), "there are no logprobs in it"),
    (said({"logprobs": None}), "there are no logprobs in it"),
    (said({"logprobs": 3}), "logprobs must be an object"),
    (said({"logprobs": {"content": [{"top_logprobs": {}}]}}), "there are no logprobs"),
    (likely({"The": 0.9, "A": 0.1}), "neither yes nor no is among its likeliest first tokens"),
    (one_token({"token": "Yes", "logprob": 0.5}), "number of at most 0"),
    (one_token({"token": "Yes", "logprob": "0"}), "number of at most 0"),
    (one_token({"token": "Yes", "logprob": True}), "number of at most 0"),
    (one_token({"token": 3, "logprob": -1.0}), "number of at most 0"),
    (one_token({"token": "Yes", "logprob": -1e5}), "neither yes nor no"),
    (one_token({"token": "Yes", "logprob": float("nan")}), "cannot be used: "),
]


@pytest.mark.parametrize(
    ("kind", "act", "message"),
    [*(("yes", *failure) for failure in NO_ANSWERS), *(("rubric", words(text), said) for text, said in NOT_MARKS)],
)
def test_failures_are_told_in_a_sentence(stub: Stub, kind: str, act: Any, message: str) -> None:
    stub.default = act
    asked = judge(kind, timeout=0.5 if "0.5 s" in message else 30.0)
    scores, why = score_images(asked, IMAGES[:1], ["a"], torch.zeros(1), "judge")
    assert np.isnan(scores).all()
    assert why is not None
    assert message in why
    assert len(why) < 500


def test_no_server(stub: Stub) -> None:
    scores, why = score_images(judge(base_url="http://127.0.0.1:9/v1"), IMAGES, PROMPTS, torch.zeros(3), "judge")
    assert np.isnan(scores).all()
    assert why is not None
    assert "tiny could not be asked (ConnectError); is there a server at http://127.0.0.1:9/v1?" in why


def test_one_failed_question_costs_one_score(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.planned.append(raw("oops", 400))
    scores = judge(concurrency=1)(IMAGES, PROMPTS)
    assert scores.isnan().tolist() == [True, False, False]
    assert "1 of 3 images got no score: tiny refused" in caplog.text


def test_a_search_ends_with_an_image_when_its_judge_dies_midway(stub: Stub, engine: Any) -> None:
    stub.planned.extend([likely({"Yes": 0.7, "No": 0.2})] * 2)
    stub.default = raw("gone", 503)
    asked = engine(2, rewards=[make_reward("judge:yes:retries=0,cache=none")], batch_size=2)
    (result,) = search(["a"], make_algorithm("best-of-n", n=6), asked, "12nfe")
    assert len(result.images) == 1
    assert result.best.reward == pytest.approx(0.7 / 0.9)
    assert any("503" in warning for warning in result.warnings)
    assert result.spent.cost.reward_calls == 6


@pytest.mark.parametrize("after", ["0", "nan", "1e9", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_storm_of_429_ends_in_time_whatever_it_asks_for(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """A question waits as long as the server wants, within its own time, and is not asked for ever."""
    monkeypatch.undo()
    for name, value in {"OPENAI_BASE_URL": stub.url, "OPENAI_API_KEY": KEY, "TTSNAP_JUDGE_MODEL": "tiny"}.items():
        monkeypatch.setenv(name, value)
    stub.default = raw("{}", 429, Retry_After=after, X_Should_Retry="true")
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"gave no answer within 0\.3 s|refused with status 429"):
        judge(retries=20, timeout=0.3, cache="none", concurrency=8)(IMAGES[[0, 1, 2] * 5], list("abcdefghijklmno"))
    assert time.monotonic() - begin < 5
    assert len(stub.bodies) <= 15 * 21


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["best-of-n", "zero-order", "seed-pruning"])
@pytest.mark.parametrize("shared", [False, True])
def test_tokens_are_charged_before_and_given_back_after(stub: Stub, engine: Any, name: str, shared: bool) -> None:
    """Every question takes 101 tokens of at most 150; no prompt may spend more than 1000."""
    asked = engine(4, rewards=[make_reward("judge:yes:image_tokens=150,cache=none,retries=0")])
    results = search(["a", "b"], make_algorithm(name), asked, "80nfe,1000tokens", shared=shared)
    spent = [result.spent.cost.tokens for result in results]
    assert sum(spent) == 101 * len(stub.bodies) == asked.stats["tokens"]
    assert all(sum(spent) <= 2000 if shared else tokens <= 1000 for tokens in spent)
    for result in results:
        assert result.images
        assert result.spent.cost.tokens == 101 * result.spent.cost.reward_calls
        assert sum(move["cost"].get("tokens", 0) for move in result.trace) == result.spent.cost.tokens
        assert result.spent.to_json()["tokens"] == result.spent.cost.tokens


def test_what_is_given_back_is_spent_on_more_images(stub: Stub, engine: Any) -> None:
    """Charged in full, 1000 tokens would pay for 6 images of 150; at 101 each they pay for 9."""
    asked = engine(2, rewards=[make_reward("judge:yes:image_tokens=150,cache=none")])
    (result,) = search(["a"], make_algorithm("zero-order", n=2), asked, "80nfe,1000tokens")
    assert result.spent.cost.tokens == 909


@pytest.mark.parametrize(
    ("act", "tokens"),
    [
        (likely({"Yes": 0.5}, usage=(100, 1)), 101),
        (likely({"Yes": 0.5}, usage=(400, 1)), 401),  # more than was thought
        (likely({"Yes": 0.5}, usage=None), 150),
        (likely({"Yes": 0.5}, usage={"prompt_tokens": -3, "completion_tokens": 1}), 150),
        (likely({"Yes": 0.5}, usage={"prompt_tokens": 1e9, "completion_tokens": 1}), 150),
        (likely({"The": 0.5}, usage=(100, 1)), 101),  # a failure that the server counts
        (raw("oops", 500), 0),
    ],
)
def test_tokens_are_those_that_the_server_counts(stub: Stub, act: Any, tokens: int) -> None:
    asked = judge(image_tokens=150, cache="none")
    stub.default = act
    score_images(asked, IMAGES[:1], ["a"], torch.zeros(1), "judge")
    assert list(asked.tokens_taken) == [tokens]


def test_tokens_of_known_and_equal_questions_and_of_pairs(stub: Stub, tmp_path: Path) -> None:
    asked = judge(cache=str(tmp_path), price_in=2.0, price_out=10.0)
    asked(IMAGES[[0, 0, 1]], ["a", "a", "a"])
    assert list(asked.tokens_taken) == [101, 0, 101]
    asked(IMAGES[:2], ["a", "b"])
    assert list(asked.tokens_taken) == [0, 101]
    assert asked.usage.money == pytest.approx((300 * 2 + 3 * 10) / 1e6)
    stub.default = likely({"A": 0.5, "B": 0.5}, usage=(200, 1))
    pairs = PairJudge(JudgeOptions(rounds=2, cache="none"))
    pairs(IMAGES, ["a", "b", "a"])
    assert list(pairs.tokens_taken) == [402, 0, 402]
    assert pairs.tokens >= 402


def test_only_the_judge_of_two_rewards_takes_tokens(stub: Stub) -> None:
    staged = make_reward("brightness then judge:yes:image_tokens=150,cache=none")
    assert staged.tokens == 150
    staged(IMAGES, PROMPTS, torch.tensor([0.5, 0.0, 0.5]))
    assert list(staged.tokens_taken) == [0, 101, 0]


# --- what is remembered ---------------------------------------------------------------------------------------------


def test_answers_are_remembered_by_content(stub: Stub, tmp_path: Path) -> None:
    first = judge(cache=str(tmp_path / "known"))
    stub.planned.append(raw("oops", 400))
    first(IMAGES, PROMPTS)
    again = judge(cache=str(tmp_path / "known"))
    assert len(stub.bodies) == 3
    scores = again(IMAGES, PROMPTS)
    assert not scores.isnan().any()
    assert len(stub.bodies) == 4  # what failed was not kept
    assert (again.usage.known, again.usage.answered) == (2, 1)
    again(IMAGES, ["a", "b {} 😀", "d"])  # another prompt
    again(IMAGES.flip(0), PROMPTS)  # other images; the second is the same
    judge(cache=str(tmp_path / "known"), model="other")(IMAGES, PROMPTS)
    assert len(stub.bodies) == 4 + 1 + 2 + 3
    files = list((tmp_path / "known").rglob("*.json"))
    assert {file.stem for file in files} == {file.stem for file in files if len(file.stem) == 64}
    assert json.loads(files[0].read_text()) == {"score": 0.6 / (0.6 + 0.2)}


def test_a_cache_keeps_its_size(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 20)
    keys = [f"{i:064x}"[::-1] for i in range(50)]
    for i, key in enumerate(keys):
        cache.put(key, i / 50)
        path = next(tmp_path.rglob(f"{key}.json"), None)
        if path is not None:
            os.utime(path, (i, i))
        assert len(list(tmp_path.rglob("*.json"))) <= 20
    assert cache.get(keys[-1], 0, 1) == 49 / 50
    assert cache.get(keys[0], 0, 1) is None


def poison(entry: Path, kind: str, elsewhere: Path) -> None:
    """Put something else in the place of an entry."""
    entry.unlink()
    if kind.startswith("says "):
        entry.write_text('{"score": ' + kind.removeprefix("says ") + "}")
    elif kind == "folder":
        entry.mkdir()
    elif kind == "pipe":
        os.mkfifo(entry)
    elif kind == "huge":
        entry.write_bytes(b'{"score": 0.5}' + b" " * 2**20)
    elif kind == "deep":
        entry.write_text('{"score": ' + "[" * 900)
    else:
        entry.symlink_to({"device": Path("/dev/zero"), "loop": entry, "dangling": elsewhere / "none"}[kind])


NO_SCORES = [f"says {text}" for text in ("", "{", "[]", "2", '"0.5"', "true", "NaN")]


@pytest.mark.parametrize("kind", [*NO_SCORES, "folder", "pipe", "huge", "deep", "device", "loop", "dangling"])
def test_a_poisoned_entry_is_as_if_it_were_not_there(stub: Stub, tmp_path: Path, kind: str) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    elsewhere.mkdir()
    judge(cache=str(cache))(IMAGES[:1], ["a"])
    (entry,) = cache.rglob("*.json")
    poison(entry, kind, elsewhere)
    for _ in range(2):
        assert judge(cache=str(cache), cache_entries=1)(IMAGES[:1], ["a"]).item() == pytest.approx(0.75)
    assert len(stub.bodies) == (3 if kind == "folder" else 2)  # in whose place nothing can be written
    assert not list(elsewhere.iterdir())


def test_a_cache_removes_entries_only(tmp_path: Path) -> None:
    """Not what others keep in its folder, nor through links; what cannot be removed stops nothing."""
    cache, elsewhere = Cache(tmp_path / "cache", 2), tmp_path / "elsewhere"
    keys = [f"{i:02x}" * 32 for i in range(20)]
    others = [cache.folder / "en" / "texts.json", cache.folder / "ab" / "texts.json", elsewhere / f"{'ee' * 32}.json"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
    (cache.folder / "ee").symlink_to(elsewhere)
    (cache.folder / keys[0][:2] / f"{keys[0]}.json").mkdir(parents=True)
    (cache.folder / "01").mkdir()
    (cache.folder / "01" / f"{keys[1]}.json").symlink_to(tmp_path / "none")
    for key in keys[2:]:
        cache.put(key, 0.5)
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert [key for key in keys if cache.get(key, 0, 1) is not None] == keys[-2:]


def test_a_cache_that_cannot_be_written_costs_no_score(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert judge(cache=str(tmp_path / "file"))(IMAGES[:1], ["a"]).item() == pytest.approx(0.75)


# --- secrets and addresses ------------------------------------------------------------------------------------------

KEYS = [
    "sk-very-secret-0123456789",
    "c2VjcmV0LWtleSsvLw+/ab%41%2B==",
    "123456789012345678",
    'sk-"quoted"\\back\\slash\'s',
]


def echoes(key: str) -> list[Any]:
    """Answers of a server that repeats the key that it was sent."""
    half, error = key[: len(key) // 2 + 4], {"error": {"message": f"bad key {key}", "code": key, "type": key}}
    number = json.loads(key) if key.isdigit() else key
    return [
        raw(json.dumps(error), 401),
        raw("x" * 290 + key, 500),
        raw("x" * (300 - len(half)) + key, 400, Content_Type="text/plain"),
        raw(f"<html><title>{key}</title></html>", 502, Content_Type="text/html"),
        raw("{}", 403, X_Key=key, WWW_Authenticate=f'Bearer realm="{key}"'),
        raw(quote(key) + b64encode(key.encode()).decode() + repr(key), 404),
        raw("", 307, Location=f"http://127.0.0.1:1/?key={quote(key)}"),
        raw(f"Bearer {key}"),
        raw(json.dumps(key)),
        raw(json.dumps({key: 1})[:-1] + "," + json.dumps({key: 2})[1:]),
        raw(json.dumps({"choices": key, "usage": key})),
        said({"logprobs": number}),
        said({"logprobs": {"content": [{"top_logprobs": [{"token": key, "logprob": -1.0}]}]}}),
        said({"logprobs": {"content": [{"top_logprobs": [{"token": "Yes", "logprob": key}]}]}}),
        raw(f'{{"choices": [{{"logprobs": {{"content": [{{"top_logprobs": ["{key[:12]}', Content_Length="999"),
    ]


RECORD = SearchRecord("x", "x", {}, SamplerOptions(), "x", {}, "x")
RUBRIC_ECHOES: list[Callable[[str], Any]] = [
    words,
    lambda key: words(json.dumps(MARKS | {key: 5})),
    lambda key: words(json.dumps(MARKS | {"counts": key})),
    lambda key: words(json.dumps(MARKS | {"counts": json.loads(key) if key.isdigit() else [key]})),
    lambda key: said({"message": {"refusal": f"I was sent {key}", "content": key}}),
    lambda key: said({"message": key}),
]


@pytest.mark.parametrize("key", KEYS)
def test_no_part_of_a_key_is_in_any_message(
    stub: Stub, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engine: Any
) -> None:
    """Whatever the server says that it was sent: nothing of 8 characters of the key is told, logged, raised or kept."""
    caplog.set_level(logging.DEBUG, "ttsnap")
    monkeypatch.setenv("OPENAI_API_KEY", f"  {key}\n")
    told = []
    rubrics = [("rubric", act(key)) for act in RUBRIC_ECHOES]
    for kind, act in [*(("yes", act) for act in echoes(key)), *rubrics]:
        stub.default = act
        with pytest.raises(RuntimeError) as caught:
            judge(kind, cache=str(tmp_path / "cache"))(IMAGES[:1], ["a"])
        told.append("".join(traceback.format_exception(caught.value)))
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
    assert {headers["authorization"] for headers in stub.headers} == {f"Bearer {key}"}
    made = judge()
    told += [repr(made), repr(vars(made)), repr(made.client.options), made.name]
    stub.planned.extend([likely({"Yes": 0.7, "No": 0.2})] * 2)
    stub.default = echoes(key)[0]
    asked = engine(2, rewards=[make_reward("judge:yes:retries=0,cache=none")], batch_size=2)
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), asked, "16nfe")
    write_results(tmp_path / "out", [result], RECORD)
    files = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert any("status 401" in text for text in files)
    parts = [key[at : at + 8] for at in range(len(key) - 7)]
    for text in [*told, *files, caplog.text, repr(result)]:
        assert not [part for part in parts if part in text]


@pytest.mark.parametrize(
    "key", ["sk-a secret", "sk-a\nsecret", "sk-a\tsecret", "sk-\u200bsecret", "sk-\x7fsecret", "sk-é"]
)
def test_a_key_that_cannot_be_one_is_refused_unseen(stub: Stub, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match=r"^OPENAI_API_KEY holds white space or characters that no key has") as caught:
        make_reward("judge")
    assert "sk-" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "proxy", ["http://me:pass/word@host:80", "ftp://me:password@host", "http://me:password@host:pa"]
)
def test_a_proxy_that_cannot_be_read_is_refused_unseen(stub: Stub, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ValueError, match="ALL_PROXY or NO_PROXY holds no address") as caught:
        judge()(IMAGES[:1], ["a"])
    told = "".join(traceback.format_exception(caught.value))
    assert "'pa" not in told
    assert "me:" not in told


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("judge:maybe", "unknown kind of judge 'maybe'; choose one of yes, rubric, pairs"),
        ("judge:yes:modle=x", "unknown key"),
        ("judge:yes:fast", "cannot read the judge's options 'fast'"),
        ("judge:yes:model=a,model=b", "cannot read the judge's options"),
        ("judge:yes:concurrency=0", r"concurrency must be at least 1, got 0"),
        ("judge:yes:timeout=inf", "timeout must be a finite number"),
        ("judge:yes:detail=none", "unknown judge.detail 'none'"),
        ("judge:yes:api_key=sk-x", "a key is no option of a judge"),
        ("judge:yes:base_url=ftp://x", "base_url starts with http"),
        ("judge:yes:base_url=http://me:sk-x@host/v1", "a reward's address holds a name or a password"),
        ("judge:yes:base_url=http://host/v1,model=gemini@001,retries=-1", "retries must be at least 0, got -1"),
        ("judge:yes:base_url=http://me:sk-x,sk-x=/@host/v1", "a reward's address holds a name or a password"),
        ("judge:yes:base_url=http://host/v1?key=sk-x", "base_url holds a name, a password"),
        ("judge:yes:base_url=http://host:x/v1", "is no address that can be read"),
    ],
)
def test_specs_that_cannot_be_meant(stub: Stub, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_reward(spec)
    assert "sk-x" not in str(caught.value)


def test_the_environment_names_model_server_and_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_reward("judge").name == "judge:yes tiny"
    assert make_reward("judge:rubric:model=org/big,base_url=http://localhost:1/v1").name == "judge:rubric org/big"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:sk-x@host")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL holds a name") as caught:
        make_reward("judge")
    assert "sk-x" not in str(caught.value)
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert make_reward("judge").client.options.base_url == "https://api.openai.com/v1"  # type: ignore[attr-defined]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="wants a key: set OPENAI_API_KEY, or OPENAI_BASE_URL"):
        make_reward("judge")
    monkeypatch.delenv("TTSNAP_JUDGE_MODEL")
    with pytest.raises(ValueError, match="set TTSNAP_JUDGE_MODEL, or write judge:yes:model=NAME"):
        make_reward("judge")


@pytest.mark.parametrize("name", ["judge", "judge:yes", "clip then judge:yes:base_url=http://elsewhere/v1"])
def test_a_configuration_sends_no_images_away(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"reward": name}))
    with pytest.raises(ValueError, match="--trust"):
        generate.parser().parse_args(["--config", str(path)])
    generate.parser().parse_args(["--config", str(path), "--trust"])
