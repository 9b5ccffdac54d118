"""Recordings on disk: whole after any interruption, the same to the last bit, and refused where
something is off."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.counted import Brightness
from tests.distill.kills import calls
from ttsnap import BestOfN, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.cost import Rates
from ttsnap.core.grid import Grid
from ttsnap.core.price import Price
from ttsnap.core.prompt import Prompt
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.engine.live import LiveEngine
from ttsnap.files.run_folder import RunFolder
from ttsnap.files.writing import part_of
from ttsnap.options.option import taken
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.folder import (
    begun_block,
    load_recording,
    progress,
    read_images,
    save_recording,
)
from ttsnap.recordings.header import Header
from ttsnap.recordings.record import describe, record, step_correlations
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.results.media import to_uint8
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.interpolants import Linear
from ttsnap.sampling.kernels import Sde

PROMPTS = ["a", "b", "c"]
BLOCK = (2, 3)
"""With 5 seeds: four units of 2 x 3, 2 x 2, 1 x 3 and 1 x 2 rows."""


@pytest.fixture
def engine(engine):
    """The mixture engine, with a prompt's mixture chosen by its text: units hold some of the
    prompts each."""

    def make(*args, **kwargs):
        made = engine(*args, **kwargs)
        encode = made.denoiser.encode

        def by_text(prompts):
            encode(PROMPTS)
            # a text that is timed is empty
            at = [PROMPTS.index(p.text) if p.text else 0 for p in prompts]
            made.denoiser._offset = made.denoiser._offset[at]  # type: ignore[attr-defined]

        made.denoiser.encode = by_text  # type: ignore[method-assign]
        return made

    return make


@pytest.fixture
def recorder(engine):
    def run(folder, reward=None, prompts=PROMPTS, of=None, **kwargs):
        made = engine(**{"steps": 4, "rewards": [reward or Brightness()], **(of or {})})
        given = {"seeds": 5, "seed": 7, "block": BLOCK, **kwargs}
        options = taken(RecordOptions, given)
        return record(made, prompts, folder, options, **given)

    return run


class Dies(Brightness):
    """Ctrl-C while image number `after` is scored: an exception, or a signal."""

    def __init__(self, after, signalled=False):
        super().__init__()
        self.after, self.signalled = after, signalled

    def __call__(self, images, prompts, level):
        if self.images <= self.after < self.images + len(images):
            if not self.signalled:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(images, prompts, level)


def cut(recorder, folder, after, **kwargs):
    """A recording that was interrupted."""
    with pytest.raises(KeyboardInterrupt):
        recorder(folder, reward=Dies(after), **kwargs)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip(recorder, tmp_path):
    made = recorder(tmp_path / "r", steps=[0, 2], info={"model": "mixture", "call": {"steps": 4}})
    assert sorted(contents(tmp_path / "r")) == ["recording.json", "scores.safetensors"]
    for path in (tmp_path / "r", tmp_path / "r" / "scores.safetensors"):
        read = load_recording(path)
        np.testing.assert_array_equal(read.scores, made.scores)
        assert (read.prompts, read.grid, read.reward_names) == (
            tuple(PROMPTS),
            made.grid,
            ("brightness",),
        )
        assert (read.first_seed, read.price, read.info) == (7, made.price, made.info)
        assert read.scored == (True, False, True, False, True)
        assert read.info["model"] == "mixture"
        assert set(read.info["versions"]) == {"ttsnap", "torch", "diffusers"}
    assert np.isnan(made.scores[:, :, 1]).all()
    assert not np.isnan(made.final).any()
    # Units of seeds and prompts are joined to what one search of all of them gives.
    at_once = recorder(tmp_path / "one", block=(3, 5), steps=[0, 2])
    np.testing.assert_allclose(at_once.scores, made.scores, rtol=1e-6)
    # In memory and to the disk.
    for _ in range(2):  # the same once more changes nothing
        save_recording(made, tmp_path / "saved")
        np.testing.assert_array_equal(load_recording(tmp_path / "saved").scores, made.scores)
    with pytest.raises(ValueError, match="same settings"):
        save_recording(replace(made, scores=made.scores + 1), tmp_path / "saved")
    np.testing.assert_array_equal(load_recording(tmp_path / "saved").scores, made.scores)


def test_any_units_that_are_there_are_kept(recorder, tmp_path):
    recorder(tmp_path / "whole")
    cut(recorder, tmp_path / "cut", 74)
    names = [f"unit-{index:05d}.safetensors" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "cut").glob("unit-*")) == names
    files = {name: (tmp_path / "cut" / name).read_bytes() for name in names}
    for there in itertools.chain(*(itertools.combinations(range(3), n) for n in range(4))):
        folder = tmp_path / f"{there}"
        folder.mkdir()
        shutil.copy(tmp_path / "cut" / "recording.json", folder)
        for index in there:
            (folder / names[index]).write_bytes(files[names[index]])
        # of a process killed while it wrote
        part_of(folder / names[0]).write_bytes(files[names[0]][:50])
        before = contents(folder)
        assert progress(folder) == (len(there), 4)
        assert contents(folder) == before  # looking changes nothing
        counter = Brightness()
        recorder(folder, reward=counter)
        # no unit is made twice
        assert counter.images == 75 - sum([30, 20, 15][index] for index in there)
        part_of(folder / names[0]).unlink(missing_ok=True)
        assert contents(folder) == contents(tmp_path / "whole")


def test_flipped_bytes_are_found(recorder, tmp_path):
    recorder(tmp_path / "r")
    path = cut(recorder, tmp_path / "broken", 31) / "unit-00000.safetensors"
    data = path.read_bytes()
    for at in range(0, len(data), 13):
        broken = bytearray(data)
        broken[at] ^= 4
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"unit-00000\.safetensors.* remove"):
            recorder(tmp_path / "broken")
    path.unlink()  # as the message says
    recorder(tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "r")


@pytest.mark.parametrize("after", [31, 74])
def test_interrupted_and_resumed_is_the_same(recorder, tmp_path, after):
    recorder(tmp_path / "whole", images=True)
    cut(recorder, tmp_path / "r", after, images=True)
    there, units = progress(tmp_path / "r")
    assert there == sum(after >= n for n in (30, 50, 65))
    assert not list((tmp_path / "r").rglob("*.part"))
    with pytest.raises(ValueError, match=rf"unfinished: {there} of {units} units"):
        load_recording(tmp_path / "r")
    for shard in list((tmp_path / "r" / "images").iterdir())[:1]:
        shard.unlink()  # it has a record: its unit is made again
    (tmp_path / "r" / "images" / "unit-00003.tar").write_bytes(b"of no record, as after a kill")
    recorder(tmp_path / "r", images=True)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_images_are_the_scored_estimates(recorder, tmp_path, engine):
    made = recorder(tmp_path / "r", images=True, steps=[1])
    seen = {(i.prompt, i.seed, i.step): i.pixels for i in read_images(tmp_path / "r")}
    assert set(seen) == {(p, s, k) for p in range(3) for s in range(7, 12) for k in (1, 4)}
    for (prompt, seed, step), pixels in seen.items():
        assert pixels.shape == (1, 1, 3)
        assert abs(pixels.mean() / 255 - made.scores[prompt, seed - 7, step, 0]) < 1 / 255
    live = search(PROMPTS, BestOfN(5), engine(steps=4), seed=7)
    for i, result in enumerate(live):
        np.testing.assert_array_equal(seen[i, result.best.seed, 4], to_uint8(result.best.image))
    shard = tmp_path / "r" / "images" / "unit-00001.tar"
    broken = bytearray(shard.read_bytes())
    broken[600] ^= 1
    shard.write_bytes(broken)
    with pytest.raises(ValueError, match=r"unit-00001\.tar"):
        list(read_images(tmp_path / "r"))


def test_latents_alone_are_of_seeds_that_no_two_prompts_share(recorder, tmp_path, engine):
    options = {"steps": [], "latents": True, "of": {"keep": ("latents",)}}
    for _ in range(2):  # resumed, when it is finished
        made = recorder(tmp_path / "r", block=(1, 3), **options)
    frames = Frames([tmp_path / "r"])
    ends = [FrameAt(p, s, frames.last) for p in range(3) for s in range(5)]
    assert [frames.seed(end) for end in ends] == list(range(7, 22))
    live = search(PROMPTS[1:2], KeepAll(5, ()), engine(steps=4), seed=12)
    np.testing.assert_allclose(made.final[1, :, 0], live[0].particles.scores[:, -1, 0], rtol=1e-6)
    assert len(frames.load(ends, "latents").unique(dim=0)) == 15
    with pytest.raises(ValueError, match="share no seeds"):
        load_recording(tmp_path / "r")
    with pytest.raises(ValueError, match=r"block must be \(1, 5\)"):
        recorder(tmp_path / "two", block=(2, 5), **options)


def test_other_settings_are_refused(recorder, tmp_path):
    before = contents(cut(recorder, tmp_path / "r", 40, info={"call": {"guidance": 4.0}}))
    for change, message in [
        ({}, r"info\.call is .*guidance.*, not null"),
        ({"info": {"call": {"guidance": 5.0}}}, r"info\.call\.guidance is 4\.0, not 5\.0"),
        ({"seed": 8}, "first_seed is 7, not 8"),
        ({"steps": [1]}, "steps has 5 entries, not 2"),
        ({"images": True}, "images is false, not true"),
        ({"block": (1, 3)}, r"block\[0\] is 2, not 1"),
        ({"reward": Brightness("other")}, 'rewards.0. is "brightness", not "other"'),
        ({"prompts": PROMPTS[:2]}, "3 entries"),
        ({"prompts": ["a", "c", "b"]}, r"prompts\[1\]"),
        ({"seeds": 6}, "seeds is 5, not 6"),
        ({"of": {"steps": 8}}, "5 entries"),
        ({"of": {"batch_size": 3}}, "4, not 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            recorder(tmp_path / "r", **change)
    assert contents(tmp_path / "r") == before


def test_settings_that_fit_nothing_leave_nothing(recorder, tmp_path):
    for change, message in [
        ({"steps": [3, 1]}, r"\(3, 1\)"),
        ({"steps": [9]}, "grid of 4 steps"),
        ({"seed": -1}, "got -1"),
        ({"seeds": 0}, "got 0"),
        ({"block": (0, 3)}, "block must"),
        ({"info": {"when": object()}}, "got <object"),
        ({"prompts": []}, "needs prompts"),
    ]:
        with pytest.raises(ValueError, match=message):
            recorder(tmp_path / "r", **change)
    assert not (tmp_path / "r").exists()


def test_other_files_are_left_alone(recorder, tmp_path):
    (tmp_path / ".recording.json.part").write_text("{")  # of a process killed at the very start
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"files \(thesis\.tex"):
        recorder(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        recorder(tmp_path / "thesis.tex")
    (tmp_path / "thesis.tex").unlink()
    recorder(tmp_path)


def test_a_guided_recording_is_resumed_and_replayed(engine, tmp_path):
    def guided(reward=None):
        kernel = Sde(Linear(), torch.linspace(1, 0, 5).double())
        guidance = RewardGuidance.parse("tilted:0.3:x0:1-0")
        return engine(steps=4, rewards=[reward or Brightness()], kernel=kernel, guidance=guidance)

    options = RecordOptions(5, seed=7, block=BLOCK)
    with pytest.raises(KeyboardInterrupt):
        record(guided(Dies(60)), PROMPTS, tmp_path / "r", options)
    recording = record(guided(), PROMPTS, tmp_path / "r", options)
    read = load_recording(tmp_path / "r")
    assert read.price == recording.price == replace(guided().price, seconds=None)
    assert read.price.guided is not None
    with pytest.raises(ValueError, match=r"price\.guided"):
        record(engine(steps=4), PROMPTS, tmp_path / "r", options)
    live = search(PROMPTS, BestOfN(4), guided(), seed=7)
    again = search(PROMPTS, BestOfN(4), ReplayEngine(read), seed=7)
    for a, b in zip(live, again, strict=True):
        assert a.spent.cost == b.spent.cost
        assert a.spent.cost.gradients > 0
    # What the gradient of a finished image goes back through is kept as well.
    deep = replace(read, price=replace(read.price, depth=3, asked=2))
    save_recording(deep, tmp_path / "deep")
    assert load_recording(tmp_path / "deep").price == deep.price
    header = json.loads((tmp_path / "deep" / "recording.json").read_text())
    wrong = [({name: -1}, f"{name} of a price") for name in ("passes_per_nfe", "depth", "asked")]
    for change, said in (
        *wrong,
        ({"guided": {**header["price"]["guided"], "steps": []}}, "guidance"),
    ):
        forged = {**header, "price": {**header["price"], **change}}
        with pytest.raises(ValueError, match=f"damaged: {said}"):
            Header.from_json(forged, tmp_path)


def test_every_flipped_bit_of_the_scores_header_is_found(tmp_path):
    """Or it changes nothing that is read."""
    scores = np.random.default_rng(0).random((1, 2, 2, 1))
    scores[0, 0, 0] = np.nan
    price = Price(Rates(1.5, 2, 3), Rates(0.1, 0.2, 0.3, call=0.4), 2)
    made = Recording(
        ("a",), scores, Grid((1.0, 0.0)), ("r",), 3, price=price, info={"call": {"steps": 1}}
    )
    save_recording(made, tmp_path / "r")
    data = (tmp_path / "r" / "scores.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path, read = tmp_path / "flipped.safetensors", 0
    for at in (None, *range(end), len(data) - 3):
        broken = bytearray(data)
        if at is not None:
            broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        try:
            found = load_recording(path)
        except ValueError:
            assert at is not None
            continue
        read += 1
        np.testing.assert_array_equal(found.scores, scores)
        assert replace(found, scores=scores) == replace(made, scores=scores), at
    assert read < end / 10


def test_the_lock_keeps_others_out_and_dies_with_its_holder(recorder, tmp_path):
    folder = cut(recorder, tmp_path / "r", 40)
    hold = (
        "import sys; from pathlib import Path; from ttsnap.files.writing import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()  # for ever: it is killed\n"
    )
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold, folder], **how) as process:
        try:
            assert process.stdout.readline() == "held\n"
            before = contents(folder)
            for _ in range(2):
                with pytest.raises(ValueError, match=rf"r \(process {process.pid} on"):
                    recorder(folder)
            assert contents(folder) == before
        finally:
            process.kill()
    recorder(folder)
    assert not (folder / ".lock").exists()


def test_two_starts_at_once_do_not_mix_their_settings(recorder, tmp_path):
    """The other one begins, and is stopped again, when this one has just found the folder free."""
    with (
        calls(
            RunFolder,
            "check",
            meanwhile=lambda: cut(recorder, tmp_path, 60, info={"model": "the other"}),
        ),
        pytest.raises(ValueError, match=r"settings: info\.model"),
    ):
        recorder(tmp_path, info={"model": "this"})
    assert progress(tmp_path) == (2, 4)
    recorder(tmp_path, info={"model": "the other"})


def test_a_reward_that_always_fails_ends_it(recorder, tmp_path):
    with pytest.raises(ValueError, match="none of the"):
        recorder(tmp_path / "r", reward=Brightness(broken=1.0))
    assert not (tmp_path / "r").exists()
    some = recorder(tmp_path / "some", reward=Brightness(nan=0.3))
    assert np.isnan(some.scores).any()
    np.testing.assert_array_equal(load_recording(tmp_path / "some").scores, some.scores)


def test_files_that_are_no_recording(recorder, tmp_path):
    where = cut(recorder, tmp_path / "r", 31) / "recording.json"
    header = json.loads(where.read_text())
    lacking = {key: value for key, value in header.items() if key != "rewards"}
    for forged, message in [
        ({**header, "format": 2}, "has format 2, this ttsnap reads 1; update"),
        ({**header, "levels": [0.0, 1.0]}, "damaged: grid levels"),
        ({**header, "price": {"flops": 3}}, "damaged"),
        (lacking, "damaged: .*rewards"),
    ]:
        where.write_text(json.dumps(forged))
        with pytest.raises(ValueError, match=message):
            load_recording(tmp_path / "r")
    save_file({"weights": np.zeros(3)}, tmp_path / "other.safetensors")
    for name, message in [
        ("nowhere", "no such recording"),
        (".", "is no recording"),
        ("other.safetensors", "noise_aware, each"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_recording(tmp_path / name)


def test_published_reward_tensors(tmp_path):
    rng = np.random.default_rng(0)
    base, aware = (rng.random((2, 3, 20), dtype=np.float32) for _ in range(2))
    aware[0, 1, 5] = np.nan
    path = tmp_path / "flux_imr.safetensors"
    save_file({"base": base, "noise_aware": aware}, path)
    r = load_recording(path)
    assert (r.scores.shape, r.prompts) == ((2, 3, 21, 1), ("prompt 0", "prompt 1"))
    assert r.grid.levels == tuple(np.linspace(1, 0, 21))
    assert (r.price.flops.nfe, r.price.flops.reward_calls, r.price.flops.decodes) == (
        9.9e12,
        1.2e12,
        0.0,
    )
    assert r.scores[0, 1, 5, 0] == base[0, 1, 5]
    assert r.scores[0, 1, 6, 0] == aware[0, 1, 6]
    for k in (19, 20):
        np.testing.assert_array_equal(r.scores[..., k, 0], base[..., 19].astype(float))
    np.testing.assert_array_equal(
        load_recording(path, scores="base").scores[:, :, :20, 0], base.astype(float)
    )
    assert load_recording(path, price=Price(Rates(1.0))).price.flops.nfe == 1.0
    with pytest.raises(ValueError, match="got 'clean'"):
        load_recording(path, scores="clean")
    found = search(r.prompts, BestOfN(3), ReplayEngine(r))
    assert [f.best.reward for f in found] == pytest.approx(base[..., -1].max(1).tolist())


def test_step_correlations():
    final = np.array([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    early = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    scores = np.stack([early, np.full((2, 4), 5.0), final], -1)[..., None]
    found = step_correlations(Recording(("a", "b"), scores, Grid((1.0, 0.5, 0.0)), ("r",)))
    # The second prompt's final rewards do not vary.
    assert found[:, 0] == pytest.approx([-1, np.nan, 1], nan_ok=True)


def test_a_signal_waits_for_the_unit_at_hand(recorder, tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path, reward=Dies(39, signalled=True))  # in the second unit
    assert progress(tmp_path) == (2, 4)


def test_a_unit_is_a_prompt_or_so_many_of_its_seeds_as_take_half_a_minute(
    engine, tmp_path, monkeypatch
):
    options = RecordOptions(5, seed=7)
    # of one evaluation; a seed takes four
    for seconds, seeds in ((0.001, 5), (10.0, 1), (100.0, 1), (2.4, 3)):

        def timed(self, seconds=seconds):
            self._price = replace(self.price, seconds=Rates(seconds))

        monkeypatch.setattr(LiveEngine, "calibrate", timed)
        assert describe(engine(steps=4), [Prompt("a")], options, {}).header.block == (1, seeds)
    with pytest.raises(KeyboardInterrupt):
        record(engine(steps=4, rewards=[Dies(20)]), PROMPTS, tmp_path, options)
    assert begun_block(tmp_path) == (1, 3)
    monkeypatch.setattr(
        LiveEngine, "calibrate", lambda self: pytest.fail("what was begun is resumed")
    )
    assert record(engine(steps=4), PROMPTS, tmp_path, options).final.shape == (3, 5, 1)
