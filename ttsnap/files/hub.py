"""The Hugging Face hub: whether a repository can be had, known before libraries try for a
minute."""

from __future__ import annotations

from pathlib import Path

from ttsnap.core.names import did_you_mean
from ttsnap.files.reading import foreign


def require_repository(
    name: str, revision: str | None = None, cache_dir: str | Path | None = None
) -> None:
    """ValueError for a hub id without a copy in the cache, where the hub cannot be reached either.

    revision, cache_dir: of the copy, as from_pretrained takes them. Libraries would ask five times
    for each file, with pauses. ValueError for an id that the hub does not know, too. Names that are
    no hub ids pass, and so does what the hub refuses otherwise: from_pretrained says why.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).exists():
        return
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        known = True
        with foreign(
            f"there is no folder {name} here and no copy of it in the cache, and"
            f" {constants.ENDPOINT} cannot be reached"
        ):
            try:
                HfApi().model_info(name, revision=revision, timeout=10)
            except RepositoryNotFoundError:
                known = False
            except HfHubHTTPError:
                return
        if not known:
            cached = (
                path.name[8:].replace("--", "/")
                for path in Path(constants.HF_HUB_CACHE).glob("models--*")
            )
            raise ValueError(
                f"the hub has no {name}, or none that HF_TOKEN may see{did_you_mean(name, cached)}"
            ) from None


def folder_of(name: str) -> Path:
    """A local file or folder, or the copy of OWNER/NAME/FOLDER of the hub. ValueError where there
    is neither."""
    path = Path(name).expanduser()
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    if path.exists() or not (owner and repository) or name.startswith((".", "/", "~")):
        if not path.exists():
            raise ValueError(
                f"no file or folder {name}, and it is no OWNER/NAME or OWNER/NAME/FOLDER of the hub"
            )
        return path
    from huggingface_hub import snapshot_download

    require_repository(f"{owner}/{repository}")
    with foreign(f"cannot download {name}"):
        there = Path(
            snapshot_download(
                f"{owner}/{repository}", allow_patterns=f"{folder}/*" if folder else None
            )
        )
    return there / folder
