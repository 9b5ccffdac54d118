"""What a user can set, each option declared once: its name, type, default, bounds, and the words that explain it.

The call of a pipeline, its docstring, the command line, --config files, the metadata of PNGs, what recordings note and
the documentation are made from these declarations. It imports the core and files, and no torch.
"""
