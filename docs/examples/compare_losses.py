"""Train three losses with several seeds on the embedded digits and compare them, with intervals."""

import argparse
import json
from pathlib import Path

import timm_lt

LOSSES = ('ce', 'balanced_softmax', 'logit_adjustment')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', nargs='+', default=['0', '1', '2'])
    parser.add_argument('--epochs', default='20')
    parser.add_argument('--output', default='output')
    args = parser.parse_args(argv)

    runs = []
    for loss in LOSSES:
        for seed in args.seeds:
            runs.append(Path(args.output, f'{loss}_{seed}'))
            status = timm_lt.training.main([
                '--loss', loss, '--seed', seed, '--epochs', args.epochs,
                '--output', args.output, '--experiment', runs[-1].name, '--quiet'])
            if status:
                raise SystemExit(status)
            metrics = json.loads((runs[-1] / 'metrics.json').read_text())
            print(loss, seed, {name: metrics[name] for name in ('top1', 'many', 'medium', 'few')})

    page = Path(args.output, 'comparison.html')
    timm_lt.evaluate.write_comparison(runs, page)  # the first loss is the baseline; seeds are merged
    print(f'intervals and significant differences: {page}')


if __name__ == '__main__':
    main()
