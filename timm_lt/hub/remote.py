"""Upload to and download from the Hugging Face Hub.

An upload is one commit, so that weights, class counts, metrics and card on the Hub always belong together. Large files
go up before the commit and are addressed by their SHA-256. A push after an interruption therefore sends only the
missing files. A second push of the same folder sends no weights and makes no commit. ``HfApi.upload_folder`` (with Xet)
and ``upload_large_folder`` may split a folder into several commits, which a reader could see half done.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .._version import __version__
from .errors import HubError
from .weights import WEIGHTS, find_pickles, read_weights

__all__ = ['check_repo_id', 'download', 'has_token', 'list_remote', 'pull', 'push']

TAG = 'timm_lt'  # of every model card that this package writes
UPLOADED = (
    WEIGHTS, 'config.json', 'manifest.json', 'class_distribution.json', 'recipe.yaml', 'metrics.json', 'posthoc.json',
    'open_set.json', 'README.md', 'protocol.md', 'plots/*.png',
)
TOKEN_PATTERN = re.compile(r'\bhf_[A-Za-z0-9]{20,}')


def check_repo_id(repo_id: str) -> str:
    """Return ``repo_id`` if it is a name ``USER/NAME`` that the Hub allows, else raise a HubError."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise HubError(f'{repo_id!r} is no name on the Hub: {e}') from e
    if repo_id.count('/') != 1:
        raise HubError(f'the name on the Hub must be USER/NAME, got {repo_id!r}')
    return repo_id


def has_token() -> bool:
    """Whether this machine is logged in to the Hub."""
    return bool(get_token())


def push(
        folder: str | Path,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str = 'Upload checkpoint with timm_lt',
) -> str:
    """Upload a hub folder; a repeated or interrupted push sends only what the Hub lacks.

    Args:
        folder: A hub folder, or the run folder that has one. It is never changed.
        repo_id: ``USER/NAME``; made if it does not exist.
        private: Visibility of a new repository; None leaves it to the account's default. With True an existing public
            repository is refused.
        revision: Branch, made if it does not exist; None is the main one.
        message: Of the commit.

    Returns:
        Address of the commit.

    Raises:
        HubError: If the folder is no whole checkpoint, or holds a pickle or a token. Also if the repository is public
            though ``private`` was asked for, or the upload failed.
    """
    folder = Path(folder)
    if not (folder / 'config.json').is_file() and (folder / 'hub' / 'config.json').is_file():
        folder = folder / 'hub'
    check_repo_id(repo_id)
    files = _checked_files(folder)
    command = ['push', str(folder), repo_id, *(['--private'] if private else [])]
    command += ['--revision', revision] if revision else []
    kept = f'The checkpoint is kept in {folder}; push it again with: python -m timm_lt.hub {shlex.join(command)}'
    if not has_token():
        raise HubError(
            f'cannot upload to {repo_id}: there is no token for the Hub. Log in once with `hf auth login`, or set '
            f'HF_TOKEN. {kept}')
    api = _api()
    with _explained(f'cannot upload to {repo_id}', kept):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise HubError(
                f'cannot upload to {repo_id}: it exists and is public, though a private one was asked for. Make it '
                f'private in its settings on the Hub, choose another name, or push without --private. {kept}')
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        remote = api.list_repo_files(repo_id, revision=revision)
        operations: list[Any] = [_addition(folder, f, repo_id) for f in files]
        added = {o.path_in_repo for o in operations}
        # what an older push of this package left would be read beside the new weights
        operations += [CommitOperationDelete(f) for f in remote if _is_ours(f) and f not in added]
        info = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return str(info.commit_url)


def pull(repo_id: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Download a checkpoint into a folder and check its weights; an interrupted download goes on where it stopped.

    Files of an earlier pull that the revision lacks are removed, because a correction among them no longer holds.

    Raises:
        HubError: If it cannot be downloaded, or its weights are not those that ``manifest.json`` records.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    with _explained(f'cannot download {repo_id}', f'The files that arrived are kept in {folder}'):
        commit = _api().model_info(repo_id, revision=revision).sha
        snapshot_download(repo_id, revision=commit, local_dir=folder, allow_patterns=list(UPLOADED), **_library())
        remote = _api().list_repo_files(repo_id, revision=commit)
    pulled = folder / '.cache' / 'huggingface' / 'download'  # where the client notes what it brought
    for note in sorted(pulled.rglob('*.metadata')):
        name = note.relative_to(pulled).as_posix().removesuffix('.metadata')
        if _is_ours(name) and name not in remote:
            (folder / name).unlink(missing_ok=True)
            note.unlink()
    read_weights(folder)
    return folder


def download(repo_id: str, revision: str | None = None) -> Path:
    """Download a checkpoint into the Hub's cache; without a network the cached files are used."""
    check_repo_id(repo_id)
    with _explained(f'cannot download {repo_id}', 'A folder on this machine can be loaded by its path'):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(UPLOADED), **_library()))


def list_remote(author: str | None = None, limit: int | None = None) -> list[str]:
    """Names of at most ``limit`` checkpoints on the Hub that this package wrote, of one user or of all.

    Raises:
        HubError: If the Hub cannot be asked.
    """
    kept = 'The checkpoints that come with the package need no network'
    with _explained('cannot list the checkpoints on the Hub', kept):
        return sorted(m.id for m in _api().list_models(filter=TAG, author=author, limit=limit))


def _checked_files(folder: Path) -> list[Path]:
    """The files to upload, after a look at what must not be published."""
    if not (folder / 'config.json').is_file():
        raise HubError(f'{folder} is no checkpoint: it has neither config.json nor hub/config.json')
    if pickles := find_pickles(folder):
        raise HubError(f'{folder} holds {pickles[0]}, a pickled file, which runs code when it is loaded: remove it')
    read_weights(folder)
    files = [f for f in sorted(folder.rglob('*')) if f.is_file() and _is_ours(str(f.relative_to(folder)))]
    token = get_token()
    for file in files:
        if file.suffix in ('.json', '.md', '.yaml'):
            text = file.read_text(encoding='utf-8')
            if (token and token in text) or TOKEN_PATTERN.search(text):
                raise HubError(
                    f'{file} holds a token of the Hub and was not uploaded. Remove it there, and revoke it if the '
                    f'file was shared')
    return files


def _addition(folder: Path, file: Path, repo_id: str) -> CommitOperationAdd:
    content: str | bytes = str(file)
    if file.name == 'README.md':
        content = file.read_text(encoding='utf-8').replace('USER/NAME', repo_id).encode()
    return CommitOperationAdd(str(file.relative_to(folder)), content)


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in UPLOADED)


def _library() -> dict[str, Any]:
    return {'library_name': 'timm_lt', 'library_version': __version__}


def _api() -> HfApi:
    return HfApi(**_library())


@contextmanager
def _explained(what: str, kept: str) -> Iterator[None]:
    """Turn what the client raises into one HubError that says what to do. Messages carry no request headers."""
    try:
        yield
    except HubError:
        raise
    except Exception as e:
        reason = _reason(e)
        if reason is None:
            raise
        raise HubError(f'{what}: {reason}. {kept}') from e


def _reason(error: Exception) -> str | None:
    """Advice for an error of the client; None for any other error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
        cause = cause.__cause__  # an upload thread wraps the error
    if isinstance(error, RevisionNotFoundError):
        return 'there is no such revision; name an existing branch, tag or commit'
    if isinstance(error, RepositoryNotFoundError):
        return 'it does not exist, or is private and the token may not read it; check the name, or `hf auth login`'
    if isinstance(cause, HfHubHTTPError) and getattr(cause, 'response', None) is not None:
        return _status_reason(cause.response.status_code, cause.server_message or '')
    if isinstance(cause, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set; unset it to use the network'
    if isinstance(cause, HTTPError):
        return f'the Hub cannot be reached ({type(cause).__name__}); check the network and try again'
    if isinstance(error, EntryNotFoundError):
        return 'the Hub cannot be reached and the files are not in the cache; check the network and try again'
    if isinstance(error, UnicodeEncodeError):
        return 'the token has invalid characters; set HF_TOKEN to a valid token, or log in with `hf auth login`'
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        return ' '.join(str(error).split())
    return None


def _status_reason(status: int, server_message: str) -> str:
    said = f' (the Hub says: {" ".join(server_message.split())})' if server_message else ''
    full = any(word in server_message.lower() for word in ('quota', 'storage', 'limit'))
    if status in (402, 413, 507) or (status == 403 and full):
        return f'the storage of the account is used up or the file is too large{said}; free some, or make it public'
    if status == 401:
        return f'the token is not valid{said}; log in again with `hf auth login`'
    if status in (403, 409):
        return (
            f'the name is taken by someone else, or the token may not write there{said}; choose another USER/NAME, or '
            f'a token with write access')
    if status == 404:
        return f'it does not exist, or the token may not see it{said}; check the name'
    if status == 429:
        return f'too many requests{said}; wait some minutes and try again'
    if status >= 500:
        return f'the Hub failed with status {status}{said}; try again later'
    return f'the Hub answered with status {status}{said}'
