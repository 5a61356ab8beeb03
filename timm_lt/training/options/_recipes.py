"""The recipes of the package, by name: the files of ``hub_configs``."""

from fnmatch import fnmatch
from pathlib import Path

from ..._validate import nearest_names
from ..errors import ConfigError

PACKAGE = Path(__file__).parents[2]
FOLDER = 'hub_configs'


def recipe_folder() -> Path:
    """The folder of the recipes: in an installed package inside it, in a checkout beside it."""
    installed = PACKAGE / FOLDER
    return installed if installed.is_dir() else PACKAGE.parent / FOLDER


def list_recipes(filter: str = '') -> list[str]:
    """Names of the recipes, sorted, optionally those that match a wildcard such as ``'cifar10_lt-*'``."""
    names = sorted(path.stem for path in recipe_folder().glob('*.yaml'))
    return [name for name in names if not filter or fnmatch(name, filter)]


def find_recipe(config: str | Path) -> Path:
    """The file that ``--config`` means: a file, else the recipe of that name.

    Raises:
        ConfigError: If there is neither.
    """
    path, names = Path(config), list_recipes()
    if path.exists():
        return path
    if str(config) in names:
        return recipe_folder() / f'{config}.yaml'
    hint = f'. The package has it by name: --config {path.stem}' if path.stem in names else ''
    if not hint and path.name == str(config):
        hint = f', and no recipe has that name. {nearest_names(path.stem, names)}'
    raise ConfigError(f'config file {config} does not exist{hint}')
