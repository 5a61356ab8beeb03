"""Options of the run: metrics, precision, folders, the Hub, and the notes of a recipe."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._option import OptionGroup, option


@dataclass(frozen=True)
class EvaluationOptions(OptionGroup):
    """The reported metrics."""
    title: ClassVar[str] = 'evaluation'

    split_rule: str = option(
        'auto', "many / medium / few: 'gt100_lt20', 'ge100_le20', 'thirds', 'MANY,FEW', or 'auto': gt100_lt20 where "
        'some class has fewer than 20 images, else thirds')
    eval_metric: str = option(
        'top1', 'metric of the validation part that chooses the best epoch',
        choices=(
            'top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'macro_f1', 'worst_class'))
    tta: int = option(
        0, 'views of an image whose logits are averaged in evaluation: 2 the image and its mirror image, 5 crops of '
        'corners and centre (--crop-pct below 1), 10 these and their mirror images', choices=(0, 1, 2, 5, 10))
    bootstrap: int = option(0, 'resamples for confidence intervals; 0: none', within='[0, inf)')


@dataclass(frozen=True)
class RunOptions(OptionGroup):
    """Seed, precision, folder, checkpoints and logs."""
    title: ClassVar[str] = 'run'

    seed: int = option(42, 'seed of weights, order and augmentation', within='[0, 4294967295]')
    mixed_precision: str | None = option(
        None, 'precision of the forward pass; None: as accelerate is configured', choices=('no', 'fp16', 'bf16'))
    amp: bool = option(False, 'mixed precision in --amp-dtype')
    amp_dtype: str | None = option(
        None, 'type of --amp; None: bfloat16 on a CPU, else float16', choices=('float16', 'bfloat16'))
    device: str = option('', "'cpu', or a kind of accelerator such as 'cuda'; empty: as accelerate finds it")
    output: str = option('output', 'folder of all runs', metavar='DIR')
    experiment: str = option('', 'folder of the run; empty: named after its options', metavar='NAME')
    resume: str = option(
        '', "'auto': go on where this run's folder ends, or start it; DIR: the folder of a run", metavar='auto|DIR')
    checkpoint_every: int = option(1, 'epochs between checkpoints', within='[1, inf)')
    checkpoint_steps: int = option(
        0, 'also every so many steps; 0: only at epochs', '--recovery-interval', within='[0, inf)')
    checkpoint_hist: int = option(
        0, 'also keep the checkpoints of so many epochs: the best by --eval-metric, or the newest without a '
        'validation part', within='[0, inf)')
    log_interval: int = option(50, 'steps between updates of the progress line', within='[1, inf)')
    log_with: str | None = option(None, 'tracker of Accelerate, e.g. tensorboard')
    log_wandb: bool = option(False, 'same as --log-with wandb')
    wandb_project: str | None = option(None, 'project of Weights & Biases; None: timm_lt')
    dry_run: bool = option(
        False, 'print counts, parts, shapes, options, time and memory of a step, then stop; nothing is written')
    quiet: bool = option(False, 'no progress lines')

    @property
    def tracker(self) -> str | None:
        """Name of the tracker, as Accelerate knows it."""
        return 'wandb' if self.log_wandb else self.log_with

    def precision(self, on_cpu: bool) -> str | None:
        """Accelerate's name of the precision: 'fp16', 'bf16', 'no', or None for the one it is configured with."""
        if not self.amp:
            return self.mixed_precision
        dtype = self.amp_dtype or ('bfloat16' if on_cpu else 'float16')
        return {'float16': 'fp16', 'bfloat16': 'bf16'}[dtype]


@dataclass(frozen=True)
class HubOptions(OptionGroup):
    """Upload of the finished checkpoint."""
    title: ClassVar[str] = 'Hugging Face Hub'

    push_to_hub: str | None = option(None, 'upload the finished checkpoint', metavar='USER/NAME')
    private: bool = option(False, 'make a new repository private')
    revision: str | None = option(None, 'branch on the Hub; made if it does not exist')


@dataclass(frozen=True)
class RecipeNotes(OptionGroup):
    """Notes of a recipe about itself. Training ignores them; the model card shows them."""
    title: ClassVar[str] = 'notes of a recipe'

    published: dict[str, Any] | None = option(None, 'published result that the recipe aims at', file_only=True)
    hub: dict[str, Any] | None = option(None, 'title, licence, tags and dataset of the model card', file_only=True)
