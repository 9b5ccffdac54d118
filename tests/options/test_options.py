"""Options declared once: the call, the command line, configuration files, PNGs and recordings
follow from the field."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from diffusers import FluxPipeline, SanaPipeline

from ttsnap.cli import COMMANDS, arguments
from ttsnap.cli.parser import Parser
from ttsnap.files.settings import Settings, Word, check
from ttsnap.options.call import CALL
from ttsnap.options.engine import BatchOptions, EngineOptions
from ttsnap.options.every import DECLARED
from ttsnap.options.model import ModelOptions
from ttsnap.options.option import changed, option, options_of, taken
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import SamplerOptions
from ttsnap.options.search import SearchOptions
from ttsnap.pipelines import search_class
from ttsnap.pipelines.arguments import SearchArguments
from ttsnap.results import record

KINDS = (SearchOptions, SamplerOptions, EngineOptions, ModelOptions)


@dataclass(frozen=True)
class Toy(Settings):
    """Options as someone might add them."""

    size: Annotated[int, Ge(2)] | None = option(
        None, "how large", unset="the model's own", metavar="N"
    )
    colour: Any = option(
        "red", "which colour", python="An object is taken as it is.", shell="or blue", written=Word
    )
    quick: bool = option(False, "hurry")
    seen: Any = option(None, "called at the end", written=None)


def parsed(argv, **starts):
    p = Parser("toy")
    arguments.add_config(p)
    arguments.add_options(p, Toy, **starts)
    return p.parse_args(argv)


def test_command_line_and_files_follow_from_the_fields(tmp_path):
    assert arguments.read(Toy, parsed([])) == Toy()
    assert arguments.read(Toy, parsed(["--size", "3", "--quick"])) == Toy(3, quick=True)
    (tmp_path / "c.yaml").write_text("size: 4\ncolour: blue\n")
    assert arguments.read(Toy, parsed(["--config", str(tmp_path / "c.yaml")])) == Toy(4, "blue")
    assert parsed([], size=8).size == 8
    for wrong in (["--size", "large"], ["--seen", "x"]):
        with pytest.raises((SystemExit, ValueError)):
            parsed(wrong)
    p = Parser("toy")
    arguments.add_options(p, Toy)
    text = " ".join(p.format_help().split())
    assert "--size N how large (default: the model's own)" in text
    assert "--colour COLOUR which colour; or blue (default: red)" in text
    assert "seen" not in text
    size, colour, *_ = options_of(Toy)
    assert size.documented == "how large; by default the model's own."
    assert colour.documented == "which colour. An object is taken as it is."


def test_values_are_taken_out_of_arguments_and_told_apart_from_defaults():
    given = {"size": 3, "other": 1, "colour": "red"}
    toy = taken(Toy, given)
    assert (toy, given) == (Toy(3), {"other": 1})
    assert changed(toy) == ["size"]
    assert changed(Toy(colour=Toy)) == ["colour"]


def test_values_are_held_to_types_and_bounds():
    with pytest.raises(ValueError, match="2, got 1"):
        Toy(1)
    for name in ("batch_size", "decode_batch_size", "gradient_batch_size"):
        with pytest.raises(ValueError, match=f"{name} .*got 0"):
            BatchOptions(**{name: 0})
    values = {
        "size": ((2, None), (1, 2.5, True, "2")),
        "colour": (("red",), (3, None, "x" * 201)),
        "quick": ((True,), (1,)),
    }
    for declared in options_of(Toy)[:3]:
        fit, unfit = values[declared.name]
        for value in fit:
            check(declared.name, value, declared.written)
        for value in unfit:
            with pytest.raises(ValueError, match=declared.name):
                check(declared.name, value, declared.written)


@pytest.mark.parametrize("stock", [SanaPipeline, FluxPipeline])
def test_every_search_pipeline_takes_and_explains_what_is_declared(stock):
    call = search_class(stock).__call__
    parameters = inspect.signature(call).parameters
    for declared in DECLARED.values():
        assert parameters[declared.name].default == declared.default
        assert f"\n    {declared.name}: {declared.text[:20]}" in call.__doc__


def test_commands_have_every_argument_that_can_be_written_or_recorded():
    found = {action.dest: action for action in COMMANDS["generate"].parser()._actions}
    for declared in (*DECLARED.values(), *options_of(ModelOptions)):
        flag = declared.flag
        assert (flag in found) == (declared.written is not None), flag
        if flag in found:
            assert str(found[flag].help).startswith(declared.help)
    assert (found["algorithm"].default, found["seed"].default) == ("seed-pruning", 0)
    found = {action.dest: action for action in COMMANDS["record"].parser()._actions}
    for kind in (SamplerOptions, BatchOptions, ModelOptions, RecordOptions):
        for declared in options_of(kind):
            assert (declared.flag in found) == (declared.recorded and declared.written is not None)
    assert (found["batch_size"].default, found["decode_batch_size"].default) == (32, None)


def test_what_an_image_says_of_its_sampler_is_read_back():
    sampler = SamplerOptions("sde:constant:1", "vp", "sqrt", "dps:1", "someone/draft:2")
    told = json.loads(json.dumps(sampler.told()))
    kinds = record._HINTS
    assert {name: check(name, value, kinds[name]) for name, value in told.items()} == told
    assert taken(SamplerOptions, told) == sampler
    assert SamplerOptions(kernel=object(), guide=sampler).told()["guide"] == "SamplerOptions"
    assert {option.name for option in options_of(SamplerOptions)} <= set(kinds)


def test_a_recording_notes_what_it_always_did():
    for how, stock, noted in (
        ({}, True, {"kernel": "pipeline"}),
        ({"draft": "hot"}, True, {"kernel": "pipeline", "draft": "hot"}),
        ({"kernel": "ode"}, False, {"kernel": "ode", "path": None, "times": "pipeline"}),
        (
            {"kernel": "sde", "path": "vp", "times": "sqrt"},
            False,
            {"kernel": "sde", "path": "vp", "times": "sqrt"},
        ),
        ({"guide": "dps:1"}, False, {"kernel": "pipeline", "guide": "dps:1"}),
    ):
        sampler = SamplerOptions(**how)  # type: ignore[arg-type]
        assert (sampler.noted(), sampler.stock) == (noted, stock)


def test_arguments_of_a_call_are_split_by_what_they_are_about():
    given = {"search": "svdd", "kernel": "sde", "batch_size": 3, "height": 64}
    asked = SearchArguments.of(given)
    assert given == {"height": 64}
    assert asked == SearchArguments(SearchOptions("svdd"), SamplerOptions("sde"), BatchOptions(3))
    assert asked.changed == ["batch_size", "kernel", "search"]
    names = [declared.name for kind in KINDS for declared in options_of(kind)]
    assert len({*names, *CALL}) == len(names) + len(CALL), "declared once"


def test_what_is_kept_is_said_in_both_forms():
    assert [RecordOptions(2, latents=kept).keep for kept in (True, False)] == [("latents",), ()]
