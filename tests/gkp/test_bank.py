import math

import pytest
import torch

from timm_lt.gkp import MemoryBank


def encoder(value, size=5):
    return [torch.full((2, 3), float(value)), torch.arange(size, dtype=torch.float32) * value + 1]


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def reference_bank(scores, parameters):
    """C whole copies, the way the method is written down."""
    best = [-math.inf] * scores.shape[1]
    stored = [None] * scores.shape[1]
    for epoch, row in enumerate(scores.tolist()):
        for c, score in enumerate(row):
            if score > best[c]:
                best[c], stored[c] = score, flat(parameters[epoch]).double()
    return stored


@pytest.mark.parametrize('on_disk', [False, True])
def test_bank_equals_one_copy_per_class(tmp_path, on_disk):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(12, 7, generator=generator)
    parameters = [[torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)] for _ in range(12)]
    bank = MemoryBank(7, tmp_path if on_disk else None)
    for epoch in range(12):
        bank.update(epoch, scores[epoch], parameters[epoch])
    stored = reference_bank(scores, parameters)
    for c in range(7):
        torch.testing.assert_close(bank.snapshot(int(bank.best_epoch[c])).double(), stored[c], rtol=0, atol=0)
    unit = torch.stack([s / s.norm() for s in stored])
    torch.testing.assert_close(bank.similarity(), unit @ unit.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        bank.anchor(torch.tensor([0, 2, 5])).double(), (stored[0] + stored[2] + stored[5]) / 3, rtol=1e-6, atol=1e-6)


def test_snapshots_are_shared_and_dropped_when_no_class_uses_them():
    bank = MemoryBank(3)
    bank.update(0, torch.tensor([1.0, 1.0, 1.0]), encoder(1))
    assert bank.epochs == [0] and len(bank._snapshots) == 1
    bank.update(1, torch.tensor([2.0, 0.0, 2.0]), encoder(2))
    assert bank.epochs == [0, 1] and bank.best_epoch.tolist() == [1, 0, 1]
    bank.update(2, torch.tensor([0.0, 2.0, 0.0]), encoder(3))
    assert bank.epochs == [1, 2] and sorted(bank._snapshots) == [1, 2]
    assert set(bank._gram) == {(1, 1), (1, 2), (2, 2)}


def test_snapshot_does_not_alias_the_live_weights():
    live = encoder(1)
    bank = MemoryBank(1)
    bank.update(0, torch.tensor([1.0]), live)
    live[0].add_(5)
    assert float(bank.snapshot(0)[0]) == 1.0


def test_class_without_a_quality_is_stored_and_replaced_by_the_first_number():
    bank = MemoryBank(2)
    nan = float('nan')
    bank.update(0, torch.tensor([nan, 3.0]), encoder(1))
    assert bank.is_filled and bank.best_epoch.tolist() == [0, 0]
    bank.update(1, torch.tensor([nan, nan]), encoder(2))
    assert bank.best_epoch.tolist() == [0, 0]
    bank.update(2, torch.tensor([-50.0, 1.0]), encoder(3))
    assert bank.best_epoch.tolist() == [2, 0]


def test_bfloat16_snapshots_take_half_the_space(tmp_path):
    bank = MemoryBank(1, dtype='bfloat16')
    bank.update(0, torch.tensor([1.0]), encoder(1.7))
    assert bank.snapshot(0).dtype == torch.bfloat16
    torch.testing.assert_close(bank.anchor(torch.tensor([0])), flat(encoder(1.7)), rtol=1e-2, atol=0)


@pytest.mark.parametrize('on_disk', [False, True])
def test_resumed_bank_continues_bit_equal(tmp_path, on_disk):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(10, 5, generator=generator)
    parameters = [[torch.randn(6, generator=generator)] for _ in range(10)]

    def run(bank, first, last):
        for epoch in range(first, last):
            bank.update(epoch, scores[epoch], parameters[epoch])
        return bank

    bank = run(MemoryBank(5, tmp_path if on_disk else None), 0, 4)
    state = bank.state_dict()
    run(bank, 4, 10)
    resumed = MemoryBank(5, tmp_path if on_disk else None)
    resumed.load_state_dict(state)
    run(resumed, 4, 10)
    assert torch.equal(bank.best_epoch, resumed.best_epoch)
    assert torch.equal(bank.best_score, resumed.best_score)
    assert torch.equal(bank.similarity(), resumed.similarity())
    for epoch in bank.epochs:
        assert torch.equal(bank.snapshot(epoch), resumed.snapshot(epoch))


def test_checkpoints_in_place_keep_their_snapshots_and_no_others_do(tmp_path):
    def files():
        return sorted(int(path.stem[-4:]) for path in tmp_path.glob('*.pt'))

    bank, saved = MemoryBank(1, tmp_path), {}
    for epoch in range(6):
        bank.update(epoch, torch.tensor([float(epoch)]), encoder(epoch))
        for name in {1: ['best', 'last'], 3: ['last']}.get(epoch, []):
            saved[name] = bank.state_dict()
            bank.checkpointed(name)
    assert files() == [1, 3, 4, 5]  # best, last, and what came after the last checkpoint
    for name, epoch in (('best', 1), ('last', 3)):
        resumed = MemoryBank(1, tmp_path)
        resumed.load_state_dict(saved[name])
        assert torch.equal(resumed.snapshot(epoch), flat(encoder(epoch)))
    resumed.update(6, torch.tensor([6.0]), encoder(6))
    resumed.checkpointed('last')
    assert files() == [1, 6]
    (tmp_path / 'encoder_0001.pt').unlink()
    with pytest.raises(FileNotFoundError, match=r'\[1\].*put the files back'):
        MemoryBank(1, tmp_path).load_state_dict(saved['best'])


def test_process_that_stores_nothing_follows_the_epochs():
    storing, other = MemoryBank(3), MemoryBank(3, stores=False)
    for epoch, score in enumerate(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))):
        storing.update(epoch, score, encoder(epoch))
        other.update(epoch, score, encoder(epoch))
    assert torch.equal(storing.best_epoch, other.best_epoch) and not other._snapshots
    with pytest.raises(RuntimeError, match='stores=False'):
        other.snapshot(storing.epochs[0])


def test_bank_of_inaturalist_counts_holds_epochs_not_classes():
    """8142 classes: memory is (distinct best epochs) x (encoder), and similarity needs their inner products only."""
    num_classes, epochs, size = 8142, 12, 1000
    generator = torch.Generator().manual_seed(0)
    bank = MemoryBank(num_classes)
    for epoch in range(epochs):
        bank.update(epoch, torch.randn(num_classes, generator=generator), [torch.randn(size, generator=generator)])
    stored = sum(v.numel() * v.element_size() for v in bank._snapshots.values())
    assert stored == len(bank.epochs) * size * 4 <= epochs * size * 4
    assert len(bank._gram) == len(bank.epochs) * (len(bank.epochs) + 1) // 2
    assert bank.similarity().shape == (num_classes, num_classes)


def test_bank_refuses_an_old_epoch_and_a_wrong_number_of_scores():
    bank = MemoryBank(2)
    bank.update(3, torch.tensor([1.0, 1.0]), encoder(1))
    with pytest.raises(ValueError, match='larger than 3'):
        bank.update(3, torch.tensor([2.0, 2.0]), encoder(1))
    with pytest.raises(ValueError, match='shape'):
        bank.update(4, torch.tensor([2.0]), encoder(1))
