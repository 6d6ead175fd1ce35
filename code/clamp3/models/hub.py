"""Files of the Hugging Face hub, by its own client: its cache, mirrors, proxies, tokens and offline mode apply."""

from pathlib import Path

from clamp3.io.files import content_hash

SHA256_DIGITS = 64


def cached_file(repository: str, file_name: str) -> Path | None:
    """The file in the hub's cache, looked up without network access; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file_name)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def file_url(repository: str, file_name: str) -> str:
    """Where the file is downloaded from; HF_ENDPOINT names another server than the hub's own."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file_name)


def download_file(repository: str, file_name: str, size: int | None = None, sha256: str | None = None) -> Path:
    """Download a file into the hub's cache and verify it. Processes that share a cache download it once.

    `size` in bytes and `sha256` are checked where given; the hub's own SHA-256 is, for all large files. Raises
    OSError where they differ (the file is then removed), and whatever the hub's client raises.
    """
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repository, file_name))
    _verify(path, size, sha256)
    return path


def _verify(path: Path, size: int | None, sha256: str | None) -> None:
    blob = path.resolve()  # in the cache, a large file is named after its SHA-256, and `path` links to it
    expected = {sha256, blob.name if len(blob.name) == SHA256_DIGITS else None} - {None}
    if size is not None and blob.stat().st_size != size:
        problem = f"it has {blob.stat().st_size:,} bytes, and the released file has {size:,}"
    elif expected and expected != {content_hash(blob)}:
        problem = "its SHA-256 differs"
    else:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise OSError(f"the downloaded file is damaged or not the released one ({problem}) and was removed; try again")
