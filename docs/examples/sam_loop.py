"""Train with a sharpness-aware optimizer in a plain PyTorch loop, on long-tailed digits."""

import argparse

import timm
import torch
from torchvision.transforms.functional import to_tensor

import timm_lt


def images_and_labels(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([to_tensor(image) for image, _ in dataset]), torch.tensor([label for _, label in dataset])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--optimizer', default='imbsam', help='one of timm_lt.list_optimizers(), or of timm')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--images-per-class', type=int, default=100, help='size of the largest class')
    args = parser.parse_args(argv)

    train = timm_lt.data.create_dataset('timm_lt/digits', split='train')
    train = timm_lt.long_tailed_subset(train, imbalance_ratio=20, n_max=args.images_per_class)
    counts = timm_lt.ClassDistribution.from_dataset(train).counts
    images, labels = images_and_labels(train)
    test_images, test_labels = images_and_labels(timm_lt.data.create_dataset('timm_lt/digits', split='test'))

    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=10)
    loss = timm_lt.create_loss('balanced_softmax', class_counts=counts)
    own = {'class_counts': counts} if args.optimizer in timm_lt.list_optimizers() else {}
    optimizer = timm.optim.create_optimizer_v2(model, args.optimizer, lr=0.05, **own)
    sampler = timm_lt.create_sampler('instance_balanced', labels)

    for epoch in range(args.epochs):
        model.train()
        sampler.set_epoch(epoch)
        timm_lt.optim.set_epoch(optimizer, epoch, args.epochs)
        for batch in torch.tensor(list(sampler)).split(32):
            closure = timm_lt.optim.BatchClosure(model, loss, images[batch], labels[batch])
            result = timm_lt.optim.optimizer_step(optimizer, closure, clip_grad=5.0)
        print(f'epoch {epoch}: loss of the last batch {result.loss:.3f}')

    model.eval()
    with torch.no_grad():
        report = timm_lt.evaluate.report(model(test_images), test_labels, counts)
    print({name: report[name] for name in ('top1', 'many', 'medium', 'few')})


if __name__ == '__main__':
    main()
