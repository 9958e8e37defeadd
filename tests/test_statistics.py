"Paper A's statistics on other batches, and the probe that must not disturb what it watches."
import math
from contextlib import nullcontext
import pytest
import torch
from sfr_repro.analysis.statistics import (
    Probe,
    cosine_means,
    dynamic_ratios,
    hard_negative_share,
    mixcse_ratio,
    over_training,
    ratio_bounds,
    ratio_step,
    statistics,
    watch_training,
)
from sfr_repro.core.checks import degenerate_batches, unit
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.notation import unit_rows
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder

def views(B, D, seed, lean=.6, noise=.3):
    h = unit_rows(unit(B, D, seed=seed) + lean*unit(1, D, seed=seed+50))
    return h, unit_rows(h + noise*unit(B, D, seed=seed+100))

pytestmark = pytest.mark.once                              # own sentences only

SHAPES = [(2, 3, 0, .6), (7, 2, 1, 0.), (16, 40, 2, 2.), (30, 3, 3, 0.)]

@pytest.mark.parametrize('B,D,seed,lean', SHAPES)
@pytest.mark.parametrize('lam', [.001, .1, 1.])
def test_bounds_are_what_the_step_does(B, D, seed, lean, lam):
    h, h_pos = views(B, D, seed, lean)
    bounds = ratio_bounds(h, h_pos, lam=lam, margin=2.)
    edges = torch.cat([bounds.lower, bounds.upper, bounds.minus, bounds.plus])
    finite = edges[edges.isfinite()]
    near = 1e-4*finite.abs().clamp(min=1)
    seen = 0
    for r in [*(finite-near).tolist(), *(finite+near).tolist(), -1., 0., 1., 3.]:
        clear = (((edges-r).abs() > 1e-6*max(1, abs(r))) | edges.isnan()).view(4, B).all(0)
        promised = bounds.closer(r), bounds.farther(r)
        for said, did in zip(promised, ratio_step(h, h_pos, r, lam), strict=True):
            assert torch.equal(said[clear], did[clear])
            seen += int(clear.sum())
    assert seen > 4*B

def test_bounds_of_another_step_are_not():
    "Control of the test above"
    h, h_pos = views(30, 3, 3)
    off, lam = ratio_bounds(h, h_pos, lam=.2, margin=2.), .1
    wrong = 0
    for r in range(20):
        closer, farther = ratio_step(h, h_pos, r, lam)
        wrong += ((off.closer(r) != closer) | (off.farther(r) != farther)).sum().item()
    assert wrong > 20

def test_mixcse_stands_on_both_sides_of_one():
    for B, D, seed, lean in SHAPES:
        h, h_pos = views(B, D, seed, lean)
        for share in (.1, .5, .9):
            for tau in (.05, 1.):
                derived = mixcse_ratio(h, h_pos, share, tau, 'derived')
                code = mixcse_ratio(h, h_pos, share, tau, 'official')
                assert (derived <= 1+1e-12).all() and (code >= 1-1e-12).all()
                assert (code - derived).max() > 1e-4
    same = unit(1, 4, seed=0).expand(3, 4)          # positive = negative: the mixture has length 1
    for f in ('derived', 'official'):
        torch.testing.assert_close(mixcse_ratio(same, same, form=f), torch.ones(3).double())
    with pytest.raises(UserError, match='share is 1'): mixcse_ratio(h, h_pos, share=1)
    with pytest.raises(UserError, match="form is 'paper'"): mixcse_ratio(h, h_pos, form='paper')

def test_precision_and_degenerate_batches():
    h, h_pos = views(12, 6, 4)
    single = statistics(h.float(), h_pos.float())
    for k, x in statistics(h, h_pos).items():
        assert math.isclose(single[k], x, rel_tol=2e-4, abs_tol=1e-5), k
    for name, (h, h_pos) in degenerate_batches().items():
        if len(h) > 1:
            found = statistics(h, h_pos, margin=2.5)
            assert all(map(math.isfinite, found.values())), (name, found)
    h, h_pos = views(12, 6, 4)
    far = {k: len(v) for k, v in dynamic_ratios(h, h_pos, margin=2.5).items()}
    assert set(far.values()) == {12} and len(hard_negative_share(h, h_pos, margin=1e-9)) < 12

def test_errors():
    h, h_pos = views(5, 4, 0)
    with pytest.raises(UserError, match='lam is 0'): ratio_bounds(h, h_pos, lam=0)
    with pytest.raises(UserError, match='tau is -1'): hard_negative_share(h, h_pos, tau=-1)
    with pytest.raises(ValueError, match='must have one shape'): cosine_means(h, h_pos[:4])

def tiny(**more):
    settings = {'train.steps': 4, 'train.eval_every': 2, 'train.precision': 'fp32',
                'train.batch': 8}
    return load_experiment('smoke', tuple(f'{k}={v}' for k, v in (settings | more).items()))[0]

def test_the_probe_disturbs_nothing(tmp_path, monkeypatch):
    sentences = load_mini_corpus()[:6]
    seen = watch_training(tiny(), sentences, tmp_path/'a')
    again = watch_training(tiny(**{'train.eval_every': 4}), sentences, tmp_path/'b')
    assert list(seen) == [0, 2, 4] and list(again) == [0, 4]
    for step in (0, 4):
        for a, b in zip(seen[step], again[step], strict=True):
            assert torch.equal(a, b)                    # measuring in between changes no digit
    assert not torch.equal(seen[0][0], seen[4][0])
    table = over_training(seen)
    assert table.index.tolist() == [0, 2, 4] and {'pos_cos', 'neg_cos', 'active'} <= set(table)
    monkeypatch.setattr(torch.random, 'fork_rng', nullcontext)      # control: draws from our state
    spoiled = watch_training(tiny(), sentences, tmp_path/'c')
    assert not torch.equal(spoiled[4][0], again[4][0])

def test_the_probe_is_no_part_of_the_training_sentences(tmp_path):
    corpus = load_mini_corpus()
    with pytest.raises(UserError, match='the corpus has 5 sentences'):
        watch_training(tiny(), corpus[5:], tmp_path)

def test_a_look_leaves_the_model_as_it_was():
    encoder = SentenceEncoder.from_pretrained('sfr-mini', precision='fp32', dropout=.3)
    for mode in (True, False):
        encoder.model.train(mode)
        h, h_pos = Probe(encoder, load_mini_corpus()[:3]).two_views()
        assert encoder.model.training is mode
        assert not torch.equal(h, h_pos) and h.dtype == torch.float64
        torch.testing.assert_close(h.norm(dim=1), torch.ones(3, dtype=torch.float64))
