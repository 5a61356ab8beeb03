"""Sharpness-aware optimizers in two and four processes; each group of processes is started once for all its checks."""

import os
import subprocess
import sys

import pytest
from paths import HELPERS, ROOT

pytest.importorskip('accelerate')

WORKER = HELPERS / 'sam_distributed_worker.py'
CHECKS = {
    2: [
        'static_graph_is_refused',
        'processes_equal_one_process_with_the_joint_batch',
        'a_tuned_network_equals_that_of_one_process_with_the_joint_batch',
        'gradients_as_bucket_views_equal_one_process',
        'uneven_shares_and_class_weights_and_micro_batches_equal_the_joint_batch',
        'batchnorm_passes_are_those_of_each_process_and_replicas_stay_bit_equal_over_100_steps',
        'buffers_after_a_step_are_those_of_one_plain_forward_of_ddp',
        'dropout_and_ignored_samples_of_one_process_keep_replicas_equal',
        'local_ascent_perturbs_every_process_by_its_own_gradient',
        'random_perturbations_are_those_of_one_process',
        'overflow_in_any_pass_of_one_process_makes_all_skip',
        'fsdp2_through_accelerate_equals_one_process',
    ],
    4: [
        'processes_equal_one_process_with_the_joint_batch',
        'uneven_shares_and_class_weights_and_micro_batches_equal_the_joint_batch',
        'overflow_in_any_pass_of_one_process_makes_all_skip',
    ],
}


def start(processes, checks):
    """Output of the checks in a group of processes."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([
        str(HELPERS), str(ROOT), os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    result = subprocess.run(
        [*command, str(WORKER), *checks], env=env, capture_output=True, text=True, timeout=300, cwd=WORKER.parent)
    return result.stdout + '\n' + result.stderr[-6000:]


@pytest.fixture(scope='module')
def outputs():
    return {}


@pytest.mark.parametrize('processes, check', [(n, check) for n, checks in CHECKS.items() for check in checks])
def test_in_processes(processes, check, outputs):
    if processes not in outputs:
        outputs[processes] = start(processes, CHECKS[processes])
    assert f'passed {check}\n' in outputs[processes], outputs[processes]
