"""Losses of others, called and taken apart, and a loss of one's own.

Libraries that are not installed are skipped: `pip install sfr_repro[compare]`.
"""
import importlib.util
import itertools
import shutil
from pathlib import Path
import pytest
import torch
from conftest import ROOT
from sfr_repro.core.checks import autograd_gradient, relative_error, unit
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.notation import unit_rows
from sfr_repro.losses.decompose import decompose
from sfr_repro.losses.paradigm import recipe
from sfr_repro.losses.registry import LOSSES, make_loss
from sfr_repro.train.run import complete_setting

def views(B, D, seed):
    h = unit_rows(unit(B, D, seed=seed) + unit(1, D, seed=seed+100))
    return h, unit_rows(h + .3*unit(B, D, seed=seed+200))

# fewer and more rows than coordinates
SHAPES = [(6, 4, 0), (9, 3, 1), (4, 16, 2), (8, 40, 3)]

def softmax_pushes(h, h_pos, tau, anchors, candidates):
    "Coefficients of a sum of -log softmax, by loops: of each row in the gradient of each row"
    x, B, out = torch.cat([h, h_pos]), len(h), torch.zeros(2*len(h), 2*len(h), dtype=h.dtype)
    for a in anchors:
        among = candidates(a)
        p = torch.softmax(x[a] @ x[among].T/tau, 0)
        for k, c in enumerate(among):
            g = (p[k] - float(c == (a+B) % (2*B)))/tau
            out[a, c] += g
            out[c, a] += g
    return out/len(anchors)

def agrees(d, coefficients, B, bound=1e-6):
    off = 1 - torch.eye(B)
    assert d.identifiable and d.residual < bound
    size = coefficients.abs().max()
    assert ((d.push - coefficients[:B, B:]*off)/size).abs().max() < bound
    assert ((d.push_same - coefficients[:B, :B]*off)/size).abs().max() < bound
    assert ((d.pull + coefficients[:B, B:].diagonal())/size).abs().max() < bound

# ---------------------------------------------------------------- sentence-transformers

@pytest.fixture(scope='module')
def mnrl():
    pytest.importorskip('sentence_transformers')
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    def make(**choices):
        loss = MultipleNegativesRankingLoss(None, **choices)
        return lambda a, b: loss.compute_loss_from_embeddings([a, b], None)
    return make

@pytest.mark.parametrize('B,D,seed', SHAPES)
def test_in_batch_softmax_of_sentence_transformers(mnrl, B, D, seed):
    (h, h_pos), loss = views(B, D, seed), mnrl(scale=20.)
    agrees(decompose(loss, h, h_pos),
           softmax_pushes(h, h_pos, .05, range(B), lambda a: list(range(B, 2*B))), B)
    theirs, ours = decompose(loss, h, h_pos), make_loss('infonce').components(h, h_pos)
    assert relative_error(theirs.push, ours.push) < 1e-6 and theirs.negatives == 'cross'
    # control: another temperature
    assert relative_error(decompose(mnrl(scale=10.), h, h_pos).push, ours.push) > .01

def test_both_directions_of_sentence_transformers(mnrl):
    h, h_pos = views(9, 5, 0)
    d = decompose(mnrl(scale=20., directions=('query_to_doc', 'doc_to_query'),
                       partition_mode='per_direction'), h, h_pos)
    there, back = (recipe('infonce').grad(*x) for x in ((h, h_pos), (h_pos, h)))
    def tangent(g): return g - (g*h).sum(1, keepdim=True)*h
    composed = (d.push - d.pull.diag()) @ h_pos + d.push_same @ h
    assert relative_error(tangent(composed), tangent(there[0] + back[1])/2) < 1e-6

# ---------------------------------------------------------------- pytorch-metric-learning

@pytest.fixture(scope='module')
def pml(): return pytest.importorskip('pytorch_metric_learning.losses')

@pytest.mark.parametrize('B,D,seed', SHAPES)
def test_nt_xent_of_pytorch_metric_learning(pml, B, D, seed):
    h, h_pos = views(B, D, seed)
    d = decompose(pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=.1)), h, h_pos)
    agrees(d, softmax_pushes(h, h_pos, .1, range(2*B), lambda a: [c for c in range(2*B) if c != a]),
           B)
    assert d.negatives == 'both'

@pytest.mark.parametrize('B,D,seed', SHAPES)
def test_triplet_of_pytorch_metric_learning(pml, B, D, seed):
    (h, h_pos), margin = views(B, D, seed), 1.
    x, n, active = torch.cat([h, h_pos]), 2*B, 0
    distance = lambda i, j: (x[i]-x[j]).norm()
    coefficients = torch.zeros(n, n, dtype=h.dtype)
    for a, c in itertools.product(range(n), range(n)):
        p = (a+B) % n
        if c in (a, p) or distance(a, p) - distance(a, c) + margin <= 0: continue
        active += 1
        for i, j, k in ((a, p, -1/distance(a, p)), (a, c, 1/distance(a, c))):
            coefficients[i, j] += k
            coefficients[j, i] += k
    assert 0 < active                                          # the mean is over active triplets
    agrees(decompose(pml.SelfSupervisedLoss(pml.TripletMarginLoss(margin=margin)), h, h_pos),
           coefficients/active, B, 1e-5)

def same_and_fitted(theirs, ours):
    "Both care about coordinates: equal gradients, and no combination of rows explains either"
    h, h_pos = views(6, 40, 0)
    for a, b in zip(autograd_gradient(theirs, h, h_pos), autograd_gradient(ours, h, h_pos),
                    strict=True):
        assert relative_error(a, b) < 1e-12
    d = decompose(theirs, h, h_pos)
    assert not d.identifiable and d.residual > .01
    # control: 12 rows in 4 coordinates compose to anything
    few = decompose(theirs, *views(6, 4, 0))
    assert not few.identifiable and few.residual < 1e-9

def test_vicreg_of_pytorch_metric_learning_is_fitted(pml):
    loss = pml.VICRegLoss()
    same_and_fitted(lambda a, b: loss(a, ref_emb=b), make_loss('vicreg_textbook'))

def test_losses_that_need_labels_are_told_so(pml):
    with pytest.raises(UserError, match='wrap what needs labels'):
        decompose(pml.ArcFaceLoss(4, 5), *views(6, 5, 0))

# ---------------------------------------------------------------- lightly

@pytest.fixture(scope='module')
def barlow_twins_of_lightly():
    "Its package needs a matching torchvision; this one file loads alone"
    found = importlib.util.find_spec('lightly')                # looks, and runs nothing
    if found is None: pytest.skip('lightly is not installed')
    path = Path(found.submodule_search_locations[0])/'loss/barlow_twins_loss.py'
    spec = importlib.util.spec_from_file_location('barlow_twins_of_lightly', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BarlowTwinsLoss(lambda_param=5e-3)

def test_barlow_twins_of_lightly_is_fitted(barlow_twins_of_lightly):
    same_and_fitted(barlow_twins_of_lightly, make_loss('barlow_twins_textbook', lam=5e-3))

# ---------------------------------------------------------------- a loss of one's own

@pytest.fixture
def invented(tmp_path):
    "A copy of the invented loss and its experiment; the registry is left as it was"
    before = dict(LOSSES)
    for name in ('invented.py', 'invented.toml'):
        shutil.copy(ROOT/'nbs/experiments'/name, tmp_path/name)
    yield tmp_path
    for name in set(LOSSES) - set(before): del LOSSES[name]

def test_an_experiment_brings_its_own_loss(invented):
    assert 'infonce_met' not in LOSSES
    configs = load_experiment(invented/'invented.toml')
    config, loss = complete_setting(configs[0])
    assert loss.name == 'infonce_met' and loss.constants == {'tau': .1}
    assert {c.seed for c in configs} == {0, 1, 2}
    h, h_pos = views(7, 5, 0)
    ours, known = loss.components(h, h_pos), make_loss('infonce', tau=.1).components(h, h_pos)
    # one component exchanged
    assert relative_error(ours.push, known.push) < 1e-12
    assert relative_error(ours.ratio, known.ratio) > .05
    for a, b in zip(loss.grad(h, h_pos), autograd_gradient(loss, h, h_pos), strict=True):
        assert relative_error(a, b) < 1e-12
    d = decompose(loss, h, h_pos)
    assert relative_error(d.ratio, ours.ratio) < 1e-6 and d.negatives == 'cross'

def test_a_loss_that_was_changed_is_another_loss(invented):
    before, = load_experiment(invented/'invented.toml', ('seeds=[0]',))
    file = invented/'invented.py'
    file.write_text(file.read_text().replace('softmax(tau)/tau', 'softmax(2*tau)/tau'))
    with pytest.raises(UserError, match='the file has changed since the experiment was read'):
        complete_setting(before)
    after, = load_experiment(invented/'invented.toml', ('seeds=[0]',))
    assert after.id != before.id and after.loss.name == before.loss.name
