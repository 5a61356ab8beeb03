"""The command ``timm-lt``, also ``python -m timm_lt``.

A command is one row of :data:`COMMANDS` and a module with ``main(argv)`` and ``build_parser()``. Only the module of the
command that is called is imported.
"""

from .commands import COMMANDS, Command, main

__all__ = ['COMMANDS', 'Command', 'main']
