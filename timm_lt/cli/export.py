"""``timm-lt export``: a checkpoint as ONNX, torch.export or TorchScript."""

import argparse
import sys
from collections.abc import Sequence

from ..export import FORMATS, ExportMismatch, export
from ..hub import HubError

PROG = 'timm-lt export'
MISMATCH = 1  # exit status


def build_parser() -> argparse.ArgumentParser:
    endings = ', '.join(f'{f.suffix} ({name})' for name, f in FORMATS.items())
    parser = argparse.ArgumentParser(
        prog=PROG, description='Write network, stored correction and class names as one file that takes any batch '
        'size, and compare it with the network in Python.',
        epilog="ONNX needs pip install 'timm-lt[export]'. Exit status: 0 the file is written and agrees; 1 it does not "
               'agree and was not written; 2 something that you can mend, in one sentence.')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='run folder, local-dir:FOLDER, hf-hub:USER/NAME, a checkpoint of the '
        'package such as digits, or a pretrained timm model')
    parser.add_argument('output', metavar='FILE', help=f'its ending tells the format: {endings}')
    add = parser.add_argument
    add('--format', choices=FORMATS, help='format of a file with another ending')
    add('--images', metavar='IMAGES', help='images to compare on: file, folder, list or data set (default: noise)')
    add('--no-posthoc', action='store_true', help='leave out the correction that the checkpoint brings')
    add('--tolerance', type=float, default=1e-4, metavar='D',
        help='largest difference of a score or probability (default: 1e-4)')
    return parser


def main(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    try:
        exported = export(
            args.checkpoint, args.output, format=args.format, images=args.images, use_posthoc=not args.no_posthoc,
            tolerance=args.tolerance)
    except (ValueError, OSError, HubError, ExportMismatch) as e:
        sys.stderr.write(f'{PROG}: error: {e}\n')
        return MISMATCH if isinstance(e, ExportMismatch) else 2
    sys.stdout.write(f'{exported}\n')
    return 0
