"""A stranger's workflow: every input of every node gets everything that a link can carry."""

from __future__ import annotations

import numpy as np
import torch

from tests.watch import MODULE

NUMBERS = (0, -1, 3, 2**63, 10**30, -(10**400), 0.5, 1e300, float("nan"), float("inf"), True)
MADE = (np.ndarray, torch.Tensor, object)
"""What only a node can make."""
OTHERS = (
    None,
    b"x.py:score",
    [],
    {},
    [None],
    ["x.py:score", "x"],
    {"samples": "x.py:score"},
    (),
    np.zeros(2),
    [[[]]],
    torch.zeros(2),
    {"__value__": "x"},
    {1: b""},
    object(),
)


def carried(named, outside):
    """named: code, addresses and files, all of them there."""
    code = f"{outside}/{MODULE}.py"
    texts = [
        *named,
        f"{code}:score",
        f"{code}:Thing",
        MODULE,
        f"{MODULE}.py:score",
        "http://127.0.0.1:9",
        "https://127.0.0.1:9",
        "judge:yes",
        "judge:yes:model=m,base_url=http://127.0.0.1:9",
        "judge:rubric,base_url=http://127.0.0.1:9/v1",
        f"http://127.0.0.1:9 then {code}:score",
        f"noise-aware:{outside}",
        f"noise-aware:{outside} on clip:{outside}",
        "editreward",
        "brightness:weights",
        "brightness",
        "",
        "x" * 1_000_000,
        "\ud800",
        "price-of-compute",
        "refined",
        "best-of-n",
        "Scorer",
        "[" * 5000,
        '{"n": 2}',
        '{"forecast": "secret.json"}',
        f'{{"name": "{code}:Thing"}}',
        f'{{"inner": "{code}:Thing"}}',
        f'{{"inner": {{"name": "{outside}/secret.json"}}}}',
        '{"n": 99999999999}',
        f'{{"early": "{MODULE}:Thing"}}',
        '{"n": 1e999}',
        '{"levels": "secret.json"}',
    ]
    return [
        *texts,
        *NUMBERS,
        *OTHERS,
        [text for text in texts if isinstance(text, str)],
        tuple(named),
    ]


def given_to(node, objects):
    """Values of its inputs with which a node works. objects: by type, what other nodes make; of two
    images."""
    given = {}
    usual = {
        "prompt": "a red circle",
        "node": "Scorer",
        "name": "brightness",
        "evaluations": 4,
        "steps": 2,
    }
    for one in node.define_schema().inputs:
        options = getattr(one, "options", None) or [None]
        default = getattr(one, "default", None)
        given[one.id] = usual.get(
            one.id, objects.get(one.io_type, options[0] if default is None else default)
        )
        if one.id == "latent":  # of two images
            given[one.id] = {"samples": objects["LATENT"]["samples"].repeat(2, 1, 1, 1)}
    return given


def attack(node, good, values, watch):
    """What is wrong after each input of a node got each of these values: what was seen, and errors
    of other kinds."""
    schema, wrong = node.define_schema(), []
    for one in schema.inputs:
        for value in values:
            shown = f"{schema.node_id}.{one.id} = {str(value)[:80]!r}"
            try:
                use(node.execute(**{**good, one.id: value}).result)
            except ValueError as error:
                if len(str(error)) > 3000:
                    wrong.append(f"{shown}: a long error, {error!s:.300}")
            except Exception as error:
                if type(value) not in MADE:  # of these another node must make one, as for KSampler
                    wrong.append(f"{shown}: {error!r:.300}")
            if watch.seen:
                wrong.append(f"{shown}: {watch.seen}")
                watch.seen.clear()
    return wrong


def use(made):
    """Score an image by the rewards that a node made."""
    for chain in made:
        for weighted in chain if isinstance(chain, tuple) else ():
            if hasattr(weighted, "reward"):
                weighted.reward(torch.rand(1, 3, 8, 8), ["a red circle"])
