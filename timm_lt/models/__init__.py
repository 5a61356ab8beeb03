"""Networks of the long-tailed CIFAR literature and the cosine classifier, registered into timm."""

from .._registry import import_siblings

__all__ = [*import_siblings(__name__)]
