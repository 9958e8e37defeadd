"The names of DESIGN 3, imported as a user would, and their signatures."
import inspect
import subprocess
import sys
from collections.abc import Mapping
import pytest
from conftest import ROOT

def keywords(f):
    parameters = inspect.signature(f).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

def test_registry():
    import torch
    from sfr_repro.core.notation import Components
    from sfr_repro.losses.registry import LOSSES, make_loss
    names = list(inspect.signature(make_loss).parameters)
    assert names == ['name', 'normalize', 'tile', 'constants']
    h, h_pos = torch.eye(3), torch.eye(3)
    for name, spec in LOSSES.items():
        loss = make_loss(name)
        assert loss.name == spec.name == name
        assert loss.constants == spec.constants == keywords(spec.value)
        tensors = {n: torch.zeros(3, 3) for n in loss.needs}
        assert loss(h, h_pos, **tensors).shape == ()
        assert [g.shape for g in loss.grad(h, h_pos, **tensors)] == [(3, 3)]*2
        assert isinstance(loss.components(h, h_pos, **tensors), Components)

DEFAULTS = {
    'infonce': dict(tau=.05), 'mpt': dict(margin=.23), 'met': dict(margin=.45),
    'mat': dict(margin=.15), 'mhe': dict(lam=10.), 'mhs': dict(lam=1.),
    'arccon': dict(tau=.05, u=3.141592653589793/18),
    'simulated_gradient': dict(margin=.3, tau=.05, ratio=1., power=None),
    'vicreg': dict(lam=30.), 'barlow_twins': dict(lam=30.),
    'mhe_repaired': dict(ratio=1.75, lam=1., margin=.3, tau=.05, power=None,
                         repair=('dissipation', 'weight', 'ratio'), mask='same'),
    'mhs_repaired': dict(ratio=1.75, lam=1., margin=.3, mask='same'),
    'vicreg_repaired': dict(ratio=1.5, lam=1., margin=.3, tau=.05, power=None,
                            repair=('dissipation', 'weight', 'ratio'), mask='same'),
    'barlow_twins_repaired': dict(ratio=1.5, lam=1., margin=.3, tau=.05, power=None,
                                  repair=('dissipation', 'weight', 'ratio'), mask='same')}

@pytest.mark.parametrize('name', DEFAULTS)
def test_defaults(name):
    from sfr_repro.losses.registry import LOSSES
    have = LOSSES[name].constants
    for constant, value in DEFAULTS[name].items(): assert have[constant] == value, (constant, have)

def test_all_losses_of_the_design_are_registered():
    from sfr_repro.losses.registry import LOSSES
    more = {'vicreg_textbook', 'barlow_twins_textbook', 'softcse_weight', 'softcse_temperature'}
    assert set(DEFAULTS) | more <= set(LOSSES)

def test_a_loss_is_a_module_without_parameters_and_a_fixed_value():
    import copy
    import dataclasses
    import pickle
    import torch
    from sfr_repro.losses.registry import LOSSES, make_loss
    for name in LOSSES:
        loss = make_loss(name)
        assert isinstance(loss, torch.nn.Module)
        assert not list(loss.parameters()) and not loss.state_dict()
        assert loss == make_loss(name) == copy.deepcopy(loss) == pickle.loads(pickle.dumps(loss))
        assert len({loss, make_loss(name)}) == 1 and loss != make_loss(name, normalize=True)
        assert repr(loss).startswith(name + '(') and len(repr(loss)) < 200
        with pytest.raises(dataclasses.FrozenInstanceError): loss.constants = {}
    infonce = make_loss('infonce', tau=.1)
    assert repr(infonce) == 'infonce(tau=0.1)' and infonce != make_loss('infonce', tau=.2)
    assert torch.nn.Sequential(torch.nn.Linear(2, 2), infonce).train().eval()[1] == infonce

LENGTHS = '''
import warnings, torch
from sfr_repro.losses.registry import make_loss
h = torch.nn.functional.normalize(torch.randn(4, 3))
make_loss('infonce')(h, h)
make_loss('infonce', normalize=True)(2*h, h)
make_loss('vicreg_textbook')(2*h, h)
print('quiet')
for name in ('infonce', 'mhe'): make_loss(name)(h, 2*h)
'''

def test_rows_that_are_not_unit_length_are_told_once():
    done = subprocess.run([sys.executable, '-W', 'always', '-c', LENGTHS], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == 'quiet\n', done.stderr
    told = [o for o in done.stderr.splitlines() if 'UserWarning' in o]
    assert len(told) == 1, done.stderr
    expected = ('infonce was given a row of length 2: it expects unit rows, '
                "write make_loss('infonce', normalize=True)")
    assert expected in told[0]

def test_encoder():
    from sfr_repro.encode.encoder import POOLERS, SentenceEncoder
    assert {'cls', 'mean', 'max', 'first_last', 'embedding_last'} == set(POOLERS)
    assert {'pooler', 'precision'} <= set(keywords(SentenceEncoder.from_pretrained))
    assert 'progress' in keywords(SentenceEncoder.encode)
    assert hasattr(SentenceEncoder, 'save_pretrained')

def test_sts():
    from sfr_repro.data.sts import STS_SETS
    from sfr_repro.evaluate.sts import STSResult, evaluate_sts
    assert STS_SETS == ('STS12', 'STS13', 'STS14', 'STS15', 'STS16', 'STS-B', 'SICK-R')
    have = keywords(evaluate_sts)
    assert have['sets'] == STS_SETS and have['split'] == 'test' and have['rendering'] == 'raw'
    assert issubclass(STSResult, Mapping)
    for name in ('subsets', 'mean', 'wmean', 'average'): assert hasattr(STSResult, name)

def test_config_and_run():
    from pathlib import Path
    from sfr_repro.core.config import RunConfig, load_experiment
    from sfr_repro.train.run import run
    runs = load_experiment('smoke')
    assert isinstance(runs, tuple) and isinstance(runs[0], RunConfig) and len(runs[0].id) == 12
    signature = inspect.signature(run)
    assert signature.parameters['config'] and signature.return_annotation is Path

def test_checks_and_geometry():
    from sfr_repro.core.checks import check_gradient, seed_all
    from sfr_repro.geometry.metrics import geometry
    assert callable(check_gradient) and callable(seed_all)
    assert keywords(geometry)['reading'] == 'clean'

def test_every_experiment_file_is_sound():
    import tomllib
    from pathlib import Path
    from sfr_repro.core.config import load_experiment
    from sfr_repro.pretrain.config import pretrain_config
    from sfr_repro.train.run import complete_setting
    paths = sorted((Path(__file__).resolve().parents[1]/'nbs/experiments').rglob('*.toml'))
    assert len(paths) > 20
    for path in paths:
        header = path.read_text().split('\npreset')[0]
        # its page holds the file to the records that made it
        made = 'Made by results/constants' in header
        words = () if made else ('Should reach:', 'On:', 'How long:')
        assert all(w in header for w in words), \
            f'{path.name}: the header says what it should reach, on what, how long'
        if 'pretrain' in tomllib.loads(path.read_text()): pretrain_config(path); continue
        for config in load_experiment(path): complete_setting(config)
