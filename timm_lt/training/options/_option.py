"""One option: a dataclass field that knows its flag, its help text, its range and its YAML form."""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._private_options import PRIVATE_OPTIONS
from ..errors import ConfigError


@dataclass(frozen=True)
class Interval:
    """Allowed values of a number, e.g. ``Interval.parse('[0, 1)')``.

    Attributes:
        low: Lower end.
        high: Upper end, perhaps infinite.
        low_open: The lower end itself is not allowed.
        high_open: The upper end itself is not allowed.
    """
    low: float
    high: float
    low_open: bool
    high_open: bool

    @classmethod
    def parse(cls, text: str) -> 'Interval':
        low, high = text[1:-1].split(',')
        return cls(float(low), float(high), text[0] == '(', text[-1] == ')')

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return 'finite' if math.isinf(self.low) else f'{">" if self.low_open else ">="} {self.low:g}'
        high = '2**32 - 1' if self.high == 2 ** 32 - 1 else f'{self.high:g}'
        return f'in {"(" if self.low_open else "["}{self.low:g}, {high}{")" if self.high_open else "]"}'


@dataclass(frozen=True)
class OptionGroup:
    """Base of the groups; ``title`` heads its section of the help and of the table of options."""
    title: typing.ClassVar[str]


@dataclass(frozen=True)
class OptionInfo:
    """The declaration of one option.

    Attributes:
        name: Field, YAML key, and flag with dashes in place of underscores.
        group: Title of its group.
        type: Type of one value: ``bool``, ``int``, ``float``, ``str`` or ``dict``.
        default: Value where nothing is given.
        help: Its meaning.
        within: Range of a number, or of each number of a list.
        choices: Allowed values; None: any.
        nargs: As in argparse; None: one value.
        const: Value of the flag without a value (``nargs='?'``).
        flags: Further option strings, e.g. ``-b``.
        metavar: Placeholder of the value in the help.
        file_only: It has no flag; YAML files alone hold it.
        hint: Probable meaning of a number outside the range, for the message.
    """
    name: str
    group: str
    type: type
    default: Any
    help: str
    within: Interval | None = None
    choices: tuple | None = None
    nargs: int | str | None = None
    const: Any = None
    flags: tuple[str, ...] = ()
    metavar: str | tuple[str, ...] | None = None
    file_only: bool = False
    hint: str = ''

    @property
    def flag(self) -> str:
        return '--' + self.name.replace('_', '-')

    @property
    def defines_run(self) -> bool:
        """Two runs that differ in it are different runs."""
        return self.name not in PRIVATE_OPTIONS and not self.file_only

    @property
    def many(self) -> bool:
        """Its value is a list."""
        return self.nargs in ('+', '*') or isinstance(self.nargs, int)

    def check_range(self, value: Any) -> None:
        """Raise a ConfigError for a number outside the range; None is always allowed."""
        if self.within is None or value is None:
            return
        for number in value if self.many else [value]:
            if number not in self.within:
                each = 'each value of ' if self.many else ''
                hint = f'; {self.hint}' if self.hint else ''
                raise ConfigError(f'{each}{self.flag} must be {self.within}, got {number}{hint}')

    def from_yaml(self, value: Any, where: str) -> Any:
        """A YAML value as the command line would give it (YAML reads 1e-3 as text).

        Args:
            value: As the YAML library reads it; None means the default.
            where: File, for the message.

        Raises:
            ConfigError: If the value is of another kind.
        """
        where = f'{where}: {self.name}'
        if value is None:
            return copy.copy(self.default)
        if self.type is bool:
            if value == 'auto' and self.default is None:
                return None
            if not isinstance(value, bool):
                raise ConfigError(f'{where} must be true or false, got {value!r}')
            return value
        if self.type is dict:
            if not isinstance(value, dict):
                raise ConfigError(f'{where} must hold `key: value` pairs, got {value!r}')
            return value
        values = list(value) if self.many and isinstance(value, (list, tuple)) else value if self.many else [value]
        if not isinstance(values, list):
            raise ConfigError(f'{where} must be a list, got {value!r}')
        values = [self._converted(v, value, where) for v in values]
        if isinstance(self.nargs, int) and len(values) != self.nargs:
            raise ConfigError(f'{where} needs {self.nargs} values, got {value!r}')
        return values if self.many else values[0]

    def _converted(self, value: Any, given: Any, where: str) -> Any:
        try:
            converted = self.type(value)
            if isinstance(value, (list, dict)) or self.type is not str and isinstance(value, bool) or (
                    self.type is int and converted != float(value)):
                raise ValueError
        except (TypeError, ValueError):
            raise ConfigError(f'{where} must be {self.type.__name__}, got {given!r}') from None
        if self.choices is not None and converted not in self.choices:
            raise ConfigError(f'{where} must be one of {list(self.choices)}, got {converted!r}')
        return converted


def option(
        default: Any,
        help: str,
        *flags: str,
        within: str | None = None,
        choices: Sequence[Any] | None = None,
        nargs: int | str | None = None,
        const: Any = None,
        metavar: str | tuple[str, ...] | None = None,
        file_only: bool = False,
        hint: str = '',
) -> Any:
    """A dataclass field that is an option of the script. Its annotation is the type of the value.

    Args:
        default: Value where nothing is given.
        help: Its meaning, for ``--help`` and the table of options.
        *flags: Further option strings beside ``--name-with-dashes``.
        within: Range of a number, as ``'[0, 1)'``.
        choices: Allowed values.
        nargs: As in argparse.
        const: As in argparse, with ``nargs='?'``.
        metavar: As in argparse.
        file_only: Only YAML files may hold it.
        hint: Probable meaning of a number outside the range.
    """
    declared = {
        'help': help, 'flags': flags, 'within': None if within is None else Interval.parse(within),
        'choices': None if choices is None else tuple(choices), 'nargs': nargs, 'const': const, 'metavar': metavar,
        'file_only': file_only, 'hint': hint}
    return dataclasses.field(default_factory=lambda: copy.copy(default), metadata={'option': declared})


def declared_options(group: type[OptionGroup]) -> list[OptionInfo]:
    """The options of a group, in the order of its fields."""
    hints, defaults = typing.get_type_hints(group), group()
    return [
        OptionInfo(
            name=field.name, group=group.title, type=_value_type(hints[field.name]),
            default=getattr(defaults, field.name), **field.metadata['option'])
        for field in dataclasses.fields(defaults)]


def _value_type(annotation: Any) -> type:
    """``float`` of ``float | None`` and of ``list[float]``, ``dict`` of ``dict[str, Any]``."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    origin = typing.get_origin(annotation)
    if origin is list:
        return typing.get_args(annotation)[0]
    return origin or annotation
