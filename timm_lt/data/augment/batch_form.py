"""Which transforms of single images have a form for whole batches."""

import functools
from typing import Any

from timm.data import auto_augment as timm_policies
from torchvision import transforms

from .colour import BLUR_KERNEL
from .policies import AutoAugment, ColorJitter, RandomOperation, TrivialAugment
from .timm_policies import TimmAugMix, TimmAutoAugment, TimmRandAugment, has_batch_form


@functools.singledispatch
def batch_form(transform: Any) -> Any:
    """The step of :class:`BatchAugment` with the law of a transform of single images, or None where there is none."""
    return None


@batch_form.register
def _(transform: transforms.AutoAugment) -> AutoAugment:
    return AutoAugment(transform)


@batch_form.register
def _(transform: transforms.TrivialAugmentWide) -> TrivialAugment:
    return TrivialAugment(transform)


@batch_form.register
def _(transform: transforms.ColorJitter) -> ColorJitter:
    return ColorJitter(transform)


@batch_form.register
def _(transform: transforms.RandomGrayscale) -> RandomOperation:
    return RandomOperation('Grey', transform.p)


@batch_form.register
def _(transform: transforms.RandomApply) -> ColorJitter | RandomOperation | None:
    inner = transform.transforms[0]
    if isinstance(inner, transforms.ColorJitter):
        return ColorJitter(inner, transform.p)
    if isinstance(inner, transforms.GaussianBlur) and tuple(inner.kernel_size) == (BLUR_KERNEL,) * 2:
        return RandomOperation('Blur', transform.p, *inner.sigma)
    return None


@batch_form.register
def _(transform: timm_policies.AutoAugment) -> TimmAutoAugment | None:
    operations = [op for policy in transform.policy for op in policy]
    return TimmAutoAugment(transform) if has_batch_form(operations) else None


@batch_form.register
def _(transform: timm_policies.RandAugment) -> TimmRandAugment | None:
    return TimmRandAugment(transform) if has_batch_form(transform.ops) else None


@batch_form.register
def _(transform: timm_policies.AugMixAugment) -> TimmAugMix | None:
    simple = transform.alpha == 1 and not transform.blended
    return TimmAugMix(transform) if simple and has_batch_form(transform.ops) else None
