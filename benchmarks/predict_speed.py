"""Labelling a folder of small images by `timm-lt predict` and by the loop of timm's inference.py, in turns.

    python benchmarks/predict_speed.py [--images 2000] [--sizes 32 64] [--workers 0] [--rounds 5] [--output FILE.txt]

Both write a CSV file of the five most probable classes. The loop is that of timm 1.0.31: its loader with its
prefetcher, softmax, top-k, and a table of pandas. The second network costs next to nothing, so that reading and writing
are all that is timed. The ratio is ours over timm's, of elapsed time and, which a busy machine changes less, of the
processor time of the process (without workers).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn as nn
from _report import Report
from _timing import ratios_in_turns
from PIL import Image

from timm_lt.hub import Checkpoint
from timm_lt.predict import predict

TOP_K, BATCH = 5, 128


def make_images(root: Path, images: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    (root / 'photos').mkdir(parents=True)
    for i in range(images):
        size = sizes[i % len(sizes)]
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(root / 'photos' / f'{i}.jpg')


def nearly_free() -> nn.Module:
    """A network that takes the mean colour; its input is that of resnet20_cifar."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 100))
    model.num_classes = 100
    model.pretrained_cfg = dict(timm.get_pretrained_cfg('resnet20_cifar').to_dict(), architecture='nearly_free')
    return model


@torch.inference_mode()
def timm_loop(model: nn.Module, root: Path, output: Path, workers: int) -> None:
    """The loop of timm's inference.py, options at their defaults but for top-k."""
    config = timm.data.resolve_data_config({}, model=model)
    dataset = timm.data.create_dataset('', root=str(root), class_map='')
    loader = timm.data.create_loader(
        dataset, batch_size=BATCH, use_prefetcher=True, num_workers=workers, device=torch.device('cpu'), **config)
    indices, values = [], []
    for input, _ in loader:
        probabilities, classes = model(input).softmax(-1).topk(TOP_K)
        indices.append(classes.numpy())
        values.append(probabilities.numpy())
    table = pd.DataFrame({'filename': dataset.filenames(basename=True)})
    for k in range(TOP_K):
        table[f'label_{k}'] = np.concatenate(indices)[:, k]
        table[f'prob_{k}'] = np.concatenate(values)[:, k]
    table.set_index('filename').to_csv(output)


def processor_seconds(function: Callable[[], object], rounds: int) -> float:
    """Median processor time of a call."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=2000)
    parser.add_argument('--sizes', type=int, nargs='+', default=[32, 64], help='pixels a side')
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()

    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / 'data'
        make_images(root, args.images, args.sizes)
        for name, model in (
                ('resnet20_cifar', timm.create_model('resnet20_cifar', num_classes=10)),
                ('a network that costs next to nothing', nearly_free())):
            model.eval()
            checkpoint = Checkpoint(model, None, None, None, {}, {}, None, name)
            report.line(f'{args.images} JPEG files of {args.sizes} pixels, {args.workers} worker(s), {name}')
            functions = {
                "timm's inference loop": lambda m=model: timm_loop(m, root, Path(folder) / 'timm.csv', args.workers),
                'timm-lt predict': lambda c=checkpoint: predict(
                    c, root, Path(folder) / 'ours.csv', top_k=TOP_K, batch_size=BATCH, workers=args.workers,
                    overwrite=True),
            }
            for case, ratio in ratios_in_turns(functions, "timm's inference loop", args.rounds).items():
                rate = 1000 * args.images / ratio.milliseconds
                report.line(f'  {case:24s}{ratio.milliseconds:8.0f} ms {rate:7.0f} images/s  {ratio.median:.2f} '
                            f'({ratio.low:.2f} to {ratio.high:.2f})')
            if not args.workers:
                theirs, ours = (processor_seconds(function, args.rounds) for function in functions.values())
                report.line(f'  processor time {1000 * theirs:.0f} and {1000 * ours:.0f} ms, {ours / theirs:.2f}')
    report.write(args.output)


if __name__ == '__main__':
    main()
