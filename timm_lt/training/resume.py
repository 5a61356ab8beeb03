"""Folder of a run, and the checkpoint that it goes on from."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from .checkpoint import find_checkpoint
from .errors import ConfigError
from .options import Options, differing_keys, read_args
from .outputs import RunFolder


def agree_on_folder(options: Options, accelerator: Accelerator) -> tuple[RunFolder, Path | None]:
    """The folder of the run and its checkpoint (or None); the main process chooses, the others follow.

    Raises:
        ConfigError: If the run to resume does not exist or has another configuration.
    """
    choice: Any = None
    if accelerator.is_main_process:
        try:
            path, checkpoint = choose_folder(options)
            if checkpoint is not None or (options.run.resume and (path / 'args.yaml').is_file()):
                check_same_configuration(options, path)
            if not options.run.dry_run:
                path.mkdir(parents=True, exist_ok=True)
            choice = (str(path), checkpoint and str(checkpoint), '')
        except (ConfigError, OSError) as e:
            choice = ('', None, str(e))
    if accelerator.num_processes > 1:
        choice = gather_object([choice])[0]
    path, checkpoint, problem = choice
    if problem:
        raise ConfigError(problem)
    return RunFolder(Path(path), accelerator.is_main_process), checkpoint and Path(checkpoint)


def choose_folder(options: Options) -> tuple[Path, Path | None]:
    """Folder of the run and the checkpoint to go on from (or None).

    Raises:
        ConfigError: If ``--resume DIR`` names no run with a checkpoint.
    """
    run = options.run
    if run.resume and run.resume != 'auto':
        folder = Path(run.resume)
        folder = folder.parent if (folder / 'complete.json').is_file() else folder
        checkpoint = find_checkpoint(folder)
        if checkpoint is None:
            raise ConfigError(f'--resume {run.resume}: no whole checkpoint there; name the folder of a run')
        return folder, checkpoint
    output, name = Path(run.output), run.experiment or default_experiment(options)
    candidates = [output / name]
    while candidates[-1].exists():
        candidates.append(output / f'{name}-{len(candidates) + 1}')
    existing = candidates[-2::-1]
    if run.resume == 'auto' and existing:
        # the newest that was run with these options; without one the newest, whose differences are then named
        folder = next((f for f in existing if _has_configuration(f, options)), existing[0])
        return folder, find_checkpoint(folder)
    return candidates[-1], None


def check_same_configuration(options: Options, run_folder: Path) -> None:
    """Raise a ConfigError naming the options in which ``options`` and the run in ``run_folder`` differ."""
    file = run_folder / 'args.yaml'
    if not file.is_file():
        raise ConfigError(f'{run_folder} is no run folder: it has no args.yaml')
    saved, here = read_args(file), options.flat()
    keys = differing_keys(saved, options)
    if keys:
        listing = ', '.join(f'{k}: {saved.get(k)!r} there, {here.get(k)!r} here' for k in keys)
        raise ConfigError(
            f'cannot resume {run_folder}: it was run with another configuration ({listing}). '
            f'Use the same options, or another --experiment{_longer_run(keys, run_folder)}')


def _longer_run(keys: Collection[str], run_folder: Path) -> str:
    """Advice for the message where the number of epochs is the only difference."""
    weights = run_folder / 'hub' / 'model.safetensors'
    if not set(keys) <= {'epochs', 'warmup_epochs'} or not weights.is_file():
        return ''
    return (
        f'. The learning rate follows the number of epochs, so a longer run is another run; one that starts from these '
        f'weights: --initial-checkpoint {weights} --experiment NAME')


def _has_configuration(folder: Path, options: Options) -> bool:
    file = folder / 'args.yaml'
    return file.is_file() and not differing_keys(read_args(file), options)


def default_experiment(options: Options) -> str:
    """A name such as ``digits_resnet20_cifar_balanced_softmax_sgd_s42``."""
    data = options.data.dataset or Path(options.data.data_dir or '').resolve().name
    names = [Path(data).name, str(options.model.model).split('/')[-1], options.loss.loss, options.optimizer.opt,
             f's{options.run.seed}']
    return '_'.join(p.replace('.', '-') for p in names)
