"""Judges behind an API: known answers, servers that fail in every way, what leaves the machine and
what does not."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import math
import os
import threading
import time
import traceback
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
from ttsnap.reward_models.checklist import Checklist, ItemAnswers
from ttsnap.reward_models.checklist.questions import Item
from ttsnap.reward_models.judge import Judge, JudgeOptions, PairJudge
from ttsnap.reward_models.judge.client import Cache
from ttsnap.reward_models.judge.questions import CRITERIA
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.scoring import score_images

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b {} 😀", "c"]
KEY = "sk-very-secret-0123456789"
MARKS = dict.fromkeys(CRITERIA, 5) | {"counts": 10}


# --- a server that answers as it is told, and fails as servers do ---------------------------------

Body = dict[str, Any]
Act = Callable[["Handler", Body], None]


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self):
        stub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.bodies.append(body)
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            stub.paths.append(self.path)
            act = stub.planned.popleft() if stub.planned else stub.default
            stub.under_way += 1
            stub.most_at_once = max(stub.most_at_once, stub.under_way)
        try:
            act(self, body)
        except OSError:  # the client went away, as it should
            self.close_connection = True
        finally:
            with stub.lock:
                stub.under_way -= 1

    def log_message(self, *_):
        """Nothing is printed."""

    def send(self, text, status=200, **fields):
        data = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        for name, value in {
            "Content_Length": str(len(data)),
            "Content_Type": "application/json",
            **fields,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


class Stub(ThreadingHTTPServer):
    """What it was asked, and what it does next: `planned` acts first, then `default` for every
    request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.lock = f"http://127.0.0.1:{self.server_port}/v1", threading.Lock()
        self.planned: deque[Act] = deque()
        self.default: Act = likely({"Yes": 0.6, "No": 0.2})
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.under_way = self.most_at_once = 0


def reply(choice, usage=(100, 1)):
    if isinstance(usage, tuple):
        usage = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, **choice}],
        "usage": usage,
    }


def tokens(p):
    return [
        {"token": token, "logprob": math.log(value) if value else -9999.0}
        for token, value in p.items()
    ]


def likely(p, usage=(100, 1)):
    """The probabilities of the first token."""
    return said(
        {"logprobs": {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": tokens(p)}]}},
        usage,
    )


def words(text, usage=(100, 20), **more):
    return said({"message": {"role": "assistant", "content": text}, **more}, usage)


def said(choice, usage=(100, 1)):
    return lambda handler, body: handler.send(json.dumps(reply(choice, usage)))


def raw(text, status=200, **fields):
    return lambda handler, body: handler.send(text, status, **fields)


def slow(seconds, then):
    def act(handler, body):
        time.sleep(seconds)
        then(handler, body)

    return act


def truncated(handler, body):
    """Half of what was announced."""
    handler.send(b'{"choices": [{"logprobs"', Content_Length="5000")
    handler.close_connection = True


def drip(handler, body, status=200):
    """A byte now and then, so that no single read waits for long."""
    handler.send(b"{", status, Content_Length="5000")
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def flood(handler, body):
    """More than any answer takes."""
    handler.send(b"[" + b"1," * 2**21)


def name_server(monkeypatch, url):
    for name, value in {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": KEY,
        "TTSNAP_JUDGE_MODEL": "tiny",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """The server, and an environment that names it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_: 0.01)
    with Stub() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        name_server(monkeypatch, server.url)
        yield server
        server.shutdown()


def judge(kind="yes", **options):
    return Judge(kind, JudgeOptions(**{"retries": 0, **options}))


# --- known answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ({"Yes": 0.6, "No": 0.2, "The": 0.1}, 0.6 / (0.6 + 0.2)),
        (
            {" yes": 0.3, "YES": 0.2, "no": 0.1, "No\n": 0.05},
            (0.3 + 0.2) / (0.3 + 0.2 + 0.1 + 0.05),
        ),
        ({"Yes": 1e-9, "No": 3e-9}, 1e-9 / (1e-9 + 3e-9)),
        ({"Yes": 0.9, "Maybe": 0.1}, 1.0),
        ({"Yes": 0.0, "No": 0.5}, 0.0),
    ],
)
def test_the_probability_of_yes_is_known(stub, p, expected):
    stub.default = likely(p)
    score = judge()(IMAGES[:1], ["a"])
    assert score.dtype == torch.float64
    assert score.item() == pytest.approx(expected, rel=1e-14)


def pixels(url):
    """Of a picture in a request."""
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_what_is_asked(stub):
    judge(detail="low")(IMAGES[1:2], PROMPTS[1:2])
    (body,) = stub.bodies
    picture, question = body.pop("messages")[0]["content"]
    assert question["text"] == 'Does this figure show "b {} 😀"? Please answer yes or no.'
    assert picture["image_url"]["detail"] == "low"
    expected = (IMAGES[1] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(picture["image_url"]["url"]), expected)
    assert body == {
        "model": "tiny",
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert stub.paths == ["/v1/chat/completions"]
    assert stub.headers[0]["authorization"] == f"Bearer {KEY}"
    assert stub.headers[0]["accept-encoding"] == "identity"


def test_scores_come_back_in_order_while_questions_run_side_by_side(stub):
    def by_prompt(handler, body):
        name = body["messages"][0]["content"][1]["text"].partition('"')[2][0]
        slow(0.03, likely({"Yes": {"a": 0.1, "b": 0.2, "c": 0.3}[name], "No": 0.5}))(handler, body)

    stub.default = by_prompt
    scores = judge(concurrency=2)(IMAGES, PROMPTS)
    assert scores.tolist() == pytest.approx([0.1 / 0.6, 0.2 / 0.7, 0.3 / 0.8])
    assert stub.most_at_once == 2


def each(*answers, usage=(120, 5)):
    """Answers with these probabilities of yes, one after the other."""
    content = [
        {"token": word, "logprob": 0.0, "top_logprobs": tokens({"yes": p, " No": 1 - p})}
        for p in answers
        for word in ("yes" if p >= 0.5 else " No", " ")
    ]
    return said({"logprobs": {"content": content}}, usage)


def test_all_items_of_an_image_are_one_question_whose_tokens_are_paid_once(stub, tmp_path):
    words = (Item("a cat"), Item("it is red", needs=(0,)), Item("two dogs"))
    asked = judge(cache=str(tmp_path), image_tokens=150, concurrency=1)
    listed = Checklist(by=asked, written=lambda prompt: words)
    whole = ItemAnswers(listed, range(3), ["cat", "red", "dogs"])
    stub.planned += [each(0.9, 0.8, 0.3), each(0.2, 0.7, 0.6), each(0.5, 0.5)]
    prompts = ["x"] * 3
    scores = np.asarray(whole(IMAGES, prompts)).T
    assert len(stub.bodies) == 3
    np.testing.assert_allclose(scores[0], [0.9, 0.2, np.nan])
    np.testing.assert_allclose(scores[1], [0.8, 0.0, np.nan])  # a cat that is not there is not red
    np.testing.assert_allclose(scores[2], [0.3, 0.6, np.nan])
    assert whole.tokens == 150
    assert list(whole.tokens_taken) == [125] * 3
    text = stub.bodies[0]["messages"][0]["content"][1]["text"]
    assert all(f"{i}. {item.asked}" in text for i, item in enumerate(words, 1))
    known = np.asarray(whole(IMAGES[:2], prompts[:2]))[:, 0].tolist()
    assert (known, len(stub.bodies)) == ([0.9, 0.2], 3)  # remembered


def test_a_rubric_is_the_mean_of_its_marks(stub):
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


def test_a_tournament_of_pairs(stub):
    """The brighter image wins by 3 to 1, whichever is shown first: Bradley-Terry strengths differ
    accordingly."""

    def brighter(handler, body):
        a, b = (
            pixels(part["image_url"]["url"]).mean() for part in body["messages"][0]["content"][:2]
        )
        likely({"A": 0.75 if a > b else 0.25, "B": 0.25 if a > b else 0.75})(handler, body)

    stub.default = brighter
    images = torch.stack([torch.full((3, 8, 8), x) for x in (0.9, 0.5, 0.1)])
    pairs = make_reward("judge:pairs:rounds=6,cache=none")
    scores = np.asarray(pairs(images, ["a"] * 3))
    assert scores[0] > scores[1] > scores[2]
    assert pairs.usage.answered == 18


# --- servers that fail ----------------------------------------------------------------------------


def test_a_full_or_failing_server_is_asked_again(stub):
    stub.planned.extend([raw("{}", 429, Retry_After="0"), raw("oops", 500)])
    assert judge(retries=2)(IMAGES[:1], ["a"]).item() == pytest.approx(0.75)
    assert len(stub.bodies) == 3


NOT_MARKS = [
    ("no json", "its content must be a JSON object"),
    ('{"counts": 5}', "marks for objects, attributes"),
    *(
        (json.dumps(MARKS | {"counts": mark}), "whole number from 0 to 10")
        for mark in (11, 5.5, True, "10")
    ),
    (json.dumps(MARKS | {"more": 1}), "must hold marks"),
    (None, "must be a text"),
]


def one_token(entry):
    return said({"logprobs": {"content": [{"top_logprobs": [entry]}]}})


NO_ANSWERS = [
    (
        raw("{}", 429, Retry_After="0"),
        "tiny refused with status 429: too many questions, or no credit left",
    ),
    (raw("oops", 500), "tiny refused with status 500"),
    (raw("{}", 404), "status 404: there is no such model or address; check TTSNAP_JUDGE_MODEL"),
    (raw("", 307, Location="http://127.0.0.1:1/"), "307"),
    *((raw(text), "cannot be used: ") for text in ("not json", b"\xff\xfe", "[" * 100_000, "[]")),
    *((raw(text), "list of choices") for text in ('{"choices": []}', '{"choices": {"0": 1}}')),
    (truncated, "could not be asked ("),
    (drip, "gave no answer within 0.5 s"),
    # What an error says is not waited for, and what is compressed has no bound.
    (partial(drip, status=400), "tiny refused with status 400"),
    (partial(drip, status=500), "tiny refused with status 500"),
    (raw(gzip.compress(json.dumps(reply({})).encode()), Content_Encoding="gzip"), "a JSON object"),
    (flood, "more than 1,048,576 bytes"),
    (slow(0.8, likely({"Yes": 1.0})), "gave no answer within 0.5 s"),
    *(
        (said(x), "no logprobs")
        for x in ({}, {"logprobs": None}, {"logprobs": {"content": [{"top_logprobs": {}}]}})
    ),
    (said({"logprobs": 3}), "logprobs must be an object"),
    (likely({"The": 0.9, "A": 0.1}), "neither yes nor no"),
    *((one_token({"token": "Yes", "logprob": x}), "number of at most 0") for x in (0.5, "0", True)),
    (one_token({"token": 3, "logprob": -1.0}), "number of at most 0"),
    (one_token({"token": "Yes", "logprob": -1e5}), "neither yes nor no"),
    (one_token({"token": "Yes", "logprob": float("nan")}), "cannot be used: "),
]


@pytest.mark.parametrize(
    ("kind", "act", "message"),
    [
        *(("yes", *failure) for failure in NO_ANSWERS),
        *(("rubric", words(text), said) for text, said in NOT_MARKS),
    ],
)
def test_failures_are_told_in_a_sentence(stub, kind, act, message):
    stub.default = act
    asked = judge(kind, timeout=0.5 if "0.5 s" in message else 30.0)
    scores, why = score_images(asked, IMAGES[:1], ["a"], torch.zeros(1), "judge")
    assert np.isnan(scores).all()
    assert why is not None
    assert message in why
    assert len(why) < 500


def test_a_search_ends_with_an_image_when_its_judge_dies_midway(stub, engine):
    stub.planned.extend([likely({"Yes": 0.7, "No": 0.2})] * 2)
    stub.default = raw("gone", 503)
    asked = engine(2, rewards=[make_reward("judge:yes:retries=0,cache=none")], batch_size=2)
    (result,) = search(["a"], make_algorithm("best-of-n", n=6), asked, "12nfe")
    assert len(result.images) == 1
    assert result.best.reward == pytest.approx(0.7 / 0.9)
    assert any("503" in warning for warning in result.warnings)
    assert result.spent.cost.reward_calls == 6


@pytest.mark.parametrize("after", ["0", "nan", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_storm_of_429_ends_in_time(stub, monkeypatch, after):
    """A question waits as long as the server wants, within its own time, and is not asked for
    ever."""
    monkeypatch.undo()
    name_server(monkeypatch, stub.url)
    stub.default = raw("{}", 429, Retry_After=after, X_Should_Retry="true")
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"gave no answer within 0\.3 s|refused with status 429"):
        judge(retries=20, timeout=0.3, cache="none", concurrency=8)(
            IMAGES[[0, 1, 2] * 5], list("abcdefghijklmno")
        )
    assert time.monotonic() - begin < 5
    assert len(stub.bodies) <= 15 * 21


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shared"), [("best-of-n", True), ("zero-order", False), ("seed-pruning", True)]
)
def test_tokens_are_charged_before_and_given_back_after(stub, engine, name, shared):
    """Every question takes 101 tokens of at most 150; no prompt may spend more than 1000."""
    asked = engine(4, rewards=[make_reward("judge:yes:image_tokens=150,cache=none,retries=0")])
    results = search(["a", "b"], make_algorithm(name), asked, "80nfe,1000tokens", shared=shared)
    spent = [result.spent.cost.tokens for result in results]
    assert sum(spent) == 101 * len(stub.bodies) == asked.stats["tokens"]
    assert all(sum(spent) <= 2000 if shared else tokens <= 1000 for tokens in spent)
    for result, tokens in zip(results, spent, strict=True):
        assert result.images
        assert tokens == 101 * result.spent.cost.reward_calls == result.spent.to_json()["tokens"]
        assert tokens == sum(move["cost"].get("tokens", 0) for move in result.trace)
    # of the 6 images that 1000 tokens would pay for in full
    assert name != "zero-order" or min(spent) > 606


@pytest.mark.parametrize(
    ("act", "tokens"),
    [
        (likely({"Yes": 0.5}, usage=(400, 1)), 401),
        *(
            (likely({"Yes": 0.5}, usage=odd), 150)
            for odd in (None, {"prompt_tokens": -3, "completion_tokens": 1})
        ),
        (likely({"Yes": 0.5}, usage={"prompt_tokens": 1e9, "completion_tokens": 1}), 150),
        (likely({"The": 0.5}, usage=(100, 1)), 101),
        (raw("oops", 500), 0),
    ],
)
def test_tokens_are_those_that_the_server_counts(stub, act, tokens):
    """More than was thought, too, and those of failures."""
    asked = judge(image_tokens=150, cache="none")
    stub.default = act
    score_images(asked, IMAGES[:1], ["a"], torch.zeros(1), "judge")
    assert list(asked.tokens_taken) == [tokens]


def test_tokens_of_known_and_equal_questions_and_of_pairs(stub, tmp_path):
    asked = judge(cache=str(tmp_path), price_in=2.0, price_out=10.0)
    asked(IMAGES[[0, 0, 1]], ["a", "a", "a"])
    assert list(asked.tokens_taken) == [101, 0, 101]
    asked(IMAGES[:2], ["a", "b"])
    assert list(asked.tokens_taken) == [0, 101]
    assert asked.usage.money == pytest.approx((300 * 2 + 3 * 10) / 1e6)
    staged = make_reward("brightness then judge:yes:image_tokens=150,cache=none")
    assert staged.tokens == 150
    staged(IMAGES, PROMPTS, torch.tensor([0.5, 0.0, 0.5]))
    assert list(staged.tokens_taken) == [0, 101, 0]
    stub.default = likely({"A": 0.5, "B": 0.5}, usage=(200, 1))
    pairs = PairJudge(JudgeOptions(rounds=2, cache="none"))
    pairs(IMAGES, ["a", "b", "a"])
    assert list(pairs.tokens_taken) == [402, 0, 402]
    assert pairs.tokens >= 402


# --- what is remembered ---------------------------------------------------------------------------


def test_answers_are_remembered_by_content(stub, tmp_path):
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
    assert {len(file.stem) for file in files} == {64}
    assert json.loads(files[0].read_text()) == {"score": 0.6 / (0.6 + 0.2)}


PLACED = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda entry: entry.symlink_to("/dev/zero"),
    "dangling": lambda entry: entry.symlink_to(entry.parents[2] / "elsewhere"),
    "huge": lambda entry: entry.write_bytes(b'{"score": 0.5}' + b" " * 2**20),
}


@pytest.mark.parametrize("kind", ["{", "[]", "2", '"0.5"', "true", "NaN", "[" * 900, *PLACED])
def test_a_poisoned_entry_is_as_if_it_were_not_there(stub, tmp_path, kind):
    cache = tmp_path / "cache"
    judge(cache=str(cache))(IMAGES[:1], ["a"])
    (entry,) = cache.rglob("*.json")
    entry.unlink()
    PLACED.get(kind, lambda entry: entry.write_text('{"score": ' + kind + "}"))(entry)
    for _ in range(2):
        assert judge(cache=str(cache), cache_entries=1)(IMAGES[:1], ["a"]).item() == pytest.approx(
            0.75
        )
    # in whose place nothing can be written
    assert len(stub.bodies) == (3 if kind == "folder" else 2)
    assert not (tmp_path / "elsewhere").exists()


def test_a_cache_removes_entries_only(tmp_path):
    """Not what others keep in its folder, nor through links; what cannot be removed stops
    nothing."""
    cache, elsewhere = Cache(tmp_path / "cache", 2), tmp_path / "elsewhere"
    keys = [f"{i:02x}" * 32 for i in range(20)]
    others = [
        cache.folder / "en" / "texts.json",
        cache.folder / "ab" / "texts.json",
        elsewhere / f"{'ee' * 32}.json",
    ]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        os.utime(path, (1, 1))
    (cache.folder / "ee").symlink_to(elsewhere)
    (cache.folder / keys[0][:2] / f"{keys[0]}.json").mkdir(parents=True)
    (cache.folder / "01").mkdir()
    (cache.folder / "01" / f"{keys[1]}.json").symlink_to(tmp_path / "none")
    for key in keys[2:]:
        cache.put(key, (0.5,))
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert [key for key in keys if cache.get(key, 0, 1) is not None] == keys[-2:]


# --- secrets and addresses ------------------------------------------------------------------------

KEYS = ["c2VjcmV0LWtleSsvLw+/ab%41%2B==", "123456789012345678", 'sk-"quoted"\\back\\slash\'s']


def echoes(key):
    """Kinds of judges, and answers of a server that repeats the key that it was sent."""
    half, error = (
        key[: len(key) // 2 + 4],
        {"error": {"message": f"bad key {key}", "code": key, "type": key}},
    )
    number = json.loads(key) if key.isdigit() else [key]
    answers = [
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
        *(one_token({"token": token, "logprob": x}) for token, x in ((key, -1.0), ("Yes", key))),
        raw(
            f'{{"choices": [{{"logprobs": {{"content": [{{"top_logprobs": ["{key[:12]}',
            Content_Length="999",
        ),
    ]
    marks = [
        words(json.dumps(MARKS | more)) for more in ({key: 5}, {"counts": key}, {"counts": number})
    ]
    messages = [
        said({"message": message})
        for message in ({"refusal": f"I was sent {key}", "content": key}, key)
    ]
    return [
        *(("yes", act) for act in answers),
        *(("rubric", act) for act in (words(key), *marks, *messages)),
    ]


@pytest.mark.parametrize("key", KEYS)
def test_no_part_of_a_key_is_in_any_message(
    stub,
    key,
    tmp_path,
    monkeypatch,
    caplog,
    engine,
):
    """Whatever the server says that it was sent: nothing of 8 characters of the key is told,
    logged, raised or kept."""
    caplog.set_level(logging.DEBUG, "ttsnap")
    monkeypatch.setenv("OPENAI_API_KEY", f"  {key}\n")
    told = []
    for kind, act in echoes(key):
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
    stub.default = echoes(key)[0][1]
    asked = engine(2, rewards=[make_reward("judge:yes:retries=0,cache=none")], batch_size=2)
    (result,) = search(["a"], make_algorithm("best-of-n", n=4), asked, "16nfe")
    write_results(
        tmp_path / "out", [result], SearchRecord("x", "x", {}, SamplerOptions(), "x", {}, "x")
    )
    files = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert any("status 401" in text for text in files)
    parts = [key[at : at + 8] for at in range(len(key) - 7)]
    for text in [*told, *files, caplog.text, repr(result)]:
        assert not [part for part in parts if part in text]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("OPENAI_API_KEY", f"sk-{x}secret") for x in ("a ", "a\n", "a\t", "\u200b", "\x7f", "é")),
        *(
            ("ALL_PROXY", x)
            for x in (
                "http://me:secret/word@host:80",
                "ftp://me:secret@host",
                "http://me:secret@host:pa",
            )
        ),
        ("OPENAI_BASE_URL", "http://me:secret@host"),
    ],
)
def test_what_is_no_key_proxy_or_address_is_refused_unseen(stub, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=name) as caught:
        make_reward("judge")(IMAGES[:1], ["a"], None)
    told = "".join(traceback.format_exception(caught.value))
    assert not [part for part in ("secret'", "sk-", "'sec", "me:") if part in told]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("maybe", "kind of judge must be 'yes', 'rubric' or 'pairs', got 'maybe'"),
        ("yes:modle=x", "modle is unknown; did you mean model"),
        ("yes:fast", "cannot read the judge's options 'fast'"),
        ("yes:model=a,model=b", "cannot read the judge's options"),
        ("yes:concurrency=0", r"concurrency must be .* 1, got 0"),
        ("yes:timeout=inf", "timeout must be a finite number"),
        ("yes:detail=none", "judge.detail .*'none'"),
        ("yes:api_key=sk-x", "a key is no option"),
        ("yes:base_url=ftp://x", "starts with http"),
        *(
            (f"yes:base_url=http://me:sk-x{x}@host/v1", "holds a name or a password")
            for x in ("", ",sk-x=/")
        ),
        (
            "yes:base_url=http://host/v1,model=gemini@001,retries=-1",
            "retries must be .* 0, got -1",
        ),
        ("yes:base_url=http://host/v1?key=sk-x", "base_url holds a name, a password"),
        ("yes:base_url=http://host:x/v1", "no address that can be read"),
    ],
)
def test_specs_that_cannot_be_meant(stub, spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_reward(f"judge:{spec}")
    assert "sk-x" not in str(caught.value)


def test_the_environment_names_model_server_and_key(stub, monkeypatch):
    assert make_reward("judge").name == "judge:yes tiny"
    assert (
        make_reward("judge:rubric:model=org/big,base_url=http://localhost:1/v1").name
        == "judge:rubric org/big"
    )
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert judge().client.options.base_url == "https://api.openai.com/v1"
    for name, wanted in (
        ("OPENAI_API_KEY", "or OPENAI_BASE_URL"),
        ("TTSNAP_JUDGE_MODEL", "model=NAME"),
    ):
        monkeypatch.delenv(name)
        with pytest.raises(ValueError, match=wanted):
            judge()


@pytest.mark.parametrize("name", ["judge", "clip then judge:yes:base_url=http://elsewhere/v1"])
def test_a_configuration_sends_no_images_away(tmp_path, name):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"reward": name}))
    with pytest.raises(ValueError, match="--trust"):
        generate.parser().parse_args(["--config", str(path)])
    generate.parser().parse_args(["--config", str(path), "--trust"])
