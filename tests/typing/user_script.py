"""A user's script: ``bash .ci/check types`` runs mypy over it, to see the public names with their types."""

import timm
import torch
from typing_extensions import assert_type

import timm_lt
from timm_lt.optim import SAM, BatchClosure

model = timm.create_model('resnet32_cifar', num_classes=3)
counts = timm_lt.ClassDistribution.from_targets([0, 0, 0, 1, 1, 2])
loss = timm_lt.losses.BalancedSoftmaxLoss(counts)
optimizer = SAM(model.parameters(), lr=0.1)
closure = BatchClosure(model, loss, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
assert_type(timm_lt.create_loss('ldam', class_counts=counts), torch.nn.Module)
assert_type(timm_lt.list_losses(), list[str])

images = timm_lt.data.create_dataset('timm_lt/digits')
subset = timm_lt.long_tailed_subset(images, imbalance_ratio=10)
assert_type(subset, timm_lt.data.ImageSubset)
assert_type(timm_lt.posthoc.logit_adjust(torch.randn(4, 3), counts), torch.Tensor)
assert_type(timm_lt.hub.load('digits'), timm_lt.hub.Checkpoint)
stage = timm_lt.two_stage.DisAlign([3, 2, 1], rho=1.5)
assert_type(stage.rho, float)
penalty: type[timm_lt.gkp.GKP] = timm_lt.gkp.GKP
figures = timm_lt.evaluate.report(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), counts)
status: int = timm_lt.training.main(['--help'])

misspelt = timm_lt.no_such_name  # type: ignore[attr-defined]  # mypy reports an ignore without an error
