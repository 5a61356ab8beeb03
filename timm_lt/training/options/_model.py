"""Options of the network and of the moving average of its weights."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._data import INTERPOLATIONS
from ._option import OptionGroup, option


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    """The network, its input and how it is executed."""
    title: ClassVar[str] = 'model'

    model: str | None = option(
        None, 'any model of timm; None: resnet20_cifar for images of at most 64 pixels a side, else resnet18')
    model_kwargs: dict[str, Any] = option({}, "arguments of timm's create_model")
    experts: int | None = option(
        None, 'copies of the last stage and classifier of a ResNet, whose logits are averaged; with --loss balpoe',
        within='[1, inf)')
    pretrained: bool = option(False, 'start with the published weights')
    initial_checkpoint: str = option('', 'weights to start from', metavar='FILE')
    cosine_classifier: bool | None = option(
        None, 'normalise features and class weights; None: where the loss is defined on cosines')
    cosine_scale: float | None = option(
        None, 'factor on the cosines, with --cosine-classifier; None: 16, or 1 for a loss that has its own',
        within='(0, inf)')
    gp: str | None = option(None, "global pooling, e.g. avg, max, avgmax; None: the model's", metavar='POOL')
    drop: float = option(0.0, 'dropout rate', within='[0, 1)')
    drop_path: float | None = option(None, 'stochastic depth rate', within='[0, 1)')
    drop_block: float | None = option(None, 'DropBlock rate, of the models that have it', within='[0, 1)')
    head_init_scale: float | None = option(None, 'factor on the initial weights of the classifier', within='(0, inf)')
    head_init_bias: float | None = option(None, 'initial bias of the classifier', within='(-inf, inf)')
    bn_momentum: float | None = option(
        None, "share of a batch in BatchNorm's running statistics; None: the model's", within='(0, 1]')
    bn_eps: float | None = option(
        None, "BatchNorm's epsilon, of the models that take it; None: the model's", within='(0, inf)')
    input_size: list[int] | None = option(
        None, "channels, height and width of the input; None: the model's", nargs=3, metavar=('C', 'H', 'W'),
        within='[1, inf)')
    img_size: int | None = option(None, "height and width of the input; None: the model's", within='[1, inf)')
    in_chans: int | None = option(None, 'channels of the input, 1 or 3; None: 3', within='[1, inf)')
    crop_pct: float | None = option(
        None, "share of the resized image that evaluation keeps; None: the model's", within='(0, 1]')
    mean: list[float] | None = option(
        None, "mean of each channel of the images in [0, 1]; None: the model's", nargs='+', within='[0, 1]')
    std: list[float] | None = option(
        None, "standard deviation of each channel; None: the model's", nargs='+', within='(0, inf)')
    interpolation: str = option(
        '', "resampling of resized images; empty: the model's", choices=('', *INTERPOLATIONS))
    channels_last: bool | None = option(
        None, 'keep the channels of a pixel together in memory; None or auto: where that is faster')
    grad_checkpointing: bool = option(False, 'compute activations a second time in place of keeping them')
    torchcompile: str | None = option(
        None, 'compile the network by torch.compile', nargs='?', const='inductor', metavar='BACKEND')
    torchcompile_mode: str | None = option(
        None, "mode of torch.compile, e.g. reduce-overhead or max-autotune; None: torch's default")
    sync_bn: bool = option(False, 'BatchNorm over all processes (GPU)')
    model_ema: bool = option(False, 'report the moving average of the weights')
    model_ema_decay: float = option(0.9998, 'decay of the moving average', within='[0, 1)')
    model_ema_warmup: bool = option(False, 'let the decay grow to its value, as it does by itself in a short run')
    average_last: int = option(
        0, 'also average the weights of so many last epochs, with BatchNorm statistics renewed: reported beside the '
        'single model, exported where the validation part prefers it; 0: none', within='[0, inf)', metavar='K')
    average_export: bool = option(False, 'report and export the average of --average-last whatever validation says')
