"""What a search of videos returns: in the forms that diffusers' video processor makes, in the stock
output class."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.video_processor import VideoProcessor

from ttsnap import BestOfN, search
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.options.sampler import SamplerOptions
from ttsnap.pipelines import output
from ttsnap.results import save_video
from ttsnap.results.record import SearchRecord, read_record
from ttsnap.reward_models.registry import make_reward

from ..clips import Clips, Mean, Motion, Near  # noqa: TID252

VIDEOS = [
    torch.randint(0, 257, (5, 3, 6, 8), generator=torch.Generator().manual_seed(i)) / 256
    for i in range(2)
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_are_as_the_stock_processor_makes_them(output_type):
    as_decoded = 2 * torch.stack(VIDEOS).transpose(1, 2) - 1  # (N, 3, T, H, W) in [-1, 1]
    stock = VideoProcessor(vae_scale_factor=8).postprocess_video(
        as_decoded, output_type=output_type
    )
    ours = output.converted(VIDEOS, output_type, torch.float32, CPU)
    if output_type == "pil":
        ours, stock = (
            np.array([[np.asarray(frame) for frame in video] for video in made])
            for made in (ours, stock)
        )
    assert (type(ours), ours.dtype, ours.shape) == (type(stock), stock.dtype, stock.shape)
    assert bool((ours == stock).all())
    assert output.converted([], output_type, torch.float32, CPU) == []


def test_the_stock_output_class_holds_videos_as_frames(tmp_path):
    results = search(
        ["a", "b"],
        BestOfN(2),
        LiveEngine(Clips(), [make_reward(Mean())]),
        selection=Selection(keep=1),
    )
    frames = output.converted([r.best.pixels for r in results], "pil", torch.float32, CPU)
    made = output.make_output(WanPipelineOutput, frames, results)
    assert isinstance(made, WanPipelineOutput)
    assert (made.frames, made.search) == (frames, results)
    assert "2 videos, search=[Result('a': 1 image" in repr(made)
    assert pickle.loads(pickle.dumps(made)).search[0].prompt == "a"
    output.label_images(
        frames, results, SearchRecord("m", "s", {}, SamplerOptions(), "best-of-n", {}, "9nfe")
    )
    save_video(tmp_path / "best.webp", made.frames[1])
    assert read_record(tmp_path / "best.webp").image.seed == results[1].best.seed


def test_metrics_see_videos_and_sources_as_rewards_do():
    sources = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    denoiser = Clips(6, sources=sources)
    metrics = [make_reward(metric) for metric in (Mean(), Motion(), Near())]
    results = search(
        ["a", "b"], BestOfN(2), LiveEngine(denoiser, metrics), selection=Selection(keep=2)
    )
    given = output.sources_of(denoiser, ["a", "b"], metrics)
    assert output.sources_of(denoiser, ["a", "b"], metrics[:2]) == [None, None]
    again = [
        output.reported(result, metrics, 4, source)
        for result, source in zip(results, given, strict=True)
    ]
    assert not [warning for result in again for warning in result.warnings]
    for found in (image for result in again for image in result.images):
        assert found.metrics == pytest.approx(found.scores)
