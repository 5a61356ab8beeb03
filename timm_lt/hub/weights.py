"""Weights files: safetensors only, checked before anything is read from them.

A pickled file runs code when it is loaded. It is recognised by its name or its first bytes and never opened by torch.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import HubError

__all__ = ['MANIFEST', 'WEIGHTS', 'find_pickles', 'read_weights', 'sha256_of', 'write_manifest']

WEIGHTS = 'model.safetensors'
MANIFEST = 'manifest.json'
PICKLE_SUFFIXES = ('.bin', '.ckpt', '.pickle', '.pkl', '.pt', '.pth', '.tar')
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_pickles(folder: Path) -> list[str]:
    """Files of a folder that torch would unpickle, relative and sorted."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file() and p.suffix.lower() in PICKLE_SUFFIXES)


def write_manifest(folder: Path, **entries: Any) -> None:
    """``manifest.json``: SHA-256 and size of the weights, and the versions that wrote them."""
    path = folder / WEIGHTS
    content = {'format': 1, 'weights': WEIGHTS, 'sha256': sha256_of(path), 'bytes': path.stat().st_size, **entries}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder's ``model.safetensors``.

    A folder that timm alone wrote has no ``manifest.json``, so no SHA-256 is recorded. Its file must still be
    safetensors. A folder of this package without one is refused.

    Raises:
        HubError: If the file is missing, pickled, damaged, or not the one that ``manifest.json`` records.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = find_pickles(folder)
        hint = f'; {pickles[0]} is pickled and may run code when it is loaded, so it is not read' if pickles else ''
        raise HubError(
            f'{folder} has no {WEIGHTS}{hint}. Ask for safetensors weights, or convert the file on a machine where '
            f'you trust it')
    with open(path, 'rb') as f:
        start = f.read(9)
    if start[:2] == b'PK' or start[:1] == b'\x80' or start[8:9] != b'{':
        raise HubError(
            f'{path} is not a safetensors file (pickled or damaged); it was not opened. Download it again, or ask its '
            f'author for safetensors weights')
    recorded = _recorded_sha256(folder)
    if recorded is not None:
        found = sha256_of(path)
        if found != recorded:
            raise HubError(
                f'{path} was changed after it was written: SHA-256 {found}, but {MANIFEST} records {recorded}. '
                f'Download it again; do not use it')
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as e:
        raise HubError(f'{path} is damaged: {e}. Download it again') from e


def _recorded_sha256(folder: Path) -> str | None:
    path = folder / MANIFEST
    if not path.is_file():
        if all((folder / name).is_file() for name in ('class_distribution.json', 'recipe.yaml')):
            raise HubError(
                f'{folder} is damaged: its {MANIFEST}, which records the SHA-256 of the weights, is missing. Download '
                f'the checkpoint again')
        return None
    try:
        return str(json.loads(path.read_text(encoding='utf-8'))['sha256'])
    except (ValueError, KeyError, TypeError) as e:
        raise HubError(f'{path} is damaged: {e!r}. Download the checkpoint again') from e
