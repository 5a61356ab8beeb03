"""Augmentation of whole uint8 batches, on the device of the images: crops, policies, colour, erasing."""

from .batch import BatchAugment

__all__ = ['BatchAugment']
