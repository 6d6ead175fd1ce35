"""Files of the Hugging Face hub, by its own client: its cache, mirrors, proxies, tokens and offline mode apply."""

from pathlib import Path
from typing import Any

from clamp3.errors import UserError
from clamp3.io.files import content_hash

SHA256_DIGITS = 64


def cached_file(repository: str, file_name: str, revision: str | None = None) -> Path | None:
    """The file in the hub's cache, looked up without network access; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file_name, revision=revision)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def file_url(repository: str, file_name: str, revision: str | None = None) -> str:
    """Where the file is downloaded from; HF_ENDPOINT names another server than the hub's own."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file_name, revision=revision)


def url_of_cached(path: Path) -> str | None:
    """Where a file in the hub's cache, .../models--OWNER--NAME/snapshots/COMMIT/FILE, came from; None for others."""
    parts = path.parts
    if "snapshots" not in parts[:-2]:
        return None
    place = len(parts) - 1 - parts[::-1].index("snapshots")
    kind, *names = parts[place - 1].split("--")
    if kind != "models" or not names:
        return None
    return file_url("/".join(names), "/".join(parts[place + 2 :]), parts[place + 1])


class HubModel:
    """The files of a model on the hub, all of one commit: those in the cache without network, others downloaded."""

    def __init__(self, repository: str, revision: str | None = None, token: str | bool | None = None):
        self.repository, self.revision, self.token = repository, revision, token

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    def get(self, file_name: str) -> Path:
        """The file. Raises UserError where it cannot be had."""
        try:
            path = cached_file(self.repository, file_name, self.revision) or self._download(file_name)
        except Exception as error:  # the hub's client raises many kinds; none is the user's to read as a traceback
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise UserError(
                f"no model {self}: there is no such folder or file here, and the Hugging Face hub does not give its "
                f"{file_name} ({type(error).__name__}: {reason})\n"
                f"  get:  {file_url(self.repository, file_name, self.revision)}"
            ) from None
        self.revision = path.parts[-1 - len(Path(file_name).parts)]  # the commit
        return path

    def _download(self, file_name: str) -> Path:
        return download_file(self.repository, file_name, revision=self.revision, token=self.token)


def upload_folder(
    folder: Path, repository: str, private: bool | None, token: str | bool | None, revision: str | None, message: str
) -> str:
    """Make the repository unless it is there, and upload all files of `folder`; returns its address.

    Raises UserError where the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(address.repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:  # the hub's client raises many kinds; none is the user's to read as a traceback
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"the hub does not take {repository} ({type(error).__name__}: {reason})") from error
    return str(address)


def download_file(
    repository: str,
    file_name: str,
    size: int | None = None,
    sha256: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Download a file into the hub's cache and verify it. Processes that share a cache download it once.

    `size` in bytes and `sha256` are checked where given; the hub's own SHA-256 is, for all large files. Raises
    OSError where they differ (the file is then removed), and whatever the hub's client raises.
    """
    from huggingface_hub import hf_hub_download

    asked: dict[str, Any] = {
        name: value for name, value in (("revision", revision), ("token", token)) if value is not None
    }
    path = Path(hf_hub_download(repository, file_name, **asked))
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
