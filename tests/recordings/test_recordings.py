"""Recordings on disk: whole after any interruption, the same to the last bit, and refused where something is off."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.counted import Brightness
from tests.cover import each_once
from ttsnap import BestOfN, search
from ttsnap.core.cost import Price, Rates
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.engine.live import LiveEngine
from ttsnap.files.writing import locked, part_of
from ttsnap.options.option import taken
from ttsnap.options.record import RecordOptions
from ttsnap.recordings import folder as recordings
from ttsnap.recordings.folder import begun_block, load_recording, progress, read_images, save_recording
from ttsnap.recordings.header import Header
from ttsnap.recordings.record import record, step_correlations
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.results.media import to_uint8
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.interpolants import Linear
from ttsnap.sampling.kernels import Sde

PROMPTS = ["a", "b", "c"]
BLOCK = (2, 3)
"""With 5 seeds: four units of 2 x 3, 2 x 2, 1 x 3 and 1 x 2 rows."""


@pytest.fixture
def engine(engine: Callable[..., LiveEngine]) -> Callable[..., LiveEngine]:
    """The mixture engine, with a prompt's mixture chosen by its text: units hold some of the prompts each."""

    def make(*args: Any, **kwargs: Any) -> LiveEngine:
        made = engine(*args, **kwargs)
        encode = made.denoiser.encode

        def by_text(prompts: Sequence[Prompt]) -> None:
            encode(PROMPTS)
            at = [PROMPTS.index(p.text) if p.text else 0 for p in prompts]  # a text that is timed is empty
            made.denoiser._offset = made.denoiser._offset[at]  # type: ignore[attr-defined]

        made.denoiser.encode = by_text  # type: ignore[method-assign]
        return made

    return make


@pytest.fixture
def recorder(engine: Callable[..., LiveEngine]) -> Callable[..., Recording]:
    def run(folder: Path, reward: Any = None, **kwargs: Any) -> Recording:
        made = engine(steps=4, rewards=[reward or Brightness()])
        given = {"seeds": 5, "seed": 7, "block": BLOCK, **kwargs}
        options = taken(RecordOptions, given)
        return record(made, PROMPTS, folder, options, **given)

    return run


class Dies(Brightness):
    """Ctrl-C while image number `after` is scored."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        if self.images + len(images) > self.after:
            raise KeyboardInterrupt
        return super().__call__(images, prompts, level)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip(recorder: Any, tmp_path: Path) -> None:
    made = recorder(tmp_path / "r", steps=[0, 2], info={"model": "mixture", "call": {"steps": 4}})
    assert sorted(contents(tmp_path / "r")) == ["recording.json", "scores.safetensors"]
    for path in (tmp_path / "r", tmp_path / "r" / "scores.safetensors"):
        read = load_recording(path)
        np.testing.assert_array_equal(read.scores, made.scores)
        assert (read.prompts, read.grid, read.reward_names) == (tuple(PROMPTS), made.grid, ("brightness",))
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
    save_recording(made, tmp_path / "saved")
    np.testing.assert_array_equal(load_recording(tmp_path / "saved").scores, made.scores)
    save_recording(made, tmp_path / "saved")  # the same once more changes nothing
    with pytest.raises(ValueError, match="same settings"):
        save_recording(replace(made, scores=made.scores + 1), tmp_path / "saved")
    np.testing.assert_array_equal(load_recording(tmp_path / "saved").scores, made.scores)
    with pytest.raises(ValueError, match=r"other settings: prompts\[1\]"):
        save_recording(Recording(("a", "z", "c"), made.scores, made.grid, made.reward_names, 7), tmp_path / "saved")


def test_price_with_seconds_is_kept(tmp_path: Path) -> None:
    price = Price(Rates(1.5, 2, 3), Rates(0.1, 0.2, 0.3, call=0.4), 2)
    scores = np.random.default_rng(0).random((1, 4, 3, 2))
    scores[0, 0, 0, 0] = np.nan
    made = Recording(("a",), scores, Grid((1.0, 0.5, 0.0)), ("p", "q"), price=price)
    save_recording(made, tmp_path / "r")
    read = load_recording(tmp_path / "r")
    assert read.price == price
    np.testing.assert_array_equal(read.scores, scores)


def unit_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("unit-*"))


def test_any_units_that_are_there_are_kept(recorder: Any, tmp_path: Path) -> None:
    recorder(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "cut", reward=Dies(74))
    names = [f"unit-{index:05d}.safetensors" for index in range(3)]
    assert unit_files(tmp_path / "cut") == names
    files = {name: (tmp_path / "cut" / name).read_bytes() for name in names}
    for there in itertools.chain(*(itertools.combinations(range(3), n) for n in range(4))):
        folder = tmp_path / f"{there}"
        folder.mkdir()
        shutil.copy(tmp_path / "cut" / "recording.json", folder)
        for index in there:
            (folder / names[index]).write_bytes(files[names[index]])
        part_of(folder / names[0]).write_bytes(files[names[0]][:50])  # of a process killed while it wrote
        before = contents(folder)
        assert progress(folder) == (len(there), 4)
        assert contents(folder) == before  # looking changes nothing
        counter = Brightness()
        recorder(folder, reward=counter)
        assert counter.images == 75 - sum([30, 20, 15][index] for index in there)  # no unit is made twice
        part_of(folder / names[0]).unlink(missing_ok=True)
        assert contents(folder) == contents(tmp_path / "whole")


def test_flipped_bytes_are_found(recorder: Any, tmp_path: Path) -> None:
    recorder(tmp_path / "r")
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "broken", reward=Dies(31))
    path = tmp_path / "broken" / "unit-00000.safetensors"
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 4
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"unit-00000\.safetensors.* remove"):
            recorder(tmp_path / "broken")
    path.unlink()  # as the message says
    recorder(tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "r")
    path = tmp_path / "r" / "scores.safetensors"
    broken = bytearray(path.read_bytes())
    broken[-3] ^= 4
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"scores\.safetensors"):
        load_recording(tmp_path / "r")


@pytest.mark.parametrize(("after", "images"), each_once([0, 3, 31, 52, 74], [False, True]))
def test_interrupted_and_resumed_is_the_same(recorder: Any, tmp_path: Path, after: int, images: bool) -> None:
    recorder(tmp_path / "whole", images=images)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", reward=Dies(after), images=images)
    there, units = progress(tmp_path / "r")
    assert there == sum(after >= n for n in (30, 50, 65))
    assert not list((tmp_path / "r").rglob("*.part"))
    with pytest.raises(ValueError, match=rf"unfinished: {there} of {units} units.*run the same command again"):
        load_recording(tmp_path / "r")
    recorder(tmp_path / "r", images=images)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_kill_between_shard_and_record(recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder(tmp_path / "whole", images=True)
    write = recordings.write_whole

    def dies(path: Path, save: Any) -> None:
        if path.name == "unit-00002.safetensors":
            part_of(path).write_bytes(b"torn")
            raise KeyboardInterrupt
        write(path, save)

    monkeypatch.setattr(recordings, "write_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", images=True)
    monkeypatch.undo()
    orphan = tmp_path / "r" / "images" / "unit-00002.tar"
    assert orphan.exists()
    assert progress(tmp_path / "r") == (2, 4)
    orphan.write_bytes(b"not what it was")  # has no record, so that it does not count
    lost = tmp_path / "r" / "images" / "unit-00000.tar"
    lost.unlink()  # has a record, but is gone: its unit is made again
    recorder(tmp_path / "r", images=True)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_images_are_the_scored_estimates(recorder: Any, tmp_path: Path, engine: Any) -> None:
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
    shard.unlink()
    with pytest.raises(ValueError, match=r"unit-00001\.tar"):
        list(read_images(tmp_path / "r"))
    recorder(tmp_path / "bare")
    with pytest.raises(ValueError, match="recorded without images"):
        list(read_images(tmp_path / "bare"))


def test_other_settings_are_refused(recorder: Any, engine: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", reward=Dies(40), info={"call": {"guidance": 4.0}})
    before = contents(tmp_path / "r")
    for change, message in [
        ({}, r"info\.call is .*guidance.*, not null"),
        ({"info": {"call": {"guidance": 5.0}}}, r"info\.call\.guidance is 4\.0, not 5\.0"),
        ({"seed": 8}, "first_seed is 7, not 8"),
        ({"steps": [1]}, "steps has 5 entries, not 2"),
        ({"images": True}, "images is false, not true"),
        ({"block": (1, 3)}, r"block\[0\] is 2, not 1"),
        ({"reward": Brightness("other")}, 'rewards.0. is "brightness", not "other"'),
    ]:
        with pytest.raises(ValueError, match=message):
            recorder(tmp_path / "r", **change)
    with pytest.raises(ValueError, match="3 entries"):
        record(engine(steps=4), PROMPTS[:2], tmp_path / "r", RecordOptions(5, seed=7))
    with pytest.raises(ValueError, match="seeds is 5, not 6"):
        record(engine(steps=4), PROMPTS, tmp_path / "r", RecordOptions(6, seed=7))
    with pytest.raises(ValueError, match="5 entries"):
        record(engine(steps=8), PROMPTS, tmp_path / "r", RecordOptions(5, seed=7))
    with pytest.raises(ValueError, match="4, not 3"):
        record(engine(steps=4, batch_size=3), PROMPTS, tmp_path / "r", RecordOptions(5, seed=7))
    assert contents(tmp_path / "r") == before


def test_other_files_are_left_alone(recorder: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"files \(thesis\.tex"):
        recorder(tmp_path / "r")
    assert contents(tmp_path / "r") == {"thesis.tex": b"precious"}
    with pytest.raises(ValueError, match="is a file"):
        recorder(tmp_path / "r" / "thesis.tex")
    recorder(tmp_path / "done")
    shutil.copy(tmp_path / "done" / "scores.safetensors", tmp_path / "r2.safetensors")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".recording.json.part").write_text("{")  # of a process killed at the very start
    recorder(tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tmp_path / "done")


def test_a_unit_of_another_recording_is_refused(recorder: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", reward=Dies(60))
    for name, change in (("blocks", {"block": (3, 2)}), ("info", {"info": {"model": "another"}})):
        with pytest.raises(KeyboardInterrupt):
            recorder(tmp_path / name, reward=Dies(60), **change)
        unit = (tmp_path / name / "unit-00001.safetensors").read_bytes()
        (tmp_path / "r" / "unit-00001.safetensors").write_bytes(unit)
        for _ in range(2):  # the second time, too: nothing stays locked
            with pytest.raises(ValueError, match="unit-00001"):
                recorder(tmp_path / "r")
        with pytest.raises(ValueError, match="other settings"):
            progress(tmp_path / "r")
        assert (tmp_path / "r" / "unit-00001.safetensors").read_bytes() == unit
    (tmp_path / "r" / "unit-00001.safetensors").unlink()  # as the message says
    recorder(tmp_path / "r")
    recorder(tmp_path / "whole")
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_an_unfinished_recording_of_an_earlier_version_is_refused(recorder: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", reward=Dies(0))
    (tmp_path / "r" / "journal.bin").write_bytes(b"units")
    with pytest.raises(ValueError, match=r"remove journal\.bin"):
        recorder(tmp_path / "r")
    with pytest.raises(ValueError, match="is of a version"):
        progress(tmp_path / "r")
    (tmp_path / "r" / "journal.bin").unlink()  # as the message says
    made = recorder(tmp_path / "r")
    (tmp_path / "r" / "journal.bin").write_bytes(b"units")  # of a process that was killed at the very end
    np.testing.assert_array_equal(recorder(tmp_path / "r").scores, made.scores)


def test_recordings_of_the_old_format_are_read_and_gone_on_with(recorder: Any, tmp_path: Path) -> None:
    """Prices without guidance, `decode_estimates`, a header without a checksum."""
    whole = recorder(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "old", reward=Dies(60))
    header = tmp_path / "old" / "recording.json"
    settings = json.loads(header.read_text())
    settings["price"] = {key: settings["price"][key] for key in ("flops", "seconds", "passes_per_nfe")}
    settings["price"]["decode_estimates"] = True
    header.write_text(json.dumps(settings))
    assert progress(tmp_path / "old") == (2, 4)
    counter = Brightness()
    recorder(tmp_path / "old", reward=counter)
    assert counter.images == 25
    assert (tmp_path / "old" / "scores.safetensors").read_bytes() == (
        tmp_path / "whole" / "scores.safetensors"
    ).read_bytes()
    about = {**settings, "shards": [], "crc32": zlib.crc32(whole.scores.tobytes())}
    save_file({"scores": whole.scores}, tmp_path / "old.safetensors", {"recording": json.dumps(about)})
    read = load_recording(tmp_path / "old.safetensors")
    np.testing.assert_array_equal(read.scores, whole.scores)
    assert (read.price, read.info) == (whole.price, whole.info)


def test_a_guided_recording_is_gone_on_with_and_replayed(engine: Any, tmp_path: Path) -> None:
    def guided(reward: Any = None) -> Any:
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
    record(guided(), PROMPTS, tmp_path / "whole", options)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")
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
    for name in ("passes_per_nfe", "depth", "asked"):
        forged = {**header, "price": {**header["price"], name: -1}}
        with pytest.raises(ValueError, match=f"is damaged: {name} of a price must be at least"):
            Header.read(json.dumps(forged), tmp_path)
    header["price"]["guided"]["steps"].pop()
    with pytest.raises(ValueError, match="damaged: guidance"):
        Header.read(json.dumps(header), tmp_path)


def test_every_flipped_bit_of_the_scores_header_is_found(tmp_path: Path) -> None:
    """Or it changes nothing that is read."""
    scores = np.random.default_rng(0).random((1, 2, 2, 1))
    made = Recording(("a",), scores, Grid((1.0, 0.0)), ("r",), 3, price=Price(Rates(1.5)), info={"call": {"steps": 1}})
    save_recording(made, tmp_path / "r")
    data = (tmp_path / "r" / "scores.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path, read = tmp_path / "flipped.safetensors", 0
    for at in range(end):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        try:
            found = load_recording(path)
        except ValueError:
            continue
        read += 1
        np.testing.assert_array_equal(found.scores, scores)
        assert replace(found, scores=scores) == replace(made, scores=scores), at
    assert read < end / 10


def test_the_lock_keeps_others_out_and_dies_with_its_holder(recorder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        recorder(folder, reward=Dies(40))
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def hold() -> None:
        with locked(folder):
            there.send("held")
            there.recv()  # for ever: it is killed

    process = context.Process(target=hold, daemon=True)
    process.start()
    assert here.recv() == "held"
    before = contents(folder)
    held = rf"another process is writing to .*r \(process {process.pid} on .+\); wait"
    for _ in range(2):
        with pytest.raises(ValueError, match=held):
            recorder(folder)
    assert contents(folder) == before
    process.kill()
    process.join()
    recorder(folder)
    recorder(tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_threads_are_kept_out_too(tmp_path: Path) -> None:
    refused: list[str] = []

    def enter() -> None:
        try:
            with locked(tmp_path / "new"):
                pass
        except ValueError as error:
            refused.append(str(error))

    with locked(tmp_path / "new"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert str(os.getpid()) in refused[0]
    assert not contents(tmp_path / "new")
    enter()
    assert len(refused) == 1


def test_two_starts_at_once_do_not_mix_their_settings(
    recorder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins, and is stopped again, when this one has just found the folder free."""
    check, begun = recordings.check_folder, []

    def slow(folder: Path, asked: Any) -> None:
        check(folder, asked)
        if not begun:
            begun.append(True)
            with pytest.raises(KeyboardInterrupt):
                recorder(tmp_path / "r", reward=Dies(60), info={"model": "the other"})

    monkeypatch.setattr(recordings, "check_folder", slow)
    with pytest.raises(ValueError, match=r"settings: info\.model"):
        recorder(tmp_path / "r", info={"model": "this"})
    assert progress(tmp_path / "r") == (2, 4)
    recorder(tmp_path / "r", info={"model": "the other"})
    recorder(tmp_path / "whole", info={"model": "the other"})
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


def test_bad_settings_leave_nothing(recorder: Any, engine: Any, tmp_path: Path) -> None:
    for change, message in [
        ({"steps": [3, 1]}, r"steps must rise, got \(3, 1\)"),
        ({"steps": [9]}, "do not fit a grid of 4 steps"),
        ({"seed": -1}, "seeds must be at least 1, from 0 on, got 5 from -1 on"),
        ({"block": (0, 3)}, "block must be two numbers from 1 on"),
        ({"info": {"when": object()}}, "info must hold plain JSON values"),
    ]:
        with pytest.raises(ValueError, match=message):
            recorder(tmp_path / "r", **change)
    with pytest.raises(ValueError, match="got 0 from 0 on"):
        record(engine(), PROMPTS, tmp_path / "r", RecordOptions(0))
    with pytest.raises(ValueError, match="needs prompts"):
        record(engine(), [], tmp_path / "r", RecordOptions(1))
    assert not (tmp_path / "r").exists()


def test_a_reward_that_always_fails_ends_it(recorder: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the"):
        recorder(tmp_path / "r", reward=Brightness(broken=1.0))
    assert progress(tmp_path / "r") == (0, 4)
    some = recorder(tmp_path / "some", reward=Brightness(nan=0.3))
    assert np.isnan(some.scores).any()
    np.testing.assert_array_equal(load_recording(tmp_path / "some").scores, some.scores)


def test_files_that_are_no_recording(recorder: Any, tmp_path: Path) -> None:
    recorder(tmp_path / "r")
    header = json.loads((tmp_path / "r" / "recording.json").read_text())
    (tmp_path / "r" / "scores.safetensors").unlink()
    for change, message in [
        ({"format": 2}, "has format 2, this ttsnap reads 1; update"),
        ({"levels": [0.0, 1.0]}, "damaged: grid levels must fall"),
        ({"price": {}}, "damaged"),
        ({"seeds": "many"}, "damaged"),
    ]:
        (tmp_path / "r" / "recording.json").write_text(json.dumps({**header, **change}))
        with pytest.raises(ValueError, match=message):
            load_recording(tmp_path / "r")
    del header["rewards"]
    (tmp_path / "r" / "recording.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=r"it lacks \['rewards'\]"):
        load_recording(tmp_path / "r")
    (tmp_path / "r" / "recording.json").write_text("{")
    with pytest.raises(ValueError, match=r"recording\.json"):
        load_recording(tmp_path / "r")
    with pytest.raises(ValueError, match="no such recording"):
        load_recording(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no recording"):
        load_recording(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"read .*bad\.safetensors"):
        load_recording(tmp_path / "bad.safetensors")
    save_file({"weights": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="noise_aware, each"):
        load_recording(tmp_path / "other.safetensors")


def test_published_reward_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, aware = (rng.random((2, 3, 20), dtype=np.float32) for _ in range(2))
    aware[0, 1, 5] = np.nan
    path = tmp_path / "flux_imr.safetensors"
    save_file({"base": base, "noise_aware": aware}, path)
    r = load_recording(path)
    assert r.scores.shape == (2, 3, 21, 1)
    assert r.prompts == ("prompt 0", "prompt 1")
    assert r.grid.levels == tuple(np.linspace(1, 0, 21))
    assert (r.price.flops.nfe, r.price.flops.reward_calls, r.price.flops.decodes) == (9.9e12, 1.2e12, 0.0)
    assert r.scores[0, 1, 5, 0] == base[0, 1, 5]
    assert r.scores[0, 1, 6, 0] == aware[0, 1, 6]
    for k in (19, 20):
        np.testing.assert_array_equal(r.scores[..., k, 0], base[..., 19].astype(float))
    np.testing.assert_array_equal(load_recording(path, scores="base").scores[:, :, :20, 0], base.astype(float))
    assert load_recording(path, price=Price(Rates(1.0))).price.flops.nfe == 1.0
    with pytest.raises(ValueError, match="got 'clean'"):
        load_recording(path, scores="clean")
    found = search(r.prompts, BestOfN(3), ReplayEngine(r))
    assert [f.best.reward for f in found] == pytest.approx(base[..., -1].max(1).tolist())


def test_step_correlations() -> None:
    final = np.array([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    early = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    scores = np.stack([early, np.full((2, 4), 5.0), final], -1)[..., None]
    found = step_correlations(Recording(("a", "b"), scores, Grid((1.0, 0.5, 0.0)), ("r",)))
    assert found[0, 0] == pytest.approx(-1)  # the second prompt's final rewards do not vary
    assert np.isnan(found[1, 0])
    assert found[2, 0] == pytest.approx(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_unit_at_hand(recorder: Any, tmp_path: Path, ctrl_c: None, number: int) -> None:
    class Signalled(Brightness):
        """Gets a signal at its 40th image, in the second unit."""

        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            if self.images < 40 <= self.images + len(images):
                os.kill(os.getpid(), number)
            return super().__call__(images, prompts, level)

    recorder(tmp_path / "whole", images=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "r", reward=Signalled(), images=True)
    signal.signal(signal.SIGTERM, before)
    assert progress(tmp_path / "r") == (2, 4)
    recorder(tmp_path / "r", images=True)
    assert contents(tmp_path / "r") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("seconds", "block"),
    [(0.001, (1, 5)), (2.4, (1, 3)), (10.0, (1, 1)), (100.0, (1, 1))],  # of one evaluation, of which a seed takes four
)
def test_a_unit_is_a_prompt_or_so_many_of_its_seeds_as_take_half_a_minute(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, block: tuple[int, int]
) -> None:
    def timed(self: LiveEngine) -> None:
        self._price = replace(self.price, seconds=Rates(seconds))

    monkeypatch.setattr(LiveEngine, "calibrate", timed)
    options = RecordOptions(5, seed=7)
    with pytest.raises(KeyboardInterrupt):
        record(engine(steps=4, rewards=[Dies(20)]), PROMPTS, tmp_path, options)
    assert begun_block(tmp_path) == block
    monkeypatch.setattr(LiveEngine, "calibrate", lambda self: pytest.fail("what was begun is gone on with"))
    assert record(engine(steps=4), PROMPTS, tmp_path, options).final.shape == (3, 5, 1)
