"""Fine-tune a pretrained network on a folder of class folders, and classify one image with it."""

import argparse
import json
from pathlib import Path

from PIL import Image

import timm_lt


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='one folder of images for each class, or parts train/ and val/')
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--epochs', default='20')
    parser.add_argument('--output', default='output')
    parser.add_argument('--image', help='an image to classify with the trained network')
    parser.add_argument('--from-scratch', action='store_true', help='begin with random weights')
    args = parser.parse_args(argv)

    weights = [] if args.from_scratch else ['--pretrained']
    status = timm_lt.training.main([
        '--data-dir', args.folder, '--model', args.model, *weights, '--lr', '0.01', '--epochs', args.epochs,
        '--warmup-epochs', '1', '--loss', 'balanced_softmax', '--output', args.output, '--experiment', 'finetuned'])
    if status:
        raise SystemExit(status)

    run = Path(args.output, 'finetuned')
    metrics = json.loads((run / 'metrics.json').read_text())
    print({name: metrics[name] for name in ('top1', 'many', 'medium', 'few')})

    if args.image:
        checkpoint = timm_lt.hub.load(run)
        image = checkpoint.transform(Image.open(args.image).convert('RGB'))
        probabilities = checkpoint(image[None]).softmax(-1)[0]
        print(checkpoint.class_names[probabilities.argmax()], f'{probabilities.max():.2f}')


if __name__ == '__main__':
    main()
