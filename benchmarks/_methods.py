"""Methods that ``accuracy.py`` compares, and the options of its protocol 'quick'."""

from dataclasses import dataclass

QUICK = (
    '--model resnet20_cifar --images-per-class 1000 --epochs 20 --warmup-epochs 2 -b 64 --lr 0.1 --opt momentum '
    '--weight-decay 5e-4 --mixed-precision bf16 --sched-on-updates')


@dataclass(frozen=True)
class Method:
    """Options beside those of the protocol.

    Attributes:
        options: Of ``train_lt.py``, under 'quick'.
        recipe: Name in ``hub_configs`` after the data set's, for 'paper' and for the published figure.
        after: Method whose trained model this one starts on.
        variant: A part or a setting of another method, not in the table unless it is named.
    """
    options: str
    recipe: str | None = None
    after: str | None = None
    variant: bool = False


# published defaults of the methods; {drw} and {stage2} are shares of the protocol's epochs
SAM = '--loss balanced_softmax --opt sam --opt-kwargs rho=0.05'
# the paper's Z = 1e-2 perturbs this network by 0.3 to 0.5, ten times as far as SAM's 0.05: too far for 20 epochs
GSA = '--loss balanced_softmax --opt gsa --opt-kwargs batchnorm=stacked Z=1e-3'
GKP = '--gkp --gkp-kwargs regroup_every={regroup}'
SECOND_STAGES = '--loss ce --stage2-epochs {stage2} --stage2'
METHODS = {
    'ce': Method('--loss ce', 'ce'),
    'balanced_softmax': Method('--loss balanced_softmax', 'balanced_softmax'),
    'focal': Method('--loss focal'),
    'class_balanced': Method('--loss class_balanced'),
    'eql': Method('--loss eql'),
    'vs': Method('--loss vs'),
    'ldam_drw': Method('--loss ldam --drw-epoch {drw}', 'ldam_drw'),
    'adrw_tla': Method(
        '--loss vs --loss-kwargs gamma=0.05 tau=1.0 truncate_epoch={drw} --drw-epoch {drw} --drw-rule prior_power',
        'adrw_tla'),
    'las': Method('--loss las'),
    'gcl': Method('--loss gcl'),
    'lade': Method('--loss lade'),
    # its figures with prediction re-balancing (transductive) stand in the same run
    'gala': Method('--loss gala --posthoc rebalance --posthoc-kwargs tau=1.0 transductive=True', 'gala'),
    'bcl': Method('--loss bcl', 'bcl'),
    'balpoe': Method('--experts 3 --loss balpoe', 'balpoe'),
    'proco': Method('--loss proco', 'proco'),
    'remix': Method('--loss balanced_softmax --mix remix'),
    'cmo': Method('--loss balanced_softmax --mix cmo'),
    'balanced_mixup': Method('--loss balanced_softmax --mix balanced_mixup'),
    'unimix': Method('--loss balanced_softmax --mix unimix'),
    'class_balanced_sampler': Method('--loss ce --sampler class_balanced'),
    'square_root_sampler': Method('--loss ce --sampler square_root'),
    'power_sampler': Method('--loss ce --sampler power --sampler-kwargs q=0.3'),
    'crt': Method(f'{SECOND_STAGES} crt', after='ce'),
    'lws': Method(f'{SECOND_STAGES} lws', after='ce'),
    'mislas': Method(f'{SECOND_STAGES} mislas', after='ce'),
    'h2t': Method(f'{SECOND_STAGES} h2t', after='ce'),
    'los': Method(f'{SECOND_STAGES} los', after='ce'),
    'weight_balancing': Method(f'{SECOND_STAGES} weight_balancing', after='ce'),
    'sam': Method('--loss ce --opt sam --opt-kwargs rho=0.05', 'sam'),
    'gsam': Method('--loss ce --opt gsam --opt-kwargs rho=0.05 alpha=0.2'),
    'friendlysam': Method('--loss ce --opt friendlysam --opt-kwargs rho=0.05 lmbda=0.9'),
    'looksam': Method('--loss ce --opt looksam --opt-kwargs rho=0.05 every=5'),
    'gnp': Method('--loss ce --opt gnp --opt-kwargs rho=0.05'),
    'rwp': Method('--loss ce --opt rwp --opt-kwargs rho=0.05'),
    'imbsam': Method('--loss ce --opt imbsam --opt-kwargs rho=0.05 eta=100', 'imbsam'),
    'ssesam': Method('--loss ce --opt ssesam --opt-kwargs rho_head=0.05 rho_tail=0.1 stage=0.7 eta=100', 'ssesam'),
    'focalsam': Method('--loss ce --opt focalsam'),
    # the first stage stands in the same run
    'ccsam': Method(f'{SECOND_STAGES} ccsam --opt ccsam', 'ccsam'),
    'ccsam_scale1': Method(f'{SECOND_STAGES} ccsam --opt ccsam --opt-kwargs scale=1.0', variant=True),
    'bs_sam': Method(SAM),
    'vs_sam': Method(
        '--loss vs --loss-kwargs gamma=0.05 tau=1.0 --opt sam --opt-kwargs rho=0.1', 'vs_sam', variant=True),
    # the parts of GKP+GSA, base 'balanced_softmax'; G = 4 unless it is named
    'gkp': Method(f'--loss balanced_softmax --opt gsa --opt-kwargs Z=0 {GKP}'),
    'gsa': Method(GSA),
    'gkp_gsa': Method(f'{GSA} {GKP}', 'gkp_gsa'),
    'gsa_gradient': Method(f'{GSA} direction=gradient', variant=True),
    'gsa_projection': Method(f'{GSA} direction=projection', variant=True),
    'gsa_g2': Method(f'{GSA} num_groups=2', variant=True),
    'gsa_g8': Method(f'{GSA} num_groups=8', variant=True),
    'gsa_z1e-2': Method(GSA.replace('Z=1e-3', 'Z=1e-2'), variant=True),
    # our own, chosen on training images that no run trains on
    'ours': Method('--loss balanced_softmax --cosine-classifier -b 32 --lr 0.2', 'ours'),
}
