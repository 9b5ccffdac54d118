"""Images and videos as arrays, as pictures, and as files that carry what made them.

Videos are animated WebP, animated PNG, or mp4 (by PyAV, extra `video`). The two texts that a PNG
carries (record.py) are in an animated PNG where any PNG has them. A WebP has them in its EXIF data:
the infotext as the user comment, as of A1111, and the JSON as the description. An mp4 has them as
tags of their own names, where ComfyUI keeps its workflows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ttsnap.core.arrays import FloatArray
from ttsnap.core.outcome import SHOWN, chosen
from ttsnap.extras import install
from ttsnap.files.pictured import exif_with
from ttsnap.files.writing import write_whole

if TYPE_CHECKING:  # to write arrays takes no torch
    from torch import Tensor

Pixels: TypeAlias = "FloatArray | Tensor"
"""An image (3, H, W), or a video (T, 3, H, W), in [0, 1], an array or a tensor on any device."""
GAP = 32
"""The white gap between frames is 1 / GAP of a frame's width."""
KEYS = ("parameters", "ttsnap")
"""What a picture's `info` holds of a search: infotext, and JSON (record.py)."""
QUALITY = 90
"""Of WebP, from 0 to 100; Pillow's own 80 shows blocks in flat areas."""
CRF = 17
"""Of mp4: x264's constant rate factor, which is called visually lossless."""

LAYOUTS = {1: "mono", 2: "stereo"}
"""What PyAV calls a sound of so many channels."""


def to_uint8(image: Pixels) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8, rounded; videos (T, 3, H, W) -> (T, H, W, 3)."""
    on_cpu = image if isinstance(image, np.ndarray) else image.cpu()
    array = np.moveaxis(np.asarray(on_cpu, dtype=np.float64), -3, -1)
    return (array.clip(0, 1) * 255).round().astype(np.uint8)


def still(image: Pixels, columns: int = 2) -> Image.Image:
    """An image as a picture; of a video several evenly chosen frames, row by row in `columns`
    columns."""
    if image.ndim == 3:
        return Image.fromarray(to_uint8(image))
    frames = to_uint8(image[chosen(len(image), min(SHOWN, len(image)))])
    high, wide = frames.shape[1:3]
    gap = -(-wide // GAP)
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, rows * (high + gap) - gap), "white")
    for i, frame in enumerate(frames):
        sheet.paste(
            Image.fromarray(frame), (i % columns * (wide + gap), i // columns * (high + gap))
        )
    return sheet


def frames_of(video: Pixels) -> list[Image.Image]:
    """(T, 3, H, W) in [0, 1] -> T pictures."""
    return [Image.fromarray(frame) for frame in to_uint8(video)]


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as a data: address, which pages show without a file. options: of PIL's writer of
    this kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def png_info(picture: Image.Image, keys: Sequence[str] = KEYS) -> PngImagePlugin.PngInfo:
    """The metadata in a picture's `info`, to be written with it: picture.save(path,
    pnginfo=png_info(picture)).

    PIL leaves `info` out of what it writes. The metadata is empty where an edit made a new picture.
    """
    info = PngImagePlugin.PngInfo()
    for key in keys:
        if key in picture.info:
            info.add_itxt(key, str(picture.info[key]))
    return info


def save_png(path: Path, picture: Image.Image, keys: Sequence[str] = KEYS) -> None:
    """Write a PNG with these texts of the picture's `info`, whole or not at all."""
    write_whole(
        path, lambda file: picture.save(file, format="PNG", pnginfo=png_info(picture, keys))
    )


class Sound(NamedTuple):
    """The sound of a video."""

    samples: NDArray[np.float32]
    """(1, S) mono or (2, S) left and right, in [-1, 1]."""
    rate: int
    """Samples a second."""


def save_video(
    path: str | Path, frames: Sequence[Image.Image], fps: float = 16.0, sound: Sound | None = None
) -> None:
    """Write frames of one size as a video, whole or not at all: .webp, .png (lossless) or .mp4 by
    the name's end.

    The file carries the metadata in the first frame's `info`. sound: for .mp4 only. ValueError for
    another ending, no frames, an fps outside (0, 240], a sound of another shape, or an .mp4 without
    PyAV.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".webp", ".png", ".mp4"):
        raise ValueError(f"videos are written as .webp, .png or .mp4, got {path.name!r}")
    if not frames or not 0 < fps <= 240:
        raise ValueError(
            f"a video has frames and 0 < fps <= 240, got {len(frames)} frames and fps {fps}"
        )
    if sound is not None and (kind != ".mp4" or sound.samples.shape[:-1] not in ((1,), (2,))):
        raise ValueError(
            f"only an .mp4 holds sound, of one channel or two, as samples (channels, S); got "
            f"{path.name!r} and {sound.samples.shape}"
        )
    first, *rest = frames
    texts = {key: str(first.info[key]) for key in KEYS if key in first.info}
    if kind == ".mp4":
        require_av(path)
        write_whole(path, lambda file: _mp4(file, frames, texts, fps, sound))
        return
    how: dict[str, Any] = {"pnginfo": png_info(first)}
    if kind == ".webp":
        how = {"quality": QUALITY, "method": 2, "exif": exif_with(texts)}
    how |= {"duration": durations(len(frames), fps), "loop": 0, "append_images": rest}
    write_whole(path, lambda file: first.save(file, kind[1:], save_all=True, **how))


def require_av(path: str | Path) -> None:
    """ValueError that says what to install where PyAV, which this mp4 takes, is missing."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{path} takes PyAV: {install('video')}; or choose .webp or .png"
        ) from error


def durations(frames: int, fps: float) -> list[int]:
    """Whole milliseconds for which each frame is shown; their sum is right."""
    return [round((i + 1) * 1000 / fps) - round(i * 1000 / fps) for i in range(frames)]


def _mp4(
    file: BinaryIO,
    frames: Sequence[Image.Image],
    texts: Mapping[str, str],
    fps: float,
    sound: Sound | None,
) -> None:
    """H.264 with 4:2:0 chroma and AAC, which every player reads; an odd side loses its last line,
    as chroma has half of it."""
    import av

    wide, high = (max(2, side - side % 2) for side in frames[0].size)
    with av.open(file, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(texts)
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(CRF)}
        )
        stream.width = wide
        stream.height = high
        stream.pix_fmt = "yuv420p"
        # limited, BT.709
        stream.codec_context.color_range = 1
        stream.codec_context.colorspace = 1
        heard = (
            None
            if sound is None
            else container.add_stream("aac", rate=sound.rate, layout=LAYOUTS[len(sound.samples)])
        )
        for picture in frames:
            frame = av.VideoFrame.from_image(picture.crop((0, 0, wide, high)).convert("RGB"))
            container.mux(
                stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1))
            )
        container.mux(stream.encode(None))
        if sound is not None and heard is not None:
            samples = np.ascontiguousarray(sound.samples.clip(-1, 1), dtype=np.float32)
            waves = av.AudioFrame.from_ndarray(samples, format="fltp", layout=LAYOUTS[len(samples)])
            waves.sample_rate = sound.rate
            container.mux(heard.encode(waves))
            container.mux(heard.encode(None))
