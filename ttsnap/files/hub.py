"""What is fetched from the Hugging Face hub: whether it can be had at all, known before libraries try for a minute."""

from __future__ import annotations

from pathlib import Path

from ttsnap.files.reading import foreign


def require_repository(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> None:
    """ValueError for a hub id of which there is no copy in the cache, where the hub cannot be reached either.

    revision, cache_dir: the copy that is wanted, as from_pretrained takes them.

    Libraries would ask five times for each of its files, with pauses. Names that are no hub ids pass, and what the hub
    itself refuses: that is said, and why, when the files are asked for.
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
