"""Options of timm's ``train.py`` that this script does not offer, each with what to use instead."""

NOT_OFFERED = {
    # data
    '--train-num-samples': 'datasets that stream are not read, so their length is never given',
    '--val-num-samples': 'datasets that stream are not read, so their length is never given',
    '--input-img-mode': '--in-chans 1 reads grey images, --in-chans 3 RGB',
    '--dataset-trust-remote-code': 'code of a dataset is never executed; convert it to a folder of images',
    '--target-format': 'an image has one label; --target-key names its column',
    '--task': 'the task is classification with one label for each image',
    '--multilabel-threshold': 'the task is classification with one label for each image',
    '--epoch-repeats': 'give more --epochs, or a --sampler with --sampler-kwargs num_samples=N',
    '--train-size-schedule': 'the input has one size: --img-size',
    '--jsd-loss': '--loss jsd --aug-splits 3',
    '--resplit': 'the first of --aug-splits stays clean, and nothing is erased',
    '--split-bn': 'BatchNorm sees all of --aug-splits together',
    # model
    '--pretrained-path': '--initial-checkpoint FILE',
    '--no-resume-opt': '--initial-checkpoint FILE starts a new run on saved weights',
    '--drop-connect': '--drop-path',
    '--fuser': '--torchcompile',
    '--torchscript': '--torchcompile',
    '--fast-norm': '--amp or --mixed-precision bf16',
    '--model-dtype': '--amp or --mixed-precision bf16, which keep float32 weights',
    '--model-ema-force-cpu': '--model-ema keeps the average on the device',
    '--dist-bn': '--sync-bn, or nothing: the statistics of the main process are evaluated',
    # device
    '--amp-impl': 'torch has the one implementation: --amp',
    '--no-ddp-bb': 'accelerate configures DistributedDataParallel',
    '--synchronize-step': 'steps are never waited for; set CUDA_LAUNCH_BLOCKING=1 to look for errors',
    '--local-rank': 'accelerate launch train_lt.py starts the processes',
    '--local_rank': 'accelerate launch train_lt.py starts the processes',
    '--device-modules': 'accelerate finds the device',
    # optimizer and schedule
    '--opt-args': '--opt-kwargs',
    '--opt-foreach': '--opt-kwargs foreach=True',
    '--start-epoch': '--resume auto goes on where the run ended',
    '--stop-epoch': 'interrupt the run and go on with --resume auto',
    '--save-epochs': '--checkpoint-every and --checkpoint-hist',
    '--val-interval': 'validation follows each epoch; leave --val-split and --val-fraction out to do without',
    # loss
    '--bce-loss': '--loss bce',
    '--bce-sum': '--loss bce --loss-kwargs sum_classes=True',
    '--bce-target-thresh': '--loss bce --loss-kwargs target_threshold=T',
    '--bce-pos-weight': '--loss bce --loss-kwargs pos_weight=W',
    '--class-stats': 'class counts are those of the training images',
    '--loss-pos-weight': '--loss class_balanced, or another of timm_lt.list_losses()',
    '--loss-class-weight': '--loss class_balanced, or another of timm_lt.list_losses()',
    '--loss-weight-power': '--loss class_balanced, or another of timm_lt.list_losses()',
    '--poly-gamma': '--loss-kwargs gamma=G',
    '--poly-epsilon': '--loss-kwargs epsilon=E',
    # augmentation
    '--recount': '--reprob erases one box',
    # run
    '--worker-seeding': '--seed decides every random number of a step, on any number of workers',
    '--save-images': 'timm_lt.data.create_train_loader gives the batches of a run',
    '--pin-mem': 'batches are pinned where that helps',
    '--no-prefetcher': 'batches are normalised on the device, always',
    '--use-multi-epochs-loader': 'workers stay alive between epochs, always',
    '--wandb-tags': 'the environment variable WANDB_TAGS',
    '--wandb-resume-id': 'the environment variables WANDB_RUN_ID and WANDB_RESUME',
    '--sweep-attempt': "timm's sweep.py starts timm's train.py alone",
    '--sweep-locks': "timm's sweep.py starts timm's train.py alone",
}

# whole families of options, by how their names begin
NOT_OFFERED_FAMILIES = {
    '--naflex-': 'models take images of one size: --img-size',
    '--kd-': 'there is no teacher: distillation is not offered',
    '--distill-': 'there is no teacher: distillation is not offered',
    '--task-loss-': 'there is no teacher: distillation is not offered',
}


def refusal(flag: str) -> str | None:
    """A sentence on an option of timm that is not offered; None for any other name."""
    flag = flag.replace('_', '-') if flag not in NOT_OFFERED else flag
    instead = NOT_OFFERED.get(flag) or next(
        (text for start, text in NOT_OFFERED_FAMILIES.items() if flag.startswith(start)), None)
    return None if instead is None else f"timm's {flag} is not offered; instead: {instead}"
