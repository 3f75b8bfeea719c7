"""Fast negatives are the host's negatives, fused Adam is Adam, bigger evaluation batches leave metrics alone."""

import copy
import pickle

import numpy as np
import pytest
import torch
from recbole.data.dataset import Dataset
from recbole.sampler import RepeatableSampler, Sampler
from recbole.utils import get_trainer

from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.data.sampling import eval_batch_size, use_fast_sampling, use_fused_adam

GENERAL = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}}


def fast_copy(loader):
    """A loader-like object with a mended copy of its sampler."""
    other = copy.copy(loader)
    other._sampler = copy.copy(loader._sampler)
    assert use_fast_sampling(other)
    return other


def draws(sampler, users, items, num):
    np.random.seed(7)
    found = sampler.sample_by_user_ids(users, items, num)
    return found, np.random.get_state()[1:3]


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
@pytest.mark.parametrize("num", [1, 3])
def test_negatives_and_the_stream_are_the_hosts(data, distribution, num):
    sampling = {"distribution": distribution, "sample_num": num, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    with recbole_compat():
        _, train, *_ = data("BPR", **GENERAL, train_neg_sample_args=sampling)
    assert type(train._sampler) is Sampler
    users = np.random.default_rng(0).integers(1, train._dataset.user_num, 500)
    items = np.zeros_like(users)
    expected, stream = draws(train._sampler, users, items, num)
    found, left = draws(fast_copy(train)._sampler, users, items, num)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)
    assert (stream[0] == left[0]).all()
    assert stream[1] == left[1]
    seen = train._sampler.used_ids[np.tile(users, num)]
    assert not any(int(item) in used for item, used in zip(found, seen, strict=True))


def test_one_user_alone_too(data):
    _, train, *_ = data("BPR", **GENERAL)
    users = np.full(200, 5)
    expected, _ = draws(train._sampler, users, users, 2)
    assert torch.equal(draws(fast_copy(train)._sampler, users, users, 2)[0], expected)


def test_redraws_happen(data):
    """The first draw alone would not do, or the tests above could not tell."""
    _, train, *_ = data("BPR", **GENERAL)
    users = np.random.default_rng(0).integers(1, train._dataset.user_num, 500)
    np.random.seed(7)
    first = train._sampler.sampling(500)
    assert sum(v in train._sampler.used_ids[u] for u, v in zip(users, first, strict=True)) > 5


def test_an_unknown_user_is_the_hosts_error(data):
    _, train, *_ = data("BPR", **GENERAL)
    with pytest.raises(ValueError, match=r"user_id \[9999\] not exist"):
        fast_copy(train)._sampler.sample_by_user_ids(np.array([1, 9999]), np.array([1, 1]), 1)


def test_a_sequential_hosts_negatives(data):
    _, train, *_ = data("SASRec", loss_type="BPR", train_neg_sample_args={"distribution": "uniform", "sample_num": 1})
    assert type(train._sampler) is RepeatableSampler
    generator = np.random.default_rng(0)
    users = generator.integers(1, train._dataset.user_num, 800)
    items = generator.integers(1, train._dataset.item_num, 800)
    expected, stream = draws(train._sampler, users, items, 2)
    found, left = draws(fast_copy(train)._sampler, users, items, 2)
    assert torch.equal(found, expected)
    assert stream[1] == left[1]
    assert not (found.numpy() == np.tile(items, 2)).any()


def test_whole_batches_are_the_hosts_and_the_sampler_pickles(data):
    _, train, *_ = data("BPR", **GENERAL)
    quick = fast_copy(train)
    quick._sampler = pickle.loads(pickle.dumps(quick._sampler))
    quick.collate_fn = type(quick).collate_fn.__get__(quick)

    def batches(loader):
        np.random.seed(3)
        return [loader.collate_fn(list(range(start, start + 50))) for start in (0, 50)]

    for found, expected in zip(batches(quick), batches(train), strict=True):
        assert found.interaction.keys() == expected.interaction.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected.interaction)


def test_other_samplers_stay_as_they_are(data):
    class Own(Sampler):
        pass

    _, train, *_ = data("BPR", **GENERAL)
    loader = copy.copy(train)
    loader._sampler = copy.copy(train._sampler)
    loader._sampler.__class__ = Own
    assert not use_fast_sampling(loader)
    assert "sample_by_key_ids" not in vars(loader._sampler)
    loader._sampler = None
    assert not use_fast_sampling(loader)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Adam", {}), ("Adam", {"weight_decay": 0.01}), ("AdamW", {"weight_decay": 0.01}), ("Adam", {"amsgrad": True})],
)
def test_fused_adam_is_adam(kind, options):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    grads = torch.randn(6, 50, 8, generator=generator, dtype=torch.float64)

    def trained(fuse_at):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = getattr(torch.optim, kind)([parameter], lr=0.01, **options)
        for step, grad in enumerate(grads):
            if step == fuse_at:
                assert use_fused_adam(optimizer)
                assert optimizer.param_groups[0]["fused"]
            parameter.grad = grad.clone()
            optimizer.step()
        return parameter.detach()

    expected = trained(None)
    assert (expected - start).abs().max() > 0.01
    for fuse_at in (0, 3):  # from the beginning, and in the middle of a run
        torch.testing.assert_close(trained(fuse_at), expected, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_fused_stays_as_it_is():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not use_fused_adam(torch.optim.SGD([parameter], lr=0.1))
    differentiable = torch.optim.Adam([parameter], differentiable=True)
    assert not use_fused_adam(differentiable)
    assert not differentiable.param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("n_items", "given", "expected"),
    [
        (7051, 4096, 256 * 7051),
        (7051, 10_000_000, 10_000_000),
        (1_000_000, 4096, 33 * 1_000_000),
        (2**26, 4096, 2**26),  # one user at least
        (3, 4096, 4096),
    ],
)
def test_eval_batch_size(n_items, given, expected):
    assert eval_batch_size(n_items, given) == expected


def test_a_model_that_scores_pairs_keeps_its_eval_batch_size():
    from recbole.model.general_recommender import BPR, NeuMF

    assert eval_batch_size(7051, 4096, NeuMF) == 4096
    assert eval_batch_size(7051, 4096, BPR) > 4096


@pytest.mark.parametrize("mode", ["uni100", "pop100", "labeled", {"valid": "uni100", "test": "full"}])
def test_sampled_candidates_keep_their_eval_batch_size(mode):
    """They are scored as pairs, each with a row of every embedding: a batch of the size of a ranking is gigabytes."""
    assert eval_batch_size(7051, 4096, mode=mode) == 4096


def test_full_ranking_in_both_phases_is_full_ranking():
    assert eval_batch_size(7051, 4096, mode={"valid": "full", "test": "full"}) == 256 * 7051


def test_metrics_do_not_depend_on_the_batch(build):
    found = []
    for size in (100, eval_batch_size(41, 100)):
        config, model, train, valid, _ = build("LightGCN", None, **GENERAL, eval_batch_size=size)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.eval_collector.data_collect(train)
        with recbole_compat():
            found.append((len(valid), trainer.evaluate(valid, load_best_model=False)))
    assert found[0][0] > 10 * found[1][0]
    assert found[0][1] == found[1][1]
    assert any(0 < value < 1 for value in found[0][1].values())


def test_sequential_full_ranking_counts_users(data):
    """So its batches need no mending: what `eval_batch_size` says of them."""
    _, _, valid, _ = data("SASRec", eval_batch_size=17, train_neg_sample_args=None)
    assert isinstance(valid._dataset, Dataset)
    assert len(next(iter(valid))[0]) == 17
