"""Every pair of options together at least once: short runs on the embedded digits that end well or say why not.

    python benchmarks/option_pairs.py [--shard 1/4] [--only NUMBER ...] [--output FILE.txt]

A pairwise covering array (allpairspy) over :data:`LEVELS` gives the runs, each of one epoch on some 100 images, one by
one in one process. Combinations that the script refuses before it reads data are left out of the array, and so are the
pairs of :data:`REFUSED`, which run alone. A run passes if it ends with status 0 and finite figures, or with status 2
and one sentence. A traceback, another status or a figure that is not finite is a fault. Printed: each fault with its
command line, the refusals by their sentence, and how many runs trained.

timm's ``kron`` is left out, because its compiled preconditioners take minutes and over 10 GB.
"""

import argparse
import collections
import contextlib
import io
import json
import math
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

from allpairspy import AllPairs

import timm_lt.training
from timm_lt.training.errors import ConfigError
from timm_lt.training.options import OPTIONS, check_names, parse_options

COMMON = ('--images-per-class', '24', '--imbalance-ratio', '6', '--epochs', '1', '--quiet')

# the first value of an option leaves it out; an option of its own row for the values that a name changes
LEVELS = {
    'val_fraction': ('', '0.3'),
    'batch_size': ('', '7', '1000'),
    'model': ('', 'resnet32_cifar', 'cosine_network --model-kwargs network=resnet20_cifar', 'test_vit --img-size 32',
              'test_convnext --input-size 3 32 32'),
    'loss': ('', 'ce', 'logit_adjustment', 'ldam', 'vs', 'focal', 'class_balanced', 'eql', 'las', 'gcl', 'lade', 'gala',
             'bcl', 'proco', 'balpoe --experts 3', 'bce', 'poly'),
    'opt': ('', 'momentum', 'adamw', 'sam', 'asam', 'gsam', 'friendlysam', 'looksam', 'gnp', 'rwp', 'imbsam', 'ssesam',
            'focalsam', 'ccsam', 'gsa', 'gsa --gkp', 'lookahead_sam', 'lion'),
    'opt_kwargs': ('', 'batchnorm=stacked', 'every=2', 'base=adamw'),
    'sampler': ('', 'class_balanced', 'square_root', 'power', 'm_per_class', 'progressive', 'repeat_factor', 'reverse',
                'effective_number'),
    'stage2': ('', 'crt', 'lws', 'mislas', 'h2t', 'los', 'weight_balancing', 'ncm',
               'tau_norm --stage2-kwargs tau=0.7', 'disalign', 'ccsam', 'crt --no-aug'),
    'posthoc': ('', 'logit_adjust', 'rebalance', 'tau_normalize', 'temperature'),
    'sched': ('', 'multistep', 'plateau', 'step --decay-epochs 1', 'none'),
    'mixed_precision': ('', 'bf16', 'no'),
    'channels_last': ('', True, False),
    'torchcompile': ('', 'eager', 'aot_eager'),
    'grad_checkpointing': ('', True),
    'cosine_classifier': ('', True, False),
    'model_ema': ('', True, '--model-ema-decay 0.9 --model-ema-warmup'),
    'drop': ('', '0.2'),
    'in_chans': ('', '1'),
    'gp': ('', 'max'),
    'head_init_scale': ('', '0.1 --head-init-bias -2'),
    'smoothing': ('', '0.1'),
    'drw_epoch': ('', '0'),
    'clip_grad': ('', '1.0', '1.0 --clip-mode value', '0.1 --clip-mode agc'),
    'grad_accum_steps': ('', '3'),
    'layer_decay': ('', '0.8'),
    'filter_bias_and_bn': ('', False),
    'in_memory': ('', 'off --workers 0'),
    'imbalance_profile': ('', 'step'),
    'train_crop_mode': ('', 'rrc', 'none'),
    'aa': ('', 'cifar10', 'rand-m9-mstd0.5-inc1', 'trivial', 'augmix-m3'),
    'color_jitter': ('', '0.4 --color-jitter-prob 0.8 --grayscale-prob 0.2 --gaussian-blur-prob 0.2'),
    'cutout': ('', '8', '8 --cutout-fill black'),
    'reprob': ('', '0.5 --remode const'),
    'mixup': ('', '0.8', '0.2 --cutmix 1.0 --mixup-mode elem', '0.8 --mixup-off-epoch 1'),
    'mix': ('', 'remix', 'cmo --mix-kwargs start_epoch=0 prob=1.0', 'balanced_mixup', 'unimix'),
    'sched_on_updates': ('', True),
    'warmup_epochs': ('', '0'),
    'split_rule': ('', 'thirds', '30,8'),
    'bootstrap': ('', '20'),
    'checkpoint_steps': ('', '2'),
}


def words(name, value):
    """Command-line words of one value: '' nothing, True and False a flag, text a value and further options."""
    flag = OPTIONS[name].flag
    if value == '':
        return []
    if isinstance(value, bool):
        return [flag if value else flag.replace('--', '--no-', 1)]
    return [flag, *([] if value.startswith('--') else []), *shlex.split(value)]


def command_of(row):
    """Command line of the first values of a run; the other options are left out."""
    return [w for name, value in zip(LEVELS, row) for w in words(name, value)]


# refused once the loss, the optimizer or the head is built
REFUSED = (
    ({'drw_epoch': ('0',)}, {'loss': ('bcl', 'bce', 'poly')}),
    ({'opt_kwargs': ('batchnorm=stacked', 'every=2', 'base=adamw')}, {'opt': ('', 'momentum', 'adamw', 'lion')}),
    ({'opt_kwargs': ('batchnorm=stacked',)}, {
        'opt': ('sam', 'asam', 'gsam', 'friendlysam', 'looksam', 'gnp', 'rwp', 'imbsam', 'focalsam', 'ccsam',
                'lookahead_sam')}),
    ({'sched': ('plateau',)}, {'sched_on_updates': (True,)}),
    ({'posthoc': ('tau_normalize',)}, {'stage2': ('disalign',)}),
    ({'posthoc': ('tau_normalize',)}, {'cosine_classifier': (True,)}),
    ({'head_init_scale': ('0.1 --head-init-bias -2',)},
     {'cosine_classifier': (True,), 'loss': ('ldam', 'gcl', 'bcl'),
      'model': ('cosine_network --model-kwargs network=resnet20_cifar',)}),
    ({'stage2': ('tau_norm --stage2-kwargs tau=0.7',)}, {'cosine_classifier': (True,)}),
    ({'loss': ('balpoe --experts 3',)},
     {'model': ('test_vit --img-size 32', 'test_convnext --input-size 3 32 32',
                'cosine_network --model-kwargs network=resnet20_cifar'),
      'head_init_scale': ('0.1 --head-init-bias -2',)}),
    ({'loss': ('bce',)}, {'opt': ('imbsam', 'ssesam', 'focalsam', 'ccsam', 'gsa', 'gsa --gkp')}),
)


def meets(row, part):
    """Some option of ``part`` has one of the values that ``part`` names."""
    given = dict(zip(LEVELS, row))
    return any(given.get(name) in values for name, values in part.items())


def is_possible(row):
    """The script takes these values together, as far as it can say without data."""
    if any(meets(row, one) and meets(row, other) for one, other in REFUSED):
        return False
    try:
        check_names(parse_options([*COMMON, *command_of(row)]))
    except ConfigError:
        return False
    return True


def covering_array():
    """Command lines in which every two values of two options meet at least once, where the script takes them."""
    return [command_of(row) for row in AllPairs(list(LEVELS.values()), filter_func=is_possible)]


def refused_pairs():
    """Command lines of the pairs in :data:`REFUSED`, each pair alone."""
    def pairs_of(part):
        return [words(name, value) for name, values in part.items() for value in values]

    return [one + other for first, second in REFUSED for one in pairs_of(first) for other in pairs_of(second)]


def run(command, folder):
    """None for a run that trained, a sentence for one that was refused; AssertionError with the fault otherwise."""
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    argv = [*COMMON, *command, '--output', str(folder), '--experiment', 'run']
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = timm_lt.training.main(argv)
        except SystemExit as e:
            status = e.code
    text = errors.getvalue()
    assert 'Traceback' not in text, text
    if status == 2:
        sentence = text.strip().splitlines()[-1]
        assert sentence.startswith('train_lt.py: error: '), f'no sentence: {text}'
        return sentence.removeprefix('train_lt.py: error: ')
    assert status == 0, f'status {status}: {text}'
    metrics = json.loads((folder / 'run' / 'metrics.json').read_text())
    for key in ('top1', 'ece'):
        assert math.isfinite(metrics[key]), f'{key} is {metrics[key]}'
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shard', default='1/1', metavar='I/N', help='every N-th run, from the I-th on')
    parser.add_argument('--only', type=int, nargs='+', help='numbers of runs')
    parser.add_argument('--output', type=Path, help='text file for the summary')
    args = parser.parse_args()
    first, step = map(int, args.shard.split('/'))
    commands = covering_array() + refused_pairs()
    numbers = args.only or range(first - 1, len(commands), step)
    start, faults, refusals, trained = time.monotonic(), [], collections.Counter(), 0
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            try:
                sentence = run(commands[number], Path(folder))
            except Exception:
                faults.append(number)
                print(f'{number}: FAULT {shlex.join(commands[number])}\n{traceback.format_exc(limit=-4)}', flush=True)
                continue
        trained += sentence is None
        if sentence is not None:
            refusals[sentence] += 1
        print(f'{number}: {"trained" if sentence is None else sentence}', flush=True)
    lines = [f'{len(numbers)} of {len(commands)} runs: {trained} trained, {sum(refusals.values())} refused with a '
             f'sentence, {len(faults)} faults {faults}; {time.monotonic() - start:.0f} s',
             *(f'{count} refused: {text}' for text, count in refusals.most_common())]
    print('\n'.join(lines))
    if args.output:
        args.output.write_text('\n'.join(lines) + '\n')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
