"""The one error of this subpackage."""

__all__ = ['HubError']


class HubError(RuntimeError):
    """A checkpoint that cannot be loaded, uploaded or downloaded; the message says why, what is kept, what to do."""
