"""The catalogue of algorithms: complete, in groups, and true."""

from __future__ import annotations

import dataclasses
import importlib
import re

import numpy as np
import pytest

from ttsnap import Grid, SeedPruning, make_algorithm
from ttsnap.algorithms import ALGORITHMS, GROUPS, class_of, name_of, options, spec_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.options import options_of
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.core import Need

GRID = Grid(tuple(np.linspace(1, 0, 9)))
NEED_MORE = {"price-of-compute"}  # a forecast, which no default can be


def test_every_group_is_listed_together_and_has_members():
    order = [entry.group for entry in ALGORITHMS.values()]
    assert list(dict.fromkeys(order)) == list(GROUPS)
    assert order == sorted(order, key=list(GROUPS).index)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_entries_are_whole(name):
    entry = ALGORITHMS[name]
    module, _, attribute = entry.where.partition(":")
    assert callable(vars(importlib.import_module(module))[attribute])
    assert entry.title
    assert 20 <= len(entry.summary) <= 56  # one line of a terminal
    assert not entry.summary.endswith(".")
    for number in re.findall(r"\d{4}\.\d{5}", entry.source):
        # What the module says it is from: an arXiv number that only the catalogue knew would be a
        # slip.
        assert number in (importlib.import_module(module).__doc__ or "") + options.about(name)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_is_explained(name):
    options = options_of(name)
    fields, entry = [field.name for field in dataclasses.fields(class_of(name))], ALGORITHMS[name]
    assert {entry.renamed.get(o.name, o.name).split(".")[0] for o in options} <= set(fields)
    assert set(fields) - set(entry.fixed) - {"n"} <= {
        entry.renamed.get(o.name, o.name) for o in options
    }
    for option in options:
        assert len(option.text) > 5
        assert "[" not in option.source
        assert not re.search(r"\. \w+: ", option.text), "the text of another option"
    if name not in NEED_MORE:
        values = {o.name: o.default for o in options}
        assert make_algorithm(name, **values) == make_algorithm(name)


def test_options_come_with_their_own_texts_and_sources():
    found = {o.name: o for o in options_of("svdd")}
    assert list(found) == ["n", "streams", "alpha"]
    assert (found["streams"].default, found["streams"].source) == (
        2,
        "as compared in arXiv 2503.19385",
    )
    assert found["streams"].text.startswith("Particles")
    assert "exp(score / alpha)" in found["alpha"].text
    assert {o.name: o.default for o in options_of("funnel")}["shrink"] == 0.25


def test_a_preset_sets_fields_of_its_class_and_refuses_what_it_fixes():
    assert make_algorithm("svdd", alpha=0.1) == CoDe(block=1, temperature=0.1)
    assert make_algorithm("fk-steering") == SMC(4, temper="constant", resampler="multinomial")
    pruning = SeedPruning(None, (0.5, 0.4), (0.9, 0.7))
    assert make_algorithm("ttsnap-rbf", keep=(0.5, 0.4), streams=3) == Nested(
        pruning, RBF(3), share=0.5
    )
    assert spec_of(CoDe(block=1)) == {"name": "code", "block": 1}
    with pytest.raises(ValueError, match=r"\['n', 'streams', 'alpha'\]"):
        make_algorithm("svdd", block=3)
    with pytest.raises(ValueError, match=r"keep\[0\] must be"):
        make_algorithm("ttsnap-rbf", keep=(2.0, 0.5))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in NEED_MORE])
def test_an_algorithm_is_called_what_people_asked_for_and_says_what_kernel_it_needs(
    name,
):
    made = make_algorithm(name)
    assert (Need.BRANCH in made.needs) == ("draws noise" in ALGORITHMS[name].needs)
    assert name_of(made) == name
    if "n" in {o.name for o in options_of(name)} and made.n is None:
        assert name_of(make_algorithm(name, n=5)) == name


@dataclasses.dataclass(frozen=True)
class Terse:
    """Explains one of two fields."""

    n: int = 4
    """Seeds."""
    level: float = 0.5


def test_an_option_without_a_line_of_its_own_is_told(monkeypatch):
    assert name_of(Terse()) == "Terse"  # type: ignore[arg-type]
    monkeypatch.setattr(options, "class_of", lambda name: Terse)
    monkeypatch.setattr(options, "defaults_of", lambda name: {"n": 4, "level": 0.5})
    with pytest.raises(ValueError, match="best-of-n explains"):
        options_of("best-of-n")
