"""The Hugging Face hub: whether a repository can be had, known before libraries try for a minute."""

from __future__ import annotations

from pathlib import Path

from ttsnap.files.reading import foreign


def require_repository(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> None:
    """ValueError for a hub id without a copy in the cache, where the hub cannot be reached either.

    revision, cache_dir: of the copy, as from_pretrained takes them. Libraries would ask five times for each file, with
    pauses. Names that are no hub ids pass, and so does what the hub refuses: from_pretrained says why.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).exists():
        return
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True)
    except LocalEntryNotFoundError:
        with foreign(f"no copy of {name} is in the cache, and {constants.ENDPOINT} cannot be reached"):
            try:
                HfApi().model_info(name, revision=revision, timeout=10)
            except HfHubHTTPError:
                return
