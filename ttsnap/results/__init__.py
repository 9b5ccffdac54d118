"""What a search leaves behind: images with metadata, contact sheets, traces; rankings of folders.

It imports the core, files and rewards. Only `rank` needs torch, as it scores images by rewards.
"""

from ttsnap.results.media import Sound, png_info, save_video
from ttsnap.results.outputs import Recorder

__all__ = ["Recorder", "Sound", "png_info", "save_video"]
