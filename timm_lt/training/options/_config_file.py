"""Options in YAML files: the recipes of ``--config`` and the ``args.yaml`` of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..._private_options import PRIVATE_OPTIONS, RECIPE_NOTES
from ..._validate import nearest_names
from ..errors import ConfigError, one_line
from ._composed import OPTIONS, Options
from ._recipes import find_recipe
from ._timm_names import refusal


def load_config(path: str | Path) -> dict[str, Any]:
    """Options of a YAML file, each checked; ``base:`` names files (relative to this one) that come first.

    Args:
        path: The file, or the name of a recipe of the package.

    Raises:
        ConfigError: If the file is missing or no mapping, or a key or value is not known.
    """
    return _load(find_recipe(path), ())


def _load(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    content = _read(path)
    if path.resolve() in including:
        raise ConfigError(f'config file {path} is its own base')
    bases = content.pop('base', None) or []
    options: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        options.update(_load(path.parent / str(base), (*including, path.resolve())))
    for key, value in content.items():
        if key in RECIPE_NOTES:
            options[key] = _checked_note(key, value, path)
        elif key in OPTIONS:
            options[key] = OPTIONS[key].from_yaml(value, f'config file {path}')
        elif instead := refusal('--' + str(key).replace('_', '-')):
            raise ConfigError(f'config file {path}: {instead}')
        else:
            raise ConfigError(f'config file {path}: unknown key {key!r}. {nearest_names(key, [*OPTIONS, "base"])}')
    return options


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except FileNotFoundError:
        raise ConfigError(f'config file {path} does not exist') from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f'config file {path} cannot be read: {e}') from e
    except yaml.YAMLError as e:
        raise ConfigError(f'config file {path} is not YAML: {e}') from e
    if not isinstance(content, dict):
        raise ConfigError(f'config file {path} must hold `key: value` lines, got {type(content).__name__}')
    return content


def _checked_note(key: str, value: Any, path: Path) -> dict[str, Any] | None:
    """A ``published:`` or ``hub:`` block; a published result needs its source."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f'config file {path}: {key} must hold `key: value` pairs, got {value!r}')
    for name in value:
        if name not in RECIPE_NOTES[key]:
            raise ConfigError(f'config file {path}: {key}.{name} is unknown. {nearest_names(name, RECIPE_NOTES[key])}')
    if key == 'published' and not value.get('source'):
        raise ConfigError(f'config file {path}: published needs a source, the paper and table of the result')
    return value


def to_yaml(options: Options) -> str:
    """The resolved options, as ``--config`` reads them back."""
    return yaml.safe_dump(_plain(options.flat()), sort_keys=True)


def read_args(file: Path) -> dict[str, Any]:
    """The options in the ``args.yaml`` of a run, which may be older than some options.

    Raises:
        ConfigError: If the file cannot be read or holds no options.
    """
    try:
        saved = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f'cannot read {file}: {one_line(e)}. Start a new run with another --experiment') from e
    if not isinstance(saved, dict):
        raise ConfigError(f'{file} holds no options. Start a new run with another --experiment')
    return saved


def configuration(options: Options | Mapping[str, Any]) -> dict[str, Any]:
    """The options that define the run; options that an older ``args.yaml`` lacks take their defaults."""
    values = options.flat() if isinstance(options, Options) else options
    defining = {name: info.default for name, info in OPTIONS.items() if info.defines_run} | {
        k: v for k, v in values.items() if k not in PRIVATE_OPTIONS and k not in RECIPE_NOTES}
    return _plain(defining)


def differing_keys(a: Options | Mapping[str, Any], b: Options | Mapping[str, Any]) -> list[str]:
    """Names of the options in which two configurations differ, sorted."""
    a, b = configuration(a), configuration(b)
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def _plain(value: Any) -> Any:
    """Lists and dicts in place of tuples and other mappings, as YAML holds them."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
