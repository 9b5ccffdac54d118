"""Recordings: the scores of many seeds at every step, on disk, and searches that are replayed on
them.

It imports the core, the declared options, the loop, algorithms and results, and no torch.
"""

from ttsnap.recordings.folder import load_recording, read_images, save_recording

__all__ = ["load_recording", "read_images", "save_recording"]
