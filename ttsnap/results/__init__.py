"""What a search leaves behind: images that know how they were made, contact sheets, traces, rankings of folders.

It imports the core, files and rewards. Torch is needed by `rank` only, which asks rewards about images.
"""

from ttsnap.results.media import Sound, png_info, save_video
from ttsnap.results.outputs import Recorder

__all__ = ["Recorder", "Sound", "png_info", "save_video"]
