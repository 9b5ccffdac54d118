"""Rank images and videos on disk by rewards. The files are only read."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward
from ttsnap.core.utility import Utility
from ttsnap.files import reading as files
from ttsnap.files.pictured import is_video, texts_in, video_pixels
from ttsnap.files.writing import write_csv
from ttsnap.options.engine import BatchOptions
from ttsnap.results.media import save_png, still
from ttsnap.results.outputs import is_extra
from ttsnap.results.record import read_record
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel, turn_of
from ttsnap.rewards.scoring import Shown, score_in_parts

RANKED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".mp4")
RANKED_FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 2**27
"""Of a batch of images; scoring them takes about ten times as many."""
RANKED_CELL = 160
SHEET_COLUMNS = 8
MOST_SHOWN = 64


@dataclass(frozen=True)
class RankedImage:
    """An image and its scores."""

    path: Path
    prompt: str
    scores: tuple[float, ...]
    """By reward; nan where one failed."""
    value: float
    """Their utility; -inf where a score failed."""
    error: str = ""


def find_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The folder's images in the order of their names, without contact sheets and enlarged copies.
    ValueError where there are none."""
    if not folder.is_dir():
        why = (
            "is a file; give the folder that holds it" if folder.is_file() else "is no such folder"
        )
        raise ValueError(f"{folder} {why}")
    there = folder.rglob("*") if recursive else folder.iterdir()
    images = sorted(p for p in there if p.suffix.lower() in RANKED_SUFFIXES and not is_extra(p))
    if not images:
        raise ValueError(f"folder {folder} holds no image ({', '.join(RANKED_SUFFIXES)})")
    return images


def find_prompts(
    paths: Sequence[Path], prompt: str | None = None, file: str | None = None
) -> dict[Path, str]:
    """One prompt per image: the one given, the file's lines, or from the images' metadata.
    ValueError where it lacks."""
    if prompt is not None and file is not None:
        raise ValueError("give --prompt or --prompts-file, not both")
    if prompt is not None:
        return dict.fromkeys(paths, prompt)
    if file is not None:
        try:
            text = files.read_bytes(file, files.JSON_BYTES, "prompts file").decode()
        except ValueError as error:
            raise ValueError(f"cannot read prompts file {file}: {error}") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) != len(paths):
            raise ValueError(
                f"prompts file {file} holds {len(lines)} prompts for {len(paths)} images; one line"
                " per image"
            )
        return dict(zip(paths, lines, strict=True))
    prompts = {path: own for path in paths if (own := read_prompt(path)) is not None}
    if lacking := [path for path in paths if path not in prompts]:
        raise ValueError(
            f"{len(lacking)} images (such as {lacking[0]}) carry no prompt; give --prompt or"
            " --prompts-file"
        )
    return prompts


def read_prompt(path: Path) -> str | None:
    """The prompt in an image's infotext, as ttsnap, A1111 and others write it; None without one."""
    try:
        text = texts_in(
            files.read_bytes(path, files.PICTURE_BYTES, "image"), path, RANKED_FORMATS
        ).get("parameters")
    except ValueError:
        return ""  # It cannot be scored either, and is reported then.
    if text is None:
        return None
    lines = text.splitlines()
    end = next(
        (i for i, line in enumerate(lines) if line.startswith(("Negative prompt:", "Steps:"))),
        len(lines),
    )
    return "\n".join(lines[:end])


def read_source(
    path: Path | None, rewards: Sequence[RewardModel], device: torch.device | str = "cpu"
) -> Tensor | None:
    """The image that was edited, (1, 3, h, w) in [0, 1], for the rewards that need it; None without
    a path.

    ValueError for a path that is missing or that no reward needs, and for a file that cannot be
    read.
    """
    edits = [reward.name for reward in rewards if "source" in reward.needs]
    if path is None and not edits:
        return None
    if path is None:
        raise ValueError(
            f"reward {edits[0]!r} compares images with the one that was edited; give --source FILE"
        )
    if not edits:
        names = ", ".join(reward.name for reward in rewards)
        raise ValueError(
            f"no reward compares with the image that was edited ({names}); leave --source"
            f" {path} out"
        )
    pixels = _pixels(path)
    if pixels.ndim > 3:
        raise ValueError(f"--source {path} is a video; give the image that was edited")
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].to(device).float() / 255


def rank(
    prompts: Mapping[Path, str],
    rewards: Sequence[Reward],
    utility: Utility,
    *,
    source: Path | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> list[RankedImage]:
    """These images with their prompts, best first; those without a score last, with the reason.
    Of a video, rewards of images see a few frames, as in a search, and the score is their mean.

    source: the image that all of them edit. batch_size: most images per reward call. ValueError for
    a prompt that a reward cannot read, and for a source as of `read_source`."""
    if batch_size < 1:
        raise ValueError(f"batch size must be at least 1, got {batch_size}")
    judges = [make_reward(reward) for reward in rewards]
    paths = list(prompts)
    texts = list(prompts.values())
    for judge in judges:
        judge.check(texts)
    before = read_source(source, judges, device)
    scores = np.full((len(paths), len(rewards)), np.nan)
    errors = [""] * len(paths)
    for batch in _batches(paths, errors, batch_size):
        rows = [i for i, _ in batch]
        pixels = np.stack([np.moveaxis(pixels, -1, -3) for _, pixels in batch])
        images = torch.from_numpy(pixels).to(device).float() / 255
        frames = min(BatchOptions().frames, images.shape[1]) if images.ndim > 4 else None
        shown = Shown(frames, before is not None)
        levels = torch.zeros(len(rows), device=device)
        for column, judge in enumerate(judges):
            # A copy of all for each reward, which may write into it.
            seen = judge.without_alpha(images) if images.shape[-3] == 4 else images
            what = seen.clone(), [texts[i] for i in rows], levels.clone(), before
            scores[rows, column], reason = scores_by(judge, shown, *what)
            for i in rows:
                if np.isnan(scores[i, column]) and not errors[i]:
                    errors[i] = reason or f"{judge.name} returned nan or inf"
    return _ordered(paths, texts, scores, utility, errors)


def _batches(
    paths: Sequence[Path], errors: list[str], most: int
) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
    """Images of one size that follow each other, at most so many, each with its number. The reason
    goes to `errors` where one cannot be read."""
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    for i, path in enumerate(paths):
        try:
            pixels = _scored(path)
        except ValueError as error:
            errors[i] = f"cannot be read: {error}"
            continue
        many = len(batch) == most or (len(batch) + 1) * pixels.nbytes > MOST_BYTES
        if batch and (many or pixels.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((i, pixels))
    if batch:
        yield batch


def _ordered(
    paths: Sequence[Path],
    prompts: Sequence[str],
    scores: FloatArray,
    utility: Utility,
    errors: Sequence[str],
) -> list[RankedImage]:
    """Best first by the utility of scores (N, R)."""
    good = ~np.isnan(scores).any(axis=1)
    values = np.full(len(paths), -np.inf)
    if good.any():
        values[good] = utility(scores[good])
    return [
        RankedImage(paths[i], prompts[i], tuple(scores[i].tolist()), float(values[i]), errors[i])
        for i in np.argsort(-values, kind="stable")
    ]


def scores_by(
    reward: RewardModel,
    shown: Shown,
    images: Tensor,
    prompts: list[str],
    levels: Tensor,
    source: Tensor | None = None,
) -> tuple[FloatArray, str | None]:
    """Scores (N,) of images or videos (N, ...), nan where there is none, and why."""
    try:
        shown.check([reward])
    except ValueError as error:
        return np.full(len(prompts), np.nan), str(error)
    with turn_of(reward):
        return score_in_parts(shown.by(reward, source), images, prompts, levels, reward.name)


def _pixels(path: Path, alpha: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) of an image, (H, W, 4) where it has an alpha channel and `alpha` is set; (T, H, W,
    3) of a video."""
    data = files.read_bytes(path, files.PICTURE_BYTES, "image")
    if is_video(data, path, RANKED_FORMATS):
        return video_pixels(data, path, RANKED_FORMATS)
    return files.picture_pixels(data, path, formats=RANKED_FORMATS, alpha=alpha)


def _scored(path: Path) -> NDArray[np.uint8]:
    """The pixels that rewards see, with alpha. What an earlier version drew large is averaged to the
    size at which its search scored it."""
    pixels = _pixels(path, alpha=True)
    times = 1
    with suppress(ValueError):  # a picture of another program
        times = read_record(path).image.drawn or 1
    return pixels if times == 1 else np.asarray(Image.fromarray(pixels).reduce(times))


def write_ranking(
    out: Path, ranked: Sequence[RankedImage], names: Sequence[str]
) -> tuple[Path, Path]:
    """scores.csv and sheet.png in a folder, each whole or not at all; their paths. OSError where
    one is there already or cannot be written."""
    table = out / "scores.csv"
    sheet = out / "sheet.png"
    if there := [path for path in (table, sheet) if path.exists()]:
        raise FileExistsError(errno.EEXIST, "the file is there already", str(there[0]))
    out.mkdir(parents=True, exist_ok=True)
    head = ["rank", "file", *names, "utility", "prompt", "error"]
    rows = [
        [place, r.path, *r.scores, r.value, r.prompt, r.error] for place, r in enumerate(ranked, 1)
    ]
    write_csv(table, head, rows)
    save_png(sheet, ranking_sheet(ranked), ())
    return table, sheet


def ranking_sheet(ranked: Sequence[RankedImage]) -> Image.Image:
    """Thumbnails of the best, row by row, with their places, values and names."""
    shown = [r for r in ranked if np.isfinite(r.value)][:MOST_SHOWN]
    rows = max(1, -(-len(shown) // SHEET_COLUMNS))
    font = ImageFont.load_default(11)
    sheet = Image.new(
        "RGB", (SHEET_COLUMNS * (RANKED_CELL + 8) + 8, rows * (RANKED_CELL + 38) + 8), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for place, r in enumerate(shown):
        x = 8 + place % SHEET_COLUMNS * (RANKED_CELL + 8)
        y = 8 + place // SHEET_COLUMNS * (RANKED_CELL + 38)
        small = still(np.moveaxis(_pixels(r.path), -1, -3) / 255)
        small.thumbnail((RANKED_CELL, RANKED_CELL))
        sheet.paste(small, (x, y))
        draw.text((x, y + RANKED_CELL + 2), f"{place + 1}. {r.value:.4g}", "black", font)
        draw.text((x, y + RANKED_CELL + 16), r.path.name[:26], "#666666", font)
    return sheet
