"""Options that say where and how a run is carried out, and not what it computes.

Two runs that differ in these alone have the same configuration. A run may resume with other values, and averages over
seeds ignore them. A published recipe leaves them out, because they name paths of the machine.
"""

PRIVATE_OPTIONS = frozenset({
    'channels_last', 'check_images', 'checkpoint_every', 'checkpoint_hist', 'checkpoint_steps', 'config', 'data_dir',
    'device', 'dry_run', 'experiment', 'feature_file', 'log_interval', 'log_wandb', 'log_with', 'output', 'private',
    'push_to_hub', 'quiet', 'resume', 'revision', 'wandb_project', 'workers',
})

# notes of a configuration file, which no run reads, and their keys
RECIPE_NOTES = {
    'published': ('top1', 'many', 'medium', 'few', 'network', 'source', 'note'),
    'hub': ('title', 'license', 'tags', 'dataset', 'dataset_name'),
}

__all__ = ['PRIVATE_OPTIONS', 'RECIPE_NOTES']
