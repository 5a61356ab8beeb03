"""Options of what is minimised and how: loss, optimizer, schedule, correction, second stage."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._option import OptionGroup, option


@dataclass(frozen=True)
class LossOptions(OptionGroup):
    """The training loss."""
    title: ClassVar[str] = 'loss'

    loss: str = option('balanced_softmax', "training loss, see timm_lt.list_losses(), or timm's own, e.g. ce")
    loss_kwargs: dict[str, Any] = option({}, 'arguments of the loss')
    smoothing: float = option(0.0, 'label smoothing', within='[0, 1)')
    drw_epoch: int | None = option(
        None, 'epoch from which on classes are weighted, by --drw-rule', within='[0, inf)')
    drw_rule: str = option(
        'effective_number', 'weight of a class: inverse effective number (DRW), or share of the images to the power '
        'of -P (ADRW)', choices=('effective_number', 'prior_power'))
    drw_beta: float = option(0.9999, 'beta of the effective number', within='[0, 1)')
    drw_power: float = option(0.15, 'P of prior_power', within='[0, inf)')


@dataclass(frozen=True)
class OptimizerOptions(OptionGroup):
    """The optimizer and what is done to gradients."""
    title: ClassVar[str] = 'optimizer'

    opt: str = option('sgd', 'any optimizer of timm, or of timm_lt.list_optimizers()')
    opt_kwargs: dict[str, Any] = option({}, 'arguments of the optimizer')
    opt_eps: float | None = option(None, "epsilon; None: the optimizer's", within='[0, inf)')
    opt_betas: list[float] | None = option(
        None, "decay rates of the moments; None: the optimizer's", nargs='+', within='[0, 1)')
    momentum: float = option(0.9, 'momentum', within='[0, 1)')
    weight_decay: float = option(5e-4, 'weight decay', within='[0, inf)')
    filter_bias_and_bn: bool = option(True, 'no weight decay on biases and norms')
    layer_decay: float | None = option(
        None, 'factor on the learning rate from one layer to the layer below', within='(0, 1]')
    layer_decay_min_scale: float = option(0.0, 'smallest such factor of a layer', within='[0, 1]')
    layer_decay_no_opt_scale: float | None = option(
        None, 'freeze layers whose factor is below this', within='[0, 1]')
    clip_grad: float | None = option(None, 'largest norm (--clip-mode) of the gradients', within='(0, inf)')
    clip_mode: str = option('norm', 'clip the norm, each value, or adaptively', choices=('norm', 'value', 'agc'))
    grad_accum_steps: int = option(1, 'micro-batches of a step', within='[1, inf)')

    @property
    def method(self) -> str:
        """The optimizer's registered name, without wrappers such as ``lookahead_``."""
        return self.opt.lower().split('_')[-1]


@dataclass(frozen=True)
class GKPOptions(OptionGroup):
    """Grouped knowledge preservation, with ``--opt gsa``."""
    title: ClassVar[str] = 'GKP'

    gkp: bool = option(False, 'group classes by a memory bank, preserve what it holds; with --opt gsa')
    gkp_kwargs: dict[str, Any] = option(
        {}, 'options of timm_lt.gkp.GKP: num_groups=4 regroup_every=10 strength=100 ...')
    gkp_source: str = option(
        'train', 'part whose images (evaluation transform) tell the quality of a class',
        choices=('train', 'validation'))
    gkp_images: int | None = option(
        None, 'such images of each class, at most; None: as many as make a tenth of the training images',
        within='[1, inf)')


@dataclass(frozen=True)
class ScheduleOptions(OptionGroup):
    """Epochs and learning rate."""
    title: ClassVar[str] = 'schedule'

    epochs: int = option(100, 'epochs of training; 0 with --stage2 starts it on the given checkpoint',
                         within='[0, inf)')
    patience: int = option(
        0, 'stop after so many epochs without a better validation metric (--eval-metric); 0: never',
        within='[0, inf)')
    sched: str = option('cosine', "one of timm's schedules: cosine, tanh, step, multistep, poly, plateau, wsd, ...")
    sched_on_updates: bool = option(False, 'change the learning rate at each step')
    lr: float | None = option(None, 'learning rate; None: --lr-base for a batch of 256, scaled', within='[0, inf)')
    lr_base: float = option(0.1, 'learning rate of a batch of --lr-base-size images', within='[0, inf)')
    lr_base_size: int = option(256, 'batch that --lr-base is meant for', within='[1, inf)')
    lr_base_scale: str = option(
        '', 'growth of the learning rate with the batch; empty: sqrt for adaptive optimizers, else linear',
        choices=('', 'linear', 'sqrt'))
    lr_noise: list[float] | None = option(
        None, 'shares of the epochs from which on, and up to which, the learning rate is noisy', nargs='+',
        within='[0, 1]')
    lr_noise_pct: float = option(0.67, 'limit of the noise, as a share of the learning rate', within='[0, inf)')
    lr_noise_std: float = option(1.0, 'standard deviation of the noise', within='[0, inf)')
    lr_cycle_mul: float = option(1.0, 'factor on the length of a cycle', within='(0, inf)')
    lr_cycle_decay: float = option(0.5, 'factor on the learning rate of a cycle', within='[0, inf)')
    lr_cycle_limit: int = option(1, 'number of cycles of cosine, tanh and poly', within='[1, inf)')
    lr_k_decay: float = option(1.0, 'k-decay of cosine and poly', within='(0, inf)')
    lr_decay_fn: str | None = option(None, "decay of wsd and rsqrt; None: the schedule's")
    lr_stable_timescale: float | None = option(
        None, 'timescale of rsqrt in epochs; None: --warmup-epochs', within='(0, inf)')
    warmup_lr: float = option(1e-5, 'learning rate at the start of the warm-up', within='[0, inf)')
    min_lr: float = option(0.0, 'learning rate at the end', within='[0, inf)')
    warmup_epochs: int = option(5, 'epochs of warm-up', within='[0, inf)')
    warmup_prefix: bool = option(False, 'count the warm-up apart from --epochs')
    cooldown_epochs: int = option(0, 'epochs at --min-lr after the schedule', within='[0, inf)')
    patience_epochs: int = option(
        10, 'epochs without a better validation metric before plateau lowers the learning rate', within='[0, inf)')
    decay_epochs: float = option(90, 'epochs between the steps of step; length of the decay of wsd', within='(0, inf)')
    decay_milestones: list[int] = option([160, 180], 'epochs of the steps of multistep', nargs='+', within='[0, inf)')
    decay_rate: float = option(
        0.1, 'factor of step, multistep and plateau; power of poly', '--dr', within='[0, inf)')


@dataclass(frozen=True)
class PosthocOptions(OptionGroup):
    """Correction of the logits after training."""
    title: ClassVar[str] = 'post-hoc correction'

    posthoc: str | None = option(
        None, "'rebalance', 'logit_adjust', 'tau_normalize' or 'temperature': kept beside the model, its metrics are "
        'reported beside those without')
    posthoc_kwargs: dict[str, Any] = option(
        {}, 'tau=1.0 (absent: chosen on the validation part, else 1); rebalance also transductive=True')


@dataclass(frozen=True)
class SecondStageOptions(OptionGroup):
    """A second stage that trains or fits the classifier."""
    title: ClassVar[str] = 'second stage'

    stage2: str | None = option(
        None, 'classifier method after the epochs, see timm_lt.two_stage.list_second_stages(); --epochs 0 starts it on '
        'the given checkpoint')
    stage2_kwargs: dict[str, Any] = option({}, 'arguments of the method')
    stage2_epochs: int | None = option(None, "epochs; None: the method's", within='[1, inf)')
    stage2_lr: float | None = option(None, "learning rate; None: the method's", within='[0, inf)')
    stage2_sampler: str | None = option(None, "sampler; None: the method's")
    stage2_loss: str | None = option(None, "loss; None: the method's")
    stage2_cache_features: bool | None = option(
        None, 'compute features once, under the evaluation transform, or that of training with --no-aug; None: only '
        'with --no-aug')
