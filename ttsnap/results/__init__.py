"""What a search leaves behind: images that know how they were made, contact sheets, traces, rankings of folders.

It imports the core, and no torch.
"""
