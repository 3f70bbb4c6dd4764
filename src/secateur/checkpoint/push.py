"""Upload a checkpoint to the Hugging Face hub, by `huggingface_hub` with the account that `hf auth login` knows."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.errors import HTTPError as WebError  # type: ignore[attr-defined]  # httpx's or httpx2's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import Field

from secateur.core.records.record import Record
from secateur.errors import OutputError
from secateur.hf.source import CARD, CONFIG


class FileSize(Record):
    """A file of a checkpoint."""

    name: str = Field(description="relative to the folder")
    bytes: int = Field(description="its size")


class PushRecord(Record):
    """An upload that was made, or only listed."""

    repo: str = Field(description="USER/NAME on the hub")
    private: bool = Field(description="a repository that was made for it is private")
    url: str | None = Field(description="of the commit; null for `--dry-run`")
    files: list[FileSize] = Field(description="in the order of their names")


def check_repo(repo: str) -> None:
    """Raise `OutputError` for what is no name of a repository, before anything is done."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OutputError(f"{repo!r} is no name on the hub ({error}). Write USER/NAME.") from error
    if repo.count("/") != 1:
        raise OutputError(f"{repo!r} lacks the account. Write USER/NAME.")


def push(folder: Path, repo: str, *, private: bool, dry_run: bool) -> PushRecord:
    """Upload all files of a checkpoint in one commit; the repository is made where it is not there.

    Args:
        private: Of a repository that is made.
        dry_run: Only say what would be uploaded.

    Raises: `OutputError` where there is no checkpoint, no account, no connection, or no right to write.
    """
    check_repo(repo)
    if missing := [name for name in (CONFIG, CARD) if not (folder / name).is_file()]:
        raise OutputError(
            f"{folder} is no checkpoint that secateur wrote: it has no {missing[0]}. Give the OUT of prune, apply, "
            "finetune or heal."
        )
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [
        FileSize(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size)
        for path in inside
        if not path.relative_to(folder).parts[0].startswith(".")
    ]
    if dry_run:
        return PushRecord(repo=repo, private=private, url=None, files=files)
    api = HfApi(library_name="secateur")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload by secateur", ignore_patterns=".*"
        )
    except LocalTokenNotFoundError as error:
        raise OutputError(
            f"cannot push to {repo}: no account is known here. `hf auth login`, or set HF_TOKEN."
        ) from error
    except (WebError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(
            f"cannot push to {repo}: {reason}. Check the name, `hf auth whoami` and the connection; {folder} is "
            "as it was."
        ) from error
    return PushRecord(repo=repo, private=private, url=done.commit_url, files=files)
