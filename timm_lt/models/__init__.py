"""Networks of the long-tailed CIFAR literature and the cosine classifier, registered into timm."""

from .adaptformer import adaptformer_network, adaptformer_network_args
from .bcl import BCLModel, BCLOutput
from .cosine_classifier import CosineClassifier, create_head, use_cosine_classifier
from .cosine_network import cosine_network, cosine_network_args
from .experts_network import ExpertsClassifier, ExpertsModel, ExpertsOutput, experts_network
from .proco import ProCoModel, ProCoOutput
from .resnet_cifar import CifarResNet, CifarResNet34, resnet20_cifar, resnet32_cifar, resnet32_cifar_x4, resnet34_cifar
from .scaled_classifier import ScaledClassifier

__all__ = [
    'BCLModel', 'BCLOutput', 'CifarResNet', 'CifarResNet34', 'CosineClassifier', 'ExpertsClassifier', 'ExpertsModel',
    'ExpertsOutput', 'ProCoModel', 'ProCoOutput', 'ScaledClassifier', 'adaptformer_network', 'adaptformer_network_args',
    'cosine_network', 'cosine_network_args', 'create_head', 'experts_network', 'resnet20_cifar', 'resnet32_cifar',
    'resnet32_cifar_x4', 'resnet34_cifar', 'use_cosine_classifier',
]
