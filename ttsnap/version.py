"""The version of ttsnap, readable without importing anything else, and those of the packages that
it ran with."""

from __future__ import annotations

__version__ = "0.2.0.dev0"


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of ttsnap and of these packages by name, for what is to be repeated; None for one
    not installed."""
    from importlib.metadata import PackageNotFoundError, version

    by_name: dict[str, str | None] = {"ttsnap": __version__}
    for name in packages:
        try:
            by_name[name] = version(name)
        except PackageNotFoundError:
            by_name[name] = None
    return by_name
