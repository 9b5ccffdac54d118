"""The preview VAE on disk: a diffusers folder with an `AutoencoderTiny` (float16, read as float32)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnap.files.reading import foreign

if TYPE_CHECKING:  # ttsnap.scenes imports with numpy and scipy only
    from diffusers import AutoencoderTiny


def preview_vae(folder: str | Path) -> AutoencoderTiny:
    """A trained preview VAE in float32: `pipe.preview_vae = preview_vae(DIR)`, and searches decode estimates with it.

    It only decodes; its encoder is a stub of zeros. None is packaged, for none was found that pays
    (docs/embedded_model.md). ValueError where the folder holds none.
    """
    from diffusers import AutoencoderTiny

    where = Path(folder)
    if not (where / "config.json").is_file():
        raise ValueError(f"no preview VAE at {where}: make one by python -m ttsnap.scenes.training preview --out DIR")
    with foreign(f"cannot read the preview VAE in {where}"):
        vae: AutoencoderTiny = AutoencoderTiny.from_pretrained(where, use_safetensors=True).eval()
    return vae


def save_preview(vae: Any, folder: Path) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, the weights rounded to half precision."""
    half = copy.deepcopy(vae).half()
    half.save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name in ("_name_or_path", "block_out_channels"):  # the second makes diffusers warn when it loads
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for written in folder.iterdir():
        written.chmod(0o644)
