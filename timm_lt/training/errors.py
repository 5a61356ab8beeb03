"""Errors of a run that a user can mend, and errors of other libraries on one line."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which option and what is allowed."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


def one_line(error: BaseException, most: int = 300) -> str:
    """The text of an error of another library, on one line; its kind where it has no text."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f'{text[:most]} ...'
