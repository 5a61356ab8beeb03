"""Augmentation of whole uint8 batches, on the device of the images: crops, policies, colour, erasing."""

from ..._registry import import_siblings

__all__ = [*import_siblings(__name__)]
