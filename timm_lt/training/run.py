"""One run from its options to its report."""

import logging
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors import SafetensorError

from .._unwrap import finished_model
from ..evaluate.metrics import resolve_split_rule
from ..hub import has_token, push
from . import build
from .allocator import keep_freed_memory
from .checkpoint import check_same_configuration, load_checkpoint
from .checks import check_compilation, check_sample_values
from .config import ConfigError, one_line, parse_args
from .correction import check_classifier, check_correction, correct
from .data import DataParts, build_data, build_loaders, gkp_loader
from .ending import (
    MENDABLE,
    MISSING_ORNAMENT,
    IncompleteRun,
    command_to_go_on,
    nothing_is_lost,
    speaks,
    write_ornaments,
)
from .evaluation import choose_epoch, evaluate, validation_figures
from .figures import final_metrics, metrics_of_both, summary_table
from .fingerprint import check_fingerprint, fingerprint
from .memory_format import is_channels_last, wants_channels_last
from .outputs import RunFolder, choose_folder, default_experiment
from .trainer import Trainer

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``train_lt.py``.

    Returns:
        The exit status, see :mod:`timm_lt.training.ending`; 2 for what the user can mend, in one message.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parse_args(argv)
        level = logging.WARNING if args.quiet else logging.INFO
        logging.basicConfig(level=level, format='%(message)s', stream=sys.stderr)
        for noisy in ('httpx', 'datasets', 'timm', 'accelerate', 'fsspec', 'matplotlib', 'PIL'):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        run(args)
    except IncompleteRun as e:
        return _stop(e, f'{"warning" if e.status == MISSING_ORNAMENT else "error"}: {e}', e.status)
    except (OSError, SafetensorError) as e:  # a full disk, a lost folder
        return _stop(
            e, f'error: could not read or write: {one_line(e)}. Whole checkpoints are kept: mend that (free some '
            f'space, choose another --output), then go on with --resume auto')
    except MENDABLE as e:
        return _stop(e, f'error: {e}')
    except KeyboardInterrupt as e:
        return _stop(e, f'interrupted; go on with: {command_to_go_on(argv)}', 130)
    return 0


def _stop(error: BaseException, message: str, status: int = 2) -> int:
    """Say once over all processes why the run ends; returns the exit status."""
    if speaks(error):
        sys.stderr.write(f'train_lt.py: {message}\n')
    return status


def run(args: Namespace) -> dict[str, Any]:
    """Train, evaluate and write the run folder; returns the metrics.

    Args:
        args: As :func:`timm_lt.training.config.parse_args` gives them.

    Raises:
        ConfigError, ImageReadError, CheckpointError, TrainingError, HubError: Each with a message that says what to do.
        IncompleteRun: If something failed after training; weights are on disk.
    """
    build.check_names(args)
    check_compilation(args)
    if args.posthoc:
        check_correction(args)
    if args.push_to_hub and not has_token():
        _logger.warning('no token for the Hub: log in with `hf auth login` before the run ends, or nothing is uploaded')
    accelerator = make_accelerator(args)
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    folder, checkpoint = _agree_on_folder(args, accelerator)
    if checkpoint is not None or (args.resume and (folder.path / 'args.yaml').is_file()):
        check_same_configuration(args, folder.path)

    set_seed(args.seed)
    data = build_data(args)
    check_fingerprint(fingerprint(data, accelerator.num_processes), folder.path, accelerator, checkpoint is not None)
    distribution = data.distribution
    rule = resolve_split_rule(distribution, args.split_rule)
    model, model_args = build.build_model(args, distribution.num_classes)
    final = model
    if args.stage2:
        from .second_stage import check_stage2
        final = check_stage2(args, distribution.counts, model)
    if args.posthoc:
        check_classifier(args, final)
    data_config = build.data_config(args, model)
    train_loader, val_loader, test_loader = build_loaders(args, data, data_config, accelerator)

    extra = ()
    if args.gkp:
        images = gkp_loader(args, data, data_config, accelerator)
        extra = (build.build_gkp(args, images, distribution, distribution.splits(rule)),)

    trainer = build_trainer(args, accelerator, folder, model, data, train_loader, val_loader, rule, extra)
    folder.write_args(args)
    folder.write_distribution(distribution)
    if args.log_with:
        accelerator.project_configuration.logging_dir = str(folder.path)
        accelerator.init_trackers('timm_lt')
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint)
        _logger.info('resumed %s at epoch %d', folder.path, trainer.progress.epoch)
    _announce(args, accelerator, data, trainer, folder)

    trainer.fit()
    with nothing_is_lost(folder):
        metrics = _evaluate_and_write(
            args, accelerator, folder, trainer, data, model_args, data_config, test_loader, rule)
    missing = write_ornaments(folder, data.test)
    if accelerator.is_main_process:
        sys.stdout.write(summary_table(metrics, folder.path))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1 and accelerator.device.type == 'cpu':
        # gloo's threads outlive the group (DistributedDataParallel holds it) and abort a process that exits while one
        # still waits for the interpreter to let go of its last tensor
        time.sleep(0.1)
    if missing:
        raise IncompleteRun(missing + (', then push it' if args.push_to_hub else ''), MISSING_ORNAMENT)
    if args.push_to_hub and folder.writes:
        address = push(folder.path, args.push_to_hub, private=args.private or None, revision=args.revision)
        sys.stdout.write(f'on the Hub: {address}\n')
    return metrics


def _evaluate_and_write(
        args: Namespace,
        accelerator: Accelerator,
        folder: RunFolder,
        trainer: Trainer,
        data: DataParts,
        model_args: dict[str, Any],
        data_config: dict[str, Any],
        test_loader: Any,
        rule: str,
) -> dict[str, Any]:
    """Second stage, correction and figures of a trained model; writes weights, metrics and predictions."""
    reported_epoch, chosen_by = choose_epoch(trainer, accelerator, folder)
    tested = exported = finished_model(trainer.eval_model)
    logits, targets = evaluate(tested, test_loader, accelerator)
    metrics = final_metrics(args, accelerator, trainer, data, tested, logits, targets, rule, reported_epoch, chosen_by)
    figures_of_exported, first_logits = metrics, logits
    if args.stage2:
        second = run_second_stage(args, folder, tested, data, data_config, rule)
        logits, targets, tested, exported = second.logits, second.targets, second.model, second.exported
        metrics = metrics_of_both(args, metrics, second, data, rule)
        if exported is tested:
            figures_of_exported = metrics
    if args.posthoc:
        networks = [(folder, tested, logits, metrics)]
        if exported is not tested:
            networks = [
                (folder, exported, first_logits, figures_of_exported), (stage2_folder(folder), tested, logits, metrics)]
        for place, network, scores, figures in networks:
            figures |= correct(args, place, network, scores, targets, data, data_config, rule, accelerator)
    folder.write_predictions(logits, targets)
    folder.write_metrics(figures_of_exported)  # the card of the model must not claim the figures of another head
    try:
        folder.write_hub(exported, model_args, data_config)
    finally:
        folder.write_metrics(metrics)
    return metrics


def run_second_stage(
        args: Namespace,
        folder: RunFolder,
        model: nn.Module,
        data: DataParts,
        data_config: dict[str, Any],
        rule: str,
) -> Any:
    """The second stage after the first, see :func:`timm_lt.training.second_stage.run_stage2`; it changes ``model``."""
    from .second_stage import run_stage2
    return run_stage2(args, make_accelerator(args), stage2_folder(folder), model, data, data_config, rule)


def stage2_folder(folder: RunFolder) -> RunFolder:
    """The folder of the second stage of a run."""
    return RunFolder(folder.path / 'stage2', folder.writes)


def make_accelerator(args: Namespace) -> Accelerator:
    """Accelerate's object; without an accelerator device the CPU is named, so that several processes work there."""
    has_device = torch.accelerator.is_available() if hasattr(torch, 'accelerator') else torch.cuda.is_available()
    trackers = {'log_with': args.log_with, 'project_dir': args.output} if args.log_with else {}
    try:
        accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not has_device, **trackers)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    if args.mixed_precision == 'fp16' and accelerator.scaler is None and accelerator.device.type == 'cpu':
        raise ConfigError('fp16 needs a GPU (Accelerate would run fp32 without a word); use --mixed-precision bf16')
    if args.sync_bn and accelerator.num_processes > 1 and accelerator.device.type == 'cpu':
        raise ConfigError('--sync-bn needs GPUs: torch has no BatchNorm over processes on a CPU; leave it out')
    return accelerator


def _agree_on_folder(args: Namespace, accelerator: Accelerator) -> tuple[RunFolder, Path | None]:
    """The main process chooses the folder; the others follow."""
    choice: Any = None
    if accelerator.is_main_process:
        try:
            path, checkpoint = choose_folder(args)
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


def build_trainer(
        args: Namespace,
        accelerator: Accelerator,
        folder: RunFolder,
        model: nn.Module,
        data: DataParts,
        train_loader: Any,
        val_loader: Any,
        rule: str,
        callbacks: tuple = (),
) -> Trainer:
    """Put together what the options name; ``callbacks`` come after those of the loss."""
    distribution = data.distribution
    criterion = build.build_loss(args, distribution).to(accelerator.device)
    if wants_channels_last(args.channels_last, model, accelerator.device, accelerator.mixed_precision):
        model = model.to(memory_format=torch.channels_last)
    if args.sync_bn and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = build.training_model(args, model).to(accelerator.device)
    updates = -(-len(train_loader) // args.grad_accum_steps)
    ema = build.build_ema(args, model, updates * args.epochs)
    optimizer = build.build_optimizer(args, model, distribution, build.scaled_lr(args, accelerator.num_processes))
    check_sample_values(args, criterion, optimizer, distribution.num_classes)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler, epochs = build.build_scheduler(args, optimizer, updates)
    torch.manual_seed(args.seed + accelerator.process_index)  # dropout differs between processes, weights did not

    validate = None if val_loader is None else validation_figures(val_loader, accelerator, distribution, rule)

    return Trainer(
        accelerator, model, criterion, optimizer, scheduler, train_loader, splits=distribution.splits(rule),
        epochs=epochs, folder=folder, seed=args.seed, grad_accum_steps=args.grad_accum_steps, clip_grad=args.clip_grad,
        clip_mode=args.clip_mode, validate=validate, mix=build.build_mixing(args, distribution.num_classes),
        mixup_off_epoch=args.mixup_off_epoch, ema=ema,
        callbacks=(*build.build_callbacks(args, criterion, distribution), *callbacks),
        checkpoint_every=args.checkpoint_every, checkpoint_steps=args.checkpoint_steps, log_interval=args.log_interval,
        quiet=args.quiet)


def _announce(args: Namespace, accelerator: Accelerator, data: DataParts, trainer: Trainer, folder: RunFolder) -> None:
    if not accelerator.is_main_process:
        return
    model = trainer.plain_model
    _logger.info(
        '%s: %s\n%s, %d parameters, %s; loss %s, optimizer %s, sampler %s; %d process(es) on %s\n%s',
        args.dataset or args.data_dir, data.distribution, args.model, sum(p.numel() for p in model.parameters()),
        'channels-last' if is_channels_last(model) else 'contiguous', args.loss, args.opt, args.sampler,
        accelerator.num_processes, accelerator.device, folder.path)
    if trainer.ema is not None and trainer.ema.use_warmup and not args.model_ema_warmup:
        updates = trainer.epochs * -(-len(trainer.train_loader) // args.grad_accum_steps)
        _logger.info(
            '--model-ema warms up, because a decay of %g would keep %.0f%% of the initial weights after %d updates; it '
            'ends at %.4g', args.model_ema_decay, 100 * build.initial_share(args, updates), updates,
            trainer.ema.get_decay(updates))


__all__ = ['default_experiment', 'evaluate', 'main', 'run']
