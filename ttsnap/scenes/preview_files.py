"""The preview VAE on disk: a diffusers folder with an `AutoencoderTiny` (float16, read as float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # ttsnap.scenes imports with numpy and scipy only
    from diffusers import AutoencoderTiny


def preview_path() -> Path:
    """The packaged preview VAE."""
    return Path(__file__).parent / "preview"


def preview_vae(folder: str | Path | None = None) -> AutoencoderTiny:
    """The preview VAE in float32: `pipe.preview_vae = preview_vae()`, and searches decode estimates with it.

    folder: another one than the packaged. It only decodes; its encoder is a stub of zeros. ValueError where there is
    none.
    """
    from diffusers import AutoencoderTiny

    where = Path(folder) if folder is not None else preview_path()
    if not (where / "config.json").is_file():
        raise ValueError(f"no preview VAE at {where}: expected a folder with config.json")
    vae: AutoencoderTiny = AutoencoderTiny.from_pretrained(where, use_safetensors=True).eval()
    return vae


def save_preview(vae: AutoencoderTiny, folder: Path) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, the weights rounded to half precision."""
    import copy

    half: Any = copy.deepcopy(vae).half()
    half.save_pretrained(folder, safe_serialization=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for written in folder.iterdir():
        written.chmod(0o644)
