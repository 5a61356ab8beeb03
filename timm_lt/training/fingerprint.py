"""Fingerprint of the data and processes of a run, refused with the difference where a resume or a process disagrees.

The options of a run are compared by :func:`timm_lt.training.resume.check_same_configuration`.
"""

import json
import zlib
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from .._files import write_text
from .data import DataParts
from .errors import ConfigError

FILE = 'fingerprint.json'


def fingerprint(data: DataParts, num_processes: int) -> dict[str, Any]:
    """Facts about the data and the processes of a run, ready for JSON.

    Args:
        data: The parts of the data.
        num_processes: Number of processes that share a step.

    Returns:
        ``class_names`` (C) or None, ``class_counts`` (C), ``images`` (number of each part) and ``processes``.
        ``labels`` holds a checksum of the labels of each part, in their order.
    """
    parts = {'train': data.train, 'validation': data.validation, 'test': data.test}
    parts = {name: images for name, images in parts.items() if images is not None}
    return {
        'class_names': data.distribution.class_names,
        'class_counts': data.distribution.counts.tolist(),
        'images': {name: len(images) for name, images in parts.items()},
        'labels': {name: zlib.crc32(images.targets.contiguous().numpy()) for name, images in parts.items()},
        'processes': num_processes,
    }


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """One clause for each fact in which two fingerprints differ."""
    found = []
    names = (there['class_names'], here['class_names'])
    if names[0] != names[1]:
        found.append('class names: ' + _first_difference(*(n or [] for n in names)))
    if there['class_counts'] != here['class_counts']:
        found.append(
            'training images per class: '
            + _first_difference(there['class_counts'], here['class_counts'], here['class_names']))
    for part in dict.fromkeys((*there['images'], *here['images'])):
        numbers = (there['images'].get(part, 0), here['images'].get(part, 0))
        if numbers[0] != numbers[1]:
            found.append(f'{part} images: {numbers[0]} there, {numbers[1]} here')
        elif there['labels'].get(part) != here['labels'].get(part):
            found.append(f'{part} images: other labels, or the same in another order')
    if there['processes'] != here['processes']:
        found.append(f'processes: {there["processes"]} there, {here["processes"]} here')
    return found


def _first_difference(there: list, here: list, class_names: list[str] | None = None) -> str:
    if len(there) != len(here):
        return f'{len(there)} classes there, {len(here)} here'
    c = next(i for i, pair in enumerate(zip(there, here)) if pair[0] != pair[1])
    where = class_names[c] if class_names else c
    return f'class {where!r} has {there[c]!r} there, {here[c]!r} here'


def check_fingerprint(here: dict[str, Any], run_folder: Path, accelerator: Accelerator, resumed: bool) -> None:
    """Compare a fingerprint over all processes and with the resumed run, then store it in the folder.

    Args:
        here: What :func:`fingerprint` gives.
        run_folder: Folder of the run.
        accelerator: Knows the processes.
        resumed: Whether a run goes on; one that stored no fingerprint is not compared.

    Raises:
        ConfigError: On every process, if something differs.
    """
    file, problem = run_folder / FILE, ''
    if accelerator.num_processes > 1:
        for rank, there in enumerate(gather_object([here])):
            found = differences(there, here)
            if found:
                problem = (
                    f'process {rank} ("there") and process {accelerator.process_index} ("here") see different data '
                    f'({"; ".join(found)}). Give every process the same files')
    if not problem and resumed and accelerator.is_main_process and file.is_file():
        found = differences(json.loads(file.read_text(encoding='utf-8')), here)
        if found:
            problem = (
                f'cannot resume {run_folder}: it was run on other data or processes ({"; ".join(found)}). '
                f'Use the same, or another --experiment')
    if accelerator.num_processes > 1:
        problem = next((p for p in gather_object([problem]) if p), '')
    if problem:
        raise ConfigError(problem)
    if accelerator.is_main_process:
        write_text(file, json.dumps(here) + '\n')
