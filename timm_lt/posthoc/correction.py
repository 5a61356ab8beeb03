"""Old place of :class:`timm_lt.posthoc.PostHoc`."""

from .._moved import moved_to

__getattr__ = moved_to(__name__, 'timm_lt.posthoc')
