"""The options that a user can set, each declared once: name, type, default, bounds, and the words
that explain it.

The declarations define the call of a pipeline with its docstring, the command line and --config
files. They also define the metadata of PNGs, the headers of recordings, and the documentation. Only
the core and files are imported, and no torch.
"""
