"""Where the folders of the package are; pyproject.toml says all else.

Rooms with a folder of their own are links inside ttsnap/. So an editable installation is one folder
on the path, which type checkers and editors read. A checkout without links (git on Windows by
default, an unpacked ZIP archive) has small files in their place. There the folders are mapped, by
an import hook where editable: all runs, type checkers see less.
"""

from pathlib import Path

from setuptools import setup

ROOMS = ("pipelines", "reward_models", "distill")
LINKED = all(Path("ttsnap", room).is_dir() for room in ROOMS)
setup(package_dir={"": "."} if LINKED else {f"ttsnap.{room}": room for room in ROOMS})
