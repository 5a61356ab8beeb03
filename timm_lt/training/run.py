"""One run from its options to its report."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors import SafetensorError

from ..data import ImageReadError
from ..hub import has_token, push
from . import build
from .allocator import keep_freed_memory
from .data import DataParts, build_data
from .default_model import choose_model
from .device import make_accelerator
from .dry_run import dry_run
from .ending import (
    MENDABLE,
    MISSING_ORNAMENT,
    IncompleteRun,
    command_to_go_on,
    nothing_is_lost,
    speaks,
    tell_launcher,
    write_ornaments,
)
from .errors import ConfigError, one_line
from .final_metrics import final_metrics, method_facts, metrics_of_both, summary_table
from .finetuning import apply_finetuning, finetuning_facts, initialize_classifier, network_objective
from .fingerprint import check_fingerprint, fingerprint
from .memory_format import is_channels_last
from .options import Options, check_names, general_instead_of_digits, parse_options
from .outputs import RunFolder
from .pipeline import InputPipeline
from .posthoc import apply_posthoc, check_posthoc, check_posthoc_classifier
from .results import MetricRules
from .resume import agree_on_folder
from .second_stage import check_second_stage, run_second_stage, warn_if_worse
from .stage import NetworkObjective, Stage
from .trainer import Trainer
from .variants import results_of

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, prog: str = 'train_lt.py') -> int:
    """Entry point of ``train_lt.py`` and ``timm-lt train``.

    Args:
        argv: Options; None reads those of the process.
        prog: Name of the command, for messages.

    Returns:
        The exit status, see :mod:`timm_lt.training.ending`; 2 for what the user can mend, in one message.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    stop = partial(_stop, prog)
    try:
        options = parse_options(argv)
        level = logging.WARNING if options.run.quiet else logging.INFO
        logging.basicConfig(level=level, format='%(message)s', stream=sys.stderr)
        for noisy in ('httpx', 'datasets', 'timm', 'accelerate', 'fsspec', 'matplotlib', 'PIL'):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        run(options)
    except IncompleteRun as e:
        return stop(e, f'{"warning" if e.status == MISSING_ORNAMENT else "error"}: {e}', e.status)
    except ImageReadError as e:  # an OSError that names the images
        return stop(e, f'error: {e}')
    except (OSError, SafetensorError) as e:  # a full disk, a lost folder
        return stop(
            e, f'error: could not read or write: {one_line(e)}. Whole checkpoints are kept: mend that (free some '
            f'space, choose another --output), then go on with --resume auto')
    except MENDABLE as e:
        return stop(e, f'error: {e}')
    except KeyboardInterrupt as e:
        return stop(e, f'interrupted; go on with: {command_to_go_on(argv, prog)}', 130)
    return 0


def _stop(prog: str, error: BaseException, message: str, status: int = 2) -> int:
    """Say once over all processes why the run ends; returns the exit status."""
    tell_launcher(message)
    if speaks(error):
        sys.stderr.write(f'{prog}: {message}\n')
    return status


def run(options: Options) -> dict[str, Any]:
    """Train, evaluate and write the run folder; returns the metrics (none of a dry run).

    Args:
        options: As :func:`timm_lt.training.parse_args` gives them.

    Raises:
        ConfigError, ImageReadError, CheckpointError, TrainingError, HubError: Each with a message that says what to do.
        IncompleteRun: If something failed after training; weights are on disk.
    """
    _check_before_data(options)
    accelerator = make_accelerator(options.run, options.model.sync_bn)
    if accelerator.device.type == 'cpu':
        keep_freed_memory()
    data = _agree_on_data(options, accelerator)
    options = _with_model(options, data, accelerator)
    folder, checkpoint = agree_on_folder(options, accelerator)
    with folder.removed_if_untrained():
        setup = _set_up(options, data, accelerator, folder, new=checkpoint is None)
        objective = network_objective(setup.stage, setup.model)
        trainer = setup.stage.build(objective)
        if options.run.dry_run:
            _try_steps(options, setup.stage, trainer)
            return {}
        facts = fingerprint(setup.stage.data, accelerator.num_processes)
        check_fingerprint(facts, folder.path, accelerator, checkpoint is not None)
        _write_head(options, setup.stage)
        _announce(options, setup.stage, trainer)
        setup.stage.train(trainer, checkpoint)
    with nothing_is_lost(folder):
        metrics = _evaluate_and_write(options, setup, objective, trainer)
    missing = write_ornaments(folder, setup.stage.data.test)
    if accelerator.is_main_process:
        sys.stdout.write(summary_table(metrics, folder.path))
    _leave(accelerator)
    if missing:
        raise IncompleteRun(missing + (', then push it' if options.hub.push_to_hub else ''), MISSING_ORNAMENT)
    if options.hub.push_to_hub and folder.writes:
        address = push(
            folder.path, options.hub.push_to_hub, private=options.hub.private or None, revision=options.hub.revision)
        sys.stdout.write(f'on the Hub: {address}\n')
    return metrics


@dataclass(frozen=True)
class Setup:
    """A run before its first step.

    Attributes:
        stage: The first stage.
        model: The network, and what rebuilds it from a saved folder.
        model_args: Arguments of ``timm.create_model`` that rebuild the network from a saved folder.
        tuning: Fine-tuning method and number of trained parameters, for ``metrics.json``.
    """
    stage: Stage
    model: nn.Module
    model_args: dict[str, Any]
    tuning: dict[str, Any]


def _check_before_data(options: Options) -> None:
    check_names(options)
    if options.posthoc.posthoc:
        check_posthoc(options.posthoc, bool(options.data.val_split or options.data.val_fraction))
    if options.hub.push_to_hub and not has_token():
        _logger.warning('no token for the Hub: log in with `hf auth login` before the run ends, or nothing is uploaded')


def _agree_on_data(options: Options, accelerator: Accelerator) -> DataParts:
    """The parts of the data. A problem of one process is an error of each, which the main process reports."""
    data: DataParts | None = None
    problem = ''
    try:
        data = build_data(options.data)
    except MENDABLE as e:
        if accelerator.num_processes == 1:
            raise
        problem = str(e)
    if accelerator.num_processes > 1:
        problem = next((p for p in gather_object([problem]) if p), '')
    if data is None or problem:
        raise ConfigError(problem)
    return data


def _with_model(options: Options, data: DataParts, accelerator: Accelerator) -> Options:
    """The options with a network; where they name none, it is chosen by the size of the images."""
    if options.model.model is not None:
        return options
    model, reason = choose_model(options.model, data.train)
    if accelerator.is_main_process:
        _logger.info('%s', reason)
    return options.replace(model=model)


def _try_steps(options: Options, stage: Stage, trainer: Trainer) -> None:
    """The report of ``--dry-run``."""
    _announce(options, stage, trainer)
    text = dry_run(options, stage, trainer)  # on every process, because gradients are averaged over them
    if stage.accelerator.is_main_process:
        sys.stdout.write(text)
    _leave(stage.accelerator)


def _set_up(
        options: Options, data: DataParts, accelerator: Accelerator, folder: RunFolder, new: bool) -> Setup:
    """Rules and network; everything that can be refused is refused here or in ``Stage.build``.

    The classifier of a ``new`` run is initialised; a resumed one takes that of its checkpoint.
    """
    set_seed(options.run.seed)  # after the data, because their check draws random numbers unless it is remembered
    rules = MetricRules.of(options.evaluation, data.distribution, options.run.seed)
    cosine = build.cosine_scale(options.model, options.loss.loss)
    model, model_args = build.build_model(options.model, data.distribution.num_classes, cosine)
    apply_finetuning(options.finetune, model)
    final = check_second_stage(options, data, model) if options.second_stage.stage2 else model
    if options.posthoc.posthoc:
        check_posthoc_classifier(options.posthoc, final)
    config = build.data_config(options.model, model)
    build.check_forward(options.model, model, config['input_size'], options.data.batch_size)
    pipeline = InputPipeline(options.data, options.augmentation, config, accelerator, options.run.seed)
    pipeline.evaluation(data.test, rules.tta)  # refused here rather than after training
    stage = Stage(options, accelerator, folder, data, pipeline, rules)
    if new and not options.run.dry_run:
        initialize_classifier(stage, model)
    return Setup(stage, model, model_args, finetuning_facts(options.finetune, model))


def _write_head(options: Options, stage: Stage) -> None:
    """Write the files that a run folder holds from the start."""
    stage.folder.write_args(options)
    stage.folder.write_distribution(stage.data.distribution)
    stage.folder.write_parts(stage.data.members)
    if options.run.tracker:
        stage.accelerator.project_configuration.logging_dir = str(stage.folder.path)
        stage.accelerator.init_trackers(options.run.wandb_project or 'timm_lt')


def _evaluate_and_write(
        options: Options, setup: Setup, objective: NetworkObjective, trainer: Trainer) -> dict[str, Any]:
    """Second stage, correction and metrics of a trained model; writes weights, metrics and predictions."""
    stage = setup.stage
    folder, (first, variants) = stage.folder, results_of(stage, objective, trainer)
    metrics = method_facts(options) | setup.tuning | final_metrics(stage.rules, first, stage.data, stage.accelerator)
    metrics |= {'variants': variants} if variants else {}
    final, exported = first, first
    of_exported = metrics
    if options.second_stage.stage2:
        before = stage.validation_metric(first.model)
        second = run_second_stage(_second(options, stage), first.model)
        final = second.result
        warn_if_worse(stage, before, final.model)
        exported = final if second.exported is final.model else replace(first, model=second.exported)
        metrics = metrics_of_both(stage.rules, metrics, final, second.info)
        of_exported = metrics if exported is final else of_exported
    if options.posthoc.posthoc:
        places = [(folder, final, metrics)]
        if exported is not final:
            places = [(folder, exported, of_exported), (second_stage_folder(folder), final, metrics)]
        for place, result, entry in places:
            entry |= apply_posthoc(options.posthoc, stage, result, place)
    folder.write_predictions(final.logits, final.targets)
    folder.write_metrics(of_exported)  # the card of the model must not claim the metrics of another head
    try:
        folder.write_hub(exported.model, setup.model_args, stage.pipeline.config)
    finally:
        folder.write_metrics(metrics)
    return metrics


def _second(options: Options, first: Stage) -> Stage:
    """The second stage of a run: a fresh accelerator, because the first has registered its own objects."""
    accelerator = make_accelerator(options.run, options.model.sync_bn)
    return replace(
        first, accelerator=accelerator, folder=second_stage_folder(first.folder),
        pipeline=replace(first.pipeline, accelerator=accelerator))


def second_stage_folder(folder: RunFolder) -> RunFolder:
    """The folder of the second stage of a run."""
    return RunFolder(Path(folder.path) / 'stage2', folder.writes)


def _announce(options: Options, stage: Stage, trainer: Trainer) -> None:
    """The first lines of a run."""
    accelerator, model, ema = stage.accelerator, trainer.learner.plain_model, trainer.learner.ema
    if not accelerator.is_main_process:
        return
    counts, processes = stage.data.distribution.counts, accelerator.num_processes
    _logger.info(
        '%d training images of %s in %d classes, %d in the largest and %d in the smallest\n'
        'network %s: %s parameters%s, %s memory format\n'
        'loss %s, optimizer %s, sampler %s\n'
        'device %s%s\n'
        'outputs: %s',
        counts.sum(), options.data.dataset or options.data.data_dir, len(counts), counts.max(), counts.min(),
        options.model.model, f'{sum(p.numel() for p in model.parameters()):,}', _trained_share(options, model),
        'channels-last' if is_channels_last(model) else 'contiguous', options.loss.loss, options.optimizer.opt,
        options.data.sampler, accelerator.device.type, f', {processes} processes' if processes > 1 else '',
        stage.folder.path)
    if short_run := general_instead_of_digits(options):
        _logger.info(
            '%s by name takes the general defaults; the run without options takes %s', options.data.dataset,
            short_run)
    if ema is not None and ema.use_warmup and not options.model.model_ema_warmup:
        updates = trainer.epochs * trainer.windows.updates_per_epoch
        _logger.info(
            '--model-ema warms up, because a decay of %g would keep %.0f%% of the initial weights after %d updates; it '
            'ends at %.4g', options.model.model_ema_decay, 100 * build.initial_share(options.model, updates), updates,
            ema.get_decay(updates))


def _trained_share(options: Options, model: nn.Module) -> str:
    facts = finetuning_facts(options.finetune, model)
    return f', {facts["num_tuned_parameters"]} of them trained ({facts["finetune"]})' if facts else ''


def _leave(accelerator: Accelerator) -> None:
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1 and accelerator.device.type == 'cpu':
        # gloo's threads outlive the group, because DistributedDataParallel holds it; they abort a process that exits
        # while a thread waits for the interpreter to free its last tensor
        time.sleep(0.1)
