"""An option that is added: the line of the how-to, in a copy of the package, is all that it takes
to be offered."""

from __future__ import annotations

import re

from ..copied import copy_package, recipe, run_trial  # noqa: TID252

TRIAL = """
import inspect
import shlex
import pytest
from pathlib import Path
from ttsnap.pipelines.arguments import SearchArguments
from diffusers import SanaPipeline
from ttsnap.pipelines import search_class
from ttsnap.cli import arguments, parse, replay
from ttsnap.core.prompt import Prompt
from ttsnap.options.model import ModelOptions
from ttsnap.request.offer import SearchFields
from ttsnap.request.limits import SearchLimits
from ttsnap.request.offer import ServingCatalog, request_of
from ttsnap.request.request import EngineSpec, ModelDefaults, SearchRequest, prepare
from ttsnap.demo.form import command_line, python_lines
from ttsnap.loop.budget import Budget
from ttsnap.options.sampler import SamplerOptions
from ttsnap.results import outputs, record
from ttsnap.service.forms import body_schema
from ttsnap.service.limits import RequestError
from ttsnap.service.requests import Generation, prepared_of, validated

call = search_class(SanaPipeline).__call__
assert inspect.signature(call).parameters["mirrored"].default is False
assert "    mirrored: turn the noises of odd seeds from left to right." in call.__doc__
assert SearchArguments.of({"mirrored": True}).changed == ["mirrored"]

Path("c.yaml").write_text("mirrored: true")
for argv in (["generate", "x", "--mirrored"], ["record", "x", "--out", "o", "--mirrored"],
             ["generate", "x", "--config", "c.yaml"]):
    given = parse(argv)[1]
    assert arguments.read(SamplerOptions, given) == SamplerOptions(mirrored=True), argv
with pytest.raises(SystemExit):
    parse(["generate", "x", "--mirrored", "--help-all"])

sampler = SamplerOptions(mirrored=True)
assert not sampler.stock
assert sampler.noted() == {"kernel": "pipeline", "mirrored": True}
assert SamplerOptions().noted() == {"kernel": "pipeline"}
found = {"prompt": "x", "seed": 1, "model": "embedded", "call": {}, "ttsnap": "1", "sampler": "S",
         "search": {"algorithm": "a", "budget": "1nfe", "reward": 1.0}, **sampler.told()}
assert record.SearchRecord.from_json(found, "x.png").sampler.mirrored is True
with pytest.raises(ValueError, match="the ttsnap metadata of x.png: mirrored must be .*got 'yes'"):
    record.SearchRecord.from_json({**found, "mirrored": "yes"}, "x.png")

spec = EngineSpec(ModelOptions(), ("scenes",), sampler)
wanted = prepare(SearchRequest((Prompt("x"),), spec, "svdd", Budget(nfe=9)), ModelDefaults())
assert "    mirrored=True,\\n" in python_lines(wanted)
fields = {"prompt": "x", "mirrored": True}
body = validated(Generation, fields)
offer = ServingCatalog("embedded", ("scenes",), lambda model: ModelDefaults())
assert validated(Generation, body.written()["fields"]) == body
assert prepared_of(body, offer, SearchLimits()).engine.sampler.mirrored is True
assert request_of(SearchFields.of(fields), offer, SearchLimits()).engine.sampler.mirrored is True
told = body_schema(Generation)["requestBody"]["content"]["application/json"]["schema"]
assert told["properties"]["mirrored"]["description"].startswith("turn the noises")
with pytest.raises(RequestError, match="mirrored must be .*got 'yes'"):
    validated(Generation, {**fields, "mirrored": "yes"})

again = parse(shlex.split(command_line(wanted))[1:])[1]
assert arguments.read(SamplerOptions, again) == sampler
"""


def test_a_new_option_is_the_line_of_the_how_to(tmp_path):
    found = re.search(r"^mirrored: .*\n", recipe("An option"), re.MULTILINE)
    assert found is not None
    copy_package(tmp_path)
    declared = tmp_path / "ttsnap" / "options" / "sampler.py"
    head, first_property, rest = declared.read_text().partition("    @property\n")
    declared.write_text(f"{head.rstrip()}\n    {found.group()}\n{first_property}{rest}")
    assert "--mirrored " in run_trial(TRIAL, tmp_path)
