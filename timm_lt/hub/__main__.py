"""``python -m timm_lt.hub push|pull|list``: checkpoints and the Hugging Face Hub."""

import argparse
import sys
from collections.abc import Sequence

from .errors import HubError
from .loading import shipped
from .remote import list_remote, pull, push

PROG = 'python -m timm_lt.hub'


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description='Checkpoints and the Hugging Face Hub.')
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('push', help='upload a checkpoint; repeat it to go on after an interruption')
    command.add_argument('folder', help='a run folder or its hub/ folder')
    command.add_argument('repo_id', metavar='USER/NAME')
    command.add_argument(
        '--private', action='store_true', default=None, help='make a new repository private; refuse a public one')
    command.add_argument('--revision', default=None, help='branch; made if it does not exist')
    command = commands.add_parser('pull', help='download a checkpoint and check its weights')
    command.add_argument('repo_id', metavar='USER/NAME')
    command.add_argument('folder', nargs='?', default=None, help='where to; default: NAME')
    command.add_argument('--revision', default=None, help='branch, tag or commit')
    command = commands.add_parser('list', help='checkpoints of the package and of the Hub')
    command.add_argument('user', nargs='?', default=None, help='only those of this user')
    command.add_argument('--offline', action='store_true', help='only those of the package')
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Returns the exit status; 2 for what the user can mend, in one message."""
    args = build_parser(prog).parse_args(argv)
    lines: list[str] = []
    try:
        if args.command == 'push':
            lines.append(push(args.folder, args.repo_id, private=args.private, revision=args.revision))
        elif args.command == 'pull':
            folder = args.folder or args.repo_id.split('/')[-1]
            lines.append(str(pull(args.repo_id, folder, revision=args.revision)))
        else:
            lines += [] if args.user else [f'{name} (comes with the package)' for name in shipped()]
            lines += [] if args.offline else list_remote(args.user)
    except HubError as e:
        sys.stderr.write(f'{prog}: error: {e}\n')
        return 2
    finally:
        sys.stdout.write(''.join(f'{line}\n' for line in lines))
    return 0


if __name__ == '__main__':
    sys.exit(main())
