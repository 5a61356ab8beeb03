"""Options of the command line."""

import argparse

import torch

from ..metrics.openset import SCORES

PROG = 'python -m timm_lt.evaluate'


def build_parser(prog: str = PROG) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, usage=f'{prog} (RUN_DIR | --checkpoint NAME | --predictions FILE) [options]',
        description='Evaluate a checkpoint, or a file of predictions, on a long-tailed data set.',
        epilog=f"'{PROG} compare RUN_DIR RUN_DIR ...' compares runs; the first is the baseline. "
               f"'{PROG} report RUN_DIR' draws the report and the model card of a run again.")
    source = parser.add_argument_group('evaluated').add_mutually_exclusive_group(required=True)
    source.add_argument(
        'run', nargs='?', metavar='RUN_DIR', help='folder of a training run, evaluated on its own test part')
    source.add_argument(
        '--checkpoint', metavar='NAME',
        help='run or checkpoint folder, local-dir:FOLDER, hf-hub:USER/NAME, timm model name, or weights file')
    source.add_argument(
        '--predictions', metavar='FILE',
        help="logits or predicted classes with labels: .npz, .pt ('logits' or 'predictions', 'targets'), .csv or .tsv")
    add = parser.add_argument_group('network of a weights file').add_argument
    add('--model', metavar='NAME', help='its timm name')
    add('--num-classes', type=int, metavar='N', help='its classes')
    _add_data(parser)
    _add_report(parser)
    _add_open_set(parser)
    add = parser.add_argument_group('loss landscape').add_argument
    add('--landscape', action='store_true', help='measure the loss landscape of each split (minutes)')
    add('--landscape-images', type=int, default=128, metavar='N', help='images of each split for it')
    add('--rho', type=float, default=0.05, help='radius of the sharpness')
    add = parser.add_argument_group('execution').add_argument
    add('-b', '--batch-size', type=int, default=128, metavar='N', help='images of a step')
    add('-j', '--workers', type=int, default=0, metavar='N', help='processes that read images')
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu, cuda, ...')
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('data').add_argument
    add('--dataset', default='', metavar='NAME', help="as in train_lt.py, e.g. 'timm_lt/digits', 'hfds/NAME'")
    add('--data-dir', metavar='DIR', help='folder of the images')
    add('--ignore-class-names', action='store_true',
        help='evaluate data whose class names are not those of the checkpoint; labels are used as they are')
    add('--split', help="part to evaluate (default: the test part of the run, else 'test', else 'validation')")
    add('--allow-trained', action='store_true', help='evaluate also images that the run was trained on')
    add('--class-stats', metavar='FILE', help='class-stats JSON of the training images (default: of the checkpoint)')


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('report').add_argument
    add('--split-rule', default='auto', metavar='RULE',
        help="gt100_lt20, ge100_le20, thirds, 'MANY,FEW', or auto: gt100_lt20, thirds if no class is below 20")
    add('--no-posthoc', action='store_true', help='leave out the correction that the checkpoint brings')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for confidence intervals; 0: none')
    add('--seed', type=int, default=0, help='of bootstrap and random directions')
    add('--output', metavar='DIR',
        help='folder of the report, overwritten (default: evaluation/CHECKPOINT, with a number if that exists)')


def _add_open_set(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('open set').add_argument
    add('--open-set', metavar='NAME', help='data set of unknown classes')
    add('--open-set-dir', metavar='DIR', help='folder of its images')
    add('--open-set-split', metavar='SPLIT', help='its part')
    add('--open-set-score', nargs='+', choices=list(SCORES), metavar='SCORE',
        help=f'scores to report, of {", ".join(SCORES)} (default: softmax energy)')
    add('--keep-threshold', metavar='SCORE',
        help='store the threshold of this score in the checkpoint: timm-lt predict then says unknown below it')
    add('--threshold-split', metavar='SPLIT',
        help="part whose known images set the threshold (default: 'validation', else 'train'; never tested images)")


def build_compare_parser(prog: str = f'{PROG} compare') -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description='Compare runs; the first is the baseline.')
    parser.add_argument('runs', nargs='+', metavar='RUN_DIR')
    parser.add_argument('--output', default='comparison.html', metavar='FILE')
    parser.add_argument('--bootstrap', type=int, default=2000, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    return parser


def build_report_parser(prog: str = f'{PROG} report') -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a run's report.html, plots/ and model card again, from its metrics and predictions.")
    parser.add_argument('run', metavar='RUN_DIR')
    return parser
