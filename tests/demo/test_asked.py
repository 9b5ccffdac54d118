"""What visitors ask for: good fields are read, everything else is refused with a message, and nothing runs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from ttsnap.cli import build_parser, demo
from ttsnap.demo.asked import ALGORITHMS, Asked, Limits, Offer, kernel_of, read
from ttsnap.demo.snippet import command_line, python_lines

from .conftest import FIELDS

OFFER = Offer("embedded", False, ("scenes", "brightness", "compressibility", "colourfulness"))
HOSTILE: list[dict[str, Any]] = [
    *({"prompt": p} for p in ("", "   ", None, 5, ["a"], "a" * 401, "a\0b", "\x1b[31mred", "\ud800", "x\u0085\ue000")),
    *({"algorithm": a} for a in ("keep-all", "../x.json", "/etc/passwd.json", None, {"name": "smc"})),
    *({"rewards": r} for r in ([], None, 3, ["os:system"], ["a.py:f"], ["http://169.254.169.254"], ["scenes"] * 4)),
    *({"budget": b} for b in ("", None, "-5nfe", "0", "nan", "inf", "1e999nfe", "1e99images", "2001nfe", "5000images",
                              "9" * 100, "1;ls", True, ["5nfe"], "high,3000s", "121s", "1e400", float("nan"))),
    *({"steps": s} for s in (-1, 0, 1, 101, 1e9, float("nan"), float("inf"), "ten", None, 3.5, True, [10])),
    *({"seed": s} for s in (-1, 2**31, 1e300, float("nan"), "0; DROP", None, 0.5)),
    *({"keep": k} for k in (0, -3, 9, 1e9, None, "1")),
    *({"size": s} for s in (-32, 8, 1025, 1e9, "big", float("nan"))),
]  # fmt: skip


def asked(**changes: Any) -> Asked:
    return read({**FIELDS, **changes}, OFFER, Limits(), lambda model: {"guidance_scale": 4.0})


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda c: repr(c)[:50])
def test_hostile_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w{3}") as caught:
        asked(**changes)
    assert len(str(caught.value)) < 1000


def test_good_fields_are_read() -> None:
    found = asked(prompt=" a  red\ncircle ", rewards=["scenes", "brightness", "scenes"], seed=7.0)
    assert (found.prompt, found.rewards, found.seed) == ("a red circle", ("scenes", "brightness"), 7)
    assert found.call == {"guidance_scale": 4.0, "num_inference_steps": 10}
    assert str(found.budget) == "60nfe"
    assert str(asked(budget="medium").budget) == "20images"
    assert asked(budget="5s").budget.nfe == 2000  # the demo's cap holds beside one in seconds
    assert asked(budget=80).budget.nfe == 80
    assert asked(prompt="ein Fuchs 🦊 <b>&").prompt == "ein Fuchs 🦊 <b>&"


def test_visitors_choose_models_only_where_they_may() -> None:
    assert asked(model="evil/weights").model == "embedded"
    free = Offer("embedded", True, ("brightness", "scenes"))
    fields = {**FIELDS, "rewards": ["brightness"]}
    assert read({**fields, "model": "some/model"}, free, Limits(), lambda m: {}).model == "some/model"
    for model in ("a" * 201, "a\nb", 5):
        with pytest.raises(ValueError, match="model"):
            read({**fields, "model": model}, free, Limits(), lambda m: {})
    with pytest.raises(ValueError, match="captions"):
        read({**FIELDS, "model": "some/model"}, free, Limits(), lambda m: {})


@pytest.mark.parametrize(
    ("words", "free"),
    [([], True), (["--share"], False), (["--host", "0.0.0.0"], False), (["--model", "embedded"], False),
     (["--share", "--any-model"], True)],
)  # fmt: skip
def test_strangers_do_not_choose_models_by_default(words: list[str], free: bool) -> None:
    assert demo.offered(demo.parser().parse_args(words)).any_model is free


def test_the_operator_chooses_rewards_and_limits() -> None:
    a = demo.parser().parse_args(["--reward", "brightness", "scenes", "--max-budget", "50", "--max-seconds", "5"])
    assert demo.offered(a).rewards == ("brightness", "scenes")
    assert (demo.limited(a).nfe, demo.limited(a).seconds) == (50, 5.0)
    with pytest.raises(ValueError, match="at least 1"):
        demo.limited(demo.parser().parse_args(["--max-budget", "0"]))


def test_kernels_are_chosen_by_need() -> None:
    assert {name: kernel_of(name) for name in ("best-of-n", "seed-pruning", "ttsnap", "zero-order")} == dict.fromkeys(
        ("best-of-n", "seed-pruning", "ttsnap", "zero-order"), "pipeline"
    )
    assert {kernel_of(n) for n in ("smc", "funnel", "code", "svdd", "nested", "search-over-paths", "best-first")} == {
        "sde"
    }
    assert set(map(kernel_of, ALGORITHMS)) == {"sde", "pipeline"}


@pytest.mark.parametrize("prompt", ["a red circle", "--help", 'it\'s "quoted" $(rm -rf) `x` \\ ;'])
def test_lines_to_repeat_a_search_say_what_was_asked(prompt: str) -> None:
    wanted = asked(prompt=prompt, algorithm="svdd", rewards=["scenes", "brightness"], keep=3, size=64)
    line = shlex.split(command_line(wanted))
    a = build_parser().parse_args(line[1:])["generate"]
    assert (a.prompts, a.algorithm, a.kernel, a.reward) == ([prompt], "svdd", "sde", ["scenes", "brightness"])
    assert (a.budget, a.steps, a.seed, a.keep, a.height, a.width) == ("60nfe", 10, 3, 3, 64, 64)
    code = compile(python_lines(wanted, "cuda:0", "bfloat16"), "snippet", "exec")
    assert prompt in next(c for c in code.co_consts if isinstance(c, str) and c == prompt)
