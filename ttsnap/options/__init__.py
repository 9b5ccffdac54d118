"""The options that a user can set, each declared once: name, type, default, bounds, and the words that explain it.

From these declarations come the call of a pipeline with its docstring, the command line, --config files, the metadata
of PNGs, the headers of recordings, and the documentation. It imports the core and files, and no torch.
"""
