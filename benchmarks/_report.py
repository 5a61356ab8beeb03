"""Where figures come from: commit, hardware and command, written beside what was measured."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch


def commit() -> str:
    """The commit that runs, with '-dirty' where files differ from it."""
    answer = subprocess.run(
        ['git', 'describe', '--always', '--dirty'], cwd=Path(__file__).parent, capture_output=True, text=True)
    return answer.stdout.strip() or 'unknown'


def provenance(device: torch.device | str = 'cpu', threads: int | None = None) -> dict[str, str]:
    """Commit, torch and hardware; ``threads``: of the work, None for this process's."""
    if torch.device(device).type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads() if threads is None else threads
        hardware = f'{platform.machine()} CPU, {os.cpu_count()} cores, {threads} thread(s)'
    return {'commit': commit(), 'torch': torch.__version__, 'hardware': hardware}


class Report:
    """Lines that are printed as they come and can be kept in a file under commit, hardware and command."""

    def __init__(self, device: torch.device | str = 'cpu') -> None:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.lines = [f'{command}: ' + ', '.join(f'{k} {v}' for k, v in provenance(device).items())]

    def line(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def write(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(self.lines) + '\n')
