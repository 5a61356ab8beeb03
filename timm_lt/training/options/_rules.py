"""Options that have no meaning together, as one table, and values that follow from others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..._registry import LOSSES
from ...class_distribution import SPLIT_RULES, parse_split_thresholds
from ..errors import ConfigError
from ._composed import OPTIONS, Options


@dataclass(frozen=True)
class Rule:
    """A combination that no run can use.

    Attributes:
        broken: True for options that break the rule.
        message: The rule and the remedy; ``{name}`` is replaced by the value of an option.
    """
    broken: Callable[[Options], Any]
    message: str


def _has_validation(o: Options) -> bool:
    return bool(o.data.val_split or o.data.val_fraction)


def _unordered(*pairs: list[float] | None) -> bool:
    return any(pair is not None and pair[0] > pair[1] for pair in pairs)


def _base_optimizer(o: Options) -> Any:
    """timm's record of the optimizer that updates the weights, or None where there is no such name."""
    from timm.optim import get_optimizer_info

    from ..._registry import OPTIMIZERS
    name = o.optimizer.method
    if name in OPTIMIZERS:
        name = str(o.optimizer.opt_kwargs.get('base', 'momentum')).lower().split('_')[-1]
    try:
        return get_optimizer_info(name)
    except ValueError:
        return None


def _ignores_betas(o: Options) -> bool:
    info = _base_optimizer(o)
    return o.optimizer.opt_betas is not None and info is not None and not info.has_betas


def _wrong_number_of_betas(o: Options) -> bool:
    info = _base_optimizer(o)
    return o.optimizer.opt_betas is not None and info is not None and len(o.optimizer.opt_betas) != info.num_betas


def _ignores_eps(o: Options) -> bool:
    info = _base_optimizer(o)
    return o.optimizer.opt_eps is not None and info is not None and not info.has_eps


def _leaves_output(o: Options) -> bool:
    path = PurePath(o.run.experiment)
    return path.is_absolute() or '..' in path.parts or o.run.experiment == '.'


RULES = (
    Rule(lambda o: o.schedule.epochs == 0 and not o.second_stage.stage2,
         '--epochs must be >= 1, got 0; only --stage2 starts on a given checkpoint without an epoch'),
    Rule(lambda o: o.data.val_fraction and o.data.val_split,
         '--val-split and --val-fraction both name a validation part; give one'),
    Rule(lambda o: o.schedule.sched == 'plateau' and not _has_validation(o),
         '--sched plateau follows the validation part: name one by --val-split, or cut it by --val-fraction 0.1'),
    Rule(lambda o: o.evaluation.eval_metric != 'top1' and not _has_validation(o),
         '--eval-metric chooses by the validation part: name one by --val-split, or cut it by --val-fraction 0.1'),
    Rule(lambda o: o.schedule.patience and not _has_validation(o),
         '--patience follows the validation part: name one by --val-split, or cut it by --val-fraction 0.1'),
    Rule(lambda o: o.model.average_last > o.schedule.epochs,
         '--average-last {average_last} averages more epochs than --epochs {epochs} trains'),
    Rule(lambda o: o.model.average_last and o.schedule.patience,
         '--average-last averages the last epochs, which --patience does not know before it stops; give one'),
    Rule(lambda o: o.model.average_export and not o.model.average_last,
         '--average-export is of --average-last K, which is not given'),
    Rule(lambda o: o.data.bad_images == 'skip' and not o.data.check_images,
         '--bad-images skip needs the check of the images: leave out --no-check-images'),
    Rule(lambda o: o.model.experts and o.loss.loss != 'balpoe',
         '--experts {experts} needs the loss of each expert: give --loss balpoe, got --loss {loss}'),
    Rule(lambda o: (o.model.experts or o.loss.loss == 'balpoe') and (
             o.second_stage.stage2 or o.gkp.gkp or o.posthoc.posthoc == 'tau_normalize'),
         '--stage2, --gkp and --posthoc tau_normalize need one classifier, and experts have several; leave them out'),
    Rule(lambda o: o.augmentation.aug_splits == 1, '--aug-splits must be 0 or >= 2, got 1'),
    Rule(lambda o: bool(o.augmentation.aug_splits) != (o.loss.loss == 'jsd'),
         '--loss jsd compares the splits of an image, and no other loss takes them: give both --loss jsd and '
         '--aug-splits 3, or neither; got --loss {loss} and --aug-splits {aug_splits}'),
    Rule(lambda o: o.augmentation.aug_splits and not o.augmentation.colours,
         '--aug-splits needs an augmentation of the copies: give --aa augmix-m3-w3, or --color-jitter 0.4'),
    Rule(lambda o: o.augmentation.aug_splits and (
             o.augmentation.mixes or o.augmentation.cutout or o.augmentation.reprob),
         '--aug-splits keeps its first split clean: leave out --mix, --mixup, --cutmix, --cutout and --reprob'),
    Rule(lambda o: o.augmentation.aug_splits and o.finetune.probes,
         '--aug-splits needs images, and --finetune {finetune} trains on kept features; leave one of the two out'),
    Rule(lambda o: o.augmentation.mix and o.augmentation.mixup_or_cutmix,
         '--mix {mix} and --mixup or --cutmix both mix the images of a batch; give one'),
    Rule(lambda o: o.augmentation.mix_kwargs and not o.augmentation.mix,
         '--mix-kwargs are of --mix NAME, which is not given'),
    Rule(lambda o: o.augmentation.mixup_or_cutmix and o.data.batch_size % 2,
         'Mixup and CutMix pair images of a batch: --batch-size must be even, got {batch_size}'),
    Rule(lambda o: _unordered(o.augmentation.scale, o.augmentation.ratio, o.augmentation.cutmix_minmax),
         '--scale, --ratio and --cutmix-minmax take the smaller value first, got {scale}, {ratio} and {cutmix_minmax}'),
    Rule(lambda o: max(o.augmentation.scale or [1]) > 1 and o.augmentation.train_crop_mode not in ('rkrc', 'rkrr'),
         '--scale is the share of the image that a crop keeps, so <= 1 unless --train-crop-mode is rkrc or rkrr, '
         'got {scale}'),
    Rule(lambda o: o.augmentation.color_jitter_prob is not None and not o.augmentation.color_jitter,
         '--color-jitter-prob is of --color-jitter, which is off; give its strength, e.g. --color-jitter 0.4'),
    Rule(lambda o: sorted(set(o.schedule.decay_milestones)) != list(o.schedule.decay_milestones),
         '--decay-milestones must increase, got {decay_milestones}'),
    Rule(lambda o: len(o.schedule.lr_noise or [0]) > 2,
         '--lr-noise takes one or two values, got {lr_noise}'),
    Rule(_ignores_betas, '--opt {opt} has no betas, so --opt-betas would be ignored; leave it out'),
    Rule(_wrong_number_of_betas, '--opt {opt} has another number of betas than --opt-betas gives: {opt_betas}'),
    Rule(_ignores_eps, '--opt {opt} has no epsilon, so --opt-eps would be ignored; leave it out'),
    Rule(lambda o: o.gkp.gkp and o.optimizer.method != 'gsa',
         '--gkp needs --opt gsa (with --opt-kwargs Z=0 the loss is not perturbed: GKP alone)'),
    Rule(lambda o: o.gkp.gkp and o.gkp.gkp_source == 'validation' and not _has_validation(o),
         '--gkp-source validation needs a validation part: --val-split or --val-fraction'),
    Rule(lambda o: o.data.images_per_class is not None and o.data.imbalance_ratio is None,
         '--images-per-class is the largest class of a long-tailed subset: give --imbalance-ratio too'),
    Rule(lambda o: not o.hub.push_to_hub and (o.hub.private or o.hub.revision),
         '--private and --revision are of --push-to-hub USER/NAME, which is not given'),
    Rule(lambda o: o.run.amp and o.run.mixed_precision is not None,
         '--amp and --mixed-precision {mixed_precision} both name the precision; give one'),
    Rule(lambda o: o.run.amp_dtype and not o.run.amp, '--amp-dtype is of --amp, which is not given'),
    Rule(lambda o: o.run.log_wandb and o.run.log_with not in (None, 'wandb'),
         '--log-wandb and --log-with {log_with} name different trackers; give one'),
    Rule(lambda o: o.run.wandb_project and o.run.tracker != 'wandb',
         '--wandb-project is of --log-wandb, which is not given'),
    Rule(lambda o: o.model.torchcompile_mode and not o.model.torchcompile,
         '--torchcompile-mode is of --torchcompile, which is not given'),
    # the eager backends keep BatchNorm's counter for the second forward pass, and the first has changed it in place:
    # torch refuses the backward pass; backends on AOTAutograd (inductor, aot_eager) treat the counter as an output
    Rule(lambda o: o.model.grad_checkpointing and (o.model.torchcompile or '').startswith('eager'),
         '--grad-checkpointing does not work with --torchcompile {torchcompile}, which keeps tensors that BatchNorm '
         'changes in place; use --torchcompile inductor or aot_eager, or leave one of the two out'),
    Rule(lambda o: o.model.cosine_scale is not None and o.model.cosine_classifier is not True,
         '--cosine-scale is of --cosine-classifier, which is not given'),
    Rule(lambda o: o.finetune.finetune_kwargs and o.finetune.finetune is None,
         '--finetune-kwargs are of --finetune METHOD, which is not given'),
    Rule(lambda o: (o.finetune.feature_copies or o.finetune.feature_file) and not o.finetune.probes,
         '--feature-copies and --feature-file are of --finetune head, which is not given'),
    Rule(lambda o: o.finetune.feature_copies and o.augmentation.no_aug,
         '--feature-copies makes augmented copies, which --no-aug rules out; leave one of the two out'),
    Rule(lambda o: o.finetune.finetune not in (None, 'full') and o.model.sync_bn,
         '--sync-bn has no effect on frozen BatchNorm layers, which --finetune {finetune} leaves; leave it out'),
    Rule(lambda o: o.finetune.probes and (o.augmentation.mixes or o.augmentation.aug_repeats > 1),
         '--finetune head trains on features of single images: leave out --mixup, --cutmix and --aug-repeats '
         '(--feature-copies K computes K augmented copies)'),
    Rule(lambda o: o.finetune.probes and (o.gkp.gkp or o.optimizer.layer_decay is not None),
         '--finetune head trains one layer, so --gkp and --layer-decay have no meaning; leave them out'),
    Rule(lambda o: o.finetune.probes and LOSSES.trait(o.loss.loss, 'views', 1) > 1,
         '--finetune head has one view of an image, and --loss {loss} compares several; choose another loss'),
    Rule(_leaves_output, '--experiment names a folder inside --output, got {experiment!r}'),
    Rule(lambda o: o.model.in_chans and o.model.input_size and o.model.in_chans != o.model.input_size[0],
         '--in-chans {in_chans} and --input-size {input_size} name different channels; give one'),
)


def check_options(options: Options) -> None:
    """Raise a ConfigError for a value outside its range, or for options that no run can use together."""
    values = options.flat()
    for name, info in OPTIONS.items():
        info.check_range(values[name])
    for rule in RULES:
        if rule.broken(options):
            raise ConfigError(rule.message.format_map(values))
    if options.second_stage.stage2 is None:  # the empty name switches off what a file asks for
        given = [n for n in values if n.startswith('stage2_') and values[n] != OPTIONS[n].default]
        if given:
            raise ConfigError(f'{OPTIONS[given[0]].flag} is of the second stage: name one by --stage2, or leave it out')
    _check_split_rule(options.evaluation.split_rule)
    if options.hub.push_to_hub:
        _check_repo_id(options.hub.push_to_hub)


def _check_split_rule(rule: str) -> None:
    if rule not in ('auto', 'thirds', *SPLIT_RULES):
        try:
            parse_split_thresholds(rule)
        except ValueError as e:
            raise ConfigError(f"--split-rule: {e}, or 'auto'") from e


def _check_repo_id(repo_id: str) -> None:
    from ...hub import HubError, check_repo_id
    try:
        check_repo_id(repo_id)
    except HubError as e:
        raise ConfigError(f'--push-to-hub: {e}') from e


def settled(options: Options) -> Options:
    """The options with values that follow from others: a warm-up never takes the whole of a short run."""
    schedule = options.schedule
    if schedule.epochs <= 1:
        return options.replace(warmup_epochs=0)
    if schedule.warmup_epochs >= schedule.epochs:
        return options.replace(warmup_epochs=schedule.epochs // 5)
    return options
