"""``timm-lt predict``: labels and probabilities of images."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..hub import Checkpoint, HubError, load_network
from ..predict import ImageSource, Summary, open_source, predict, predict_images
from ..predict.tables import FORMATS, CSVTable

PROG = 'timm-lt predict'
AMP_DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, usage=f'{PROG} CHECKPOINT IMAGES [-o FILE] [options]',
        description='Label images: a row for each, in order, with the most probable classes. An image that cannot be '
        'read has a row with the reason.',
        epilog='An interrupted run goes on when the same command is given again. Exit status: 0 all rows are written; '
               '2 something that you can mend, in one sentence; 130 interrupted.')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT',
        help='run folder, local-dir:FOLDER, hf-hub:USER/NAME, a checkpoint of the package such as digits, or a '
        'pretrained timm model')
    parser.add_argument(
        'images', metavar='IMAGES',
        help='image file, folder (any depth), list (.txt, .csv, .tsv, .parquet) or data set such as hfds/NAME')
    add = parser.add_argument_group('images').add_argument
    add('--data-dir', metavar='DIR', help='folder that the paths of a list start from (default: its own), or root of '
        'a data set')
    add('--split', default='test', metavar='NAME', help='part of a data set (default: test)')
    add('--input-key', metavar='NAME', help="column of the images; file types of a folder, e.g. 'png;jpg'")
    add = parser.add_argument_group('output').add_argument
    add('-o', '--output', metavar='FILE',
        help=f'table that ends in {", ".join(FORMATS)} (default: CSV on the terminal)')
    add('--overwrite', action='store_true', help='replace an output that exists')
    add('-k', '--top-k', type=int, default=5, metavar='K', help='classes to name in a row (default: 5)')
    add('--no-posthoc', action='store_true', help='leave out the correction that the checkpoint brings')
    add = parser.add_argument_group('execution').add_argument
    add('-b', '--batch-size', type=int, default=128, metavar='N', help='images of a step (default: 128)')
    add('-j', '--workers', type=int, default=2, metavar='N', help='processes that read images (default: 2)')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu, cuda, ...')
    add('--amp', action='store_true', help='forward pass in --amp-dtype')
    add('--amp-dtype', choices=AMP_DTYPES, help='type of --amp (default: bfloat16 on a CPU, else float16)')
    add('--quiet', action='store_true', help='no progress bar and no closing lines')
    return parser


def main(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr)
    try:
        checkpoint = load_network(args.checkpoint, device=args.device)
        source = open_source(args.images, data_dir=args.data_dir, split=args.split, input_key=args.input_key)
        if checkpoint.posthoc is not None and checkpoint.posthoc.transductive and not args.no_posthoc:
            sys.stderr.write(
                f'{PROG}: warning: the stored correction ({checkpoint.posthoc.label}) needs all images at once and is '
                f'left out\n')
        summary = _run(args, checkpoint, source)
    except (ValueError, TypeError, OSError, HubError) as e:
        if isinstance(e, BrokenPipeError):
            raise
        sys.stderr.write(f'{PROG}: error: {e}\n')
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f'{PROG}: interrupted; give the same command again to go on\n')
        return 130
    if not args.quiet:
        sys.stderr.write(f'{summary}\n' + (f'{args.output}\n' if args.output else ''))
    return 0


def _run(args: argparse.Namespace, checkpoint: Checkpoint, source: ImageSource) -> Summary:
    if args.amp_dtype and not args.amp:
        raise ValueError('--amp-dtype is of --amp, which is not given')
    default = 'bfloat16' if torch.device(args.device).type == 'cpu' else 'float16'
    options = {
        'top_k': min(args.top_k, checkpoint.num_classes), 'batch_size': args.batch_size, 'workers': args.workers,
        'amp_dtype': AMP_DTYPES[args.amp_dtype or default] if args.amp else None, 'use_posthoc': not args.no_posthoc}
    if args.output:
        return predict(checkpoint, source, Path(args.output), overwrite=args.overwrite, progress=not args.quiet,
                       **options)
    if Path(args.images).is_file() and source.count() == 1:
        options['workers'] = 0  # a process costs more than an image
    summary, table = Summary(), CSVTable(options['top_k'])
    sys.stdout.write(table.header)
    for prediction in predict_images(checkpoint, source, **options):
        table.stream(sys.stdout, [summary.count(prediction)])
    summary.left_out = source.left_out()
    return summary
