"Hard negatives in the losses, and triples in training: alone, in chunks, in processes, from a file"
from types import SimpleNamespace
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from conftest import found_by_processes
from sfr_repro.core.checks import autograd_gradient, relative_error, unit
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.teachers import self_teacher
from sfr_repro.losses.registry import LOSSES, make_loss
from sfr_repro.train.distributed import Processes
from sfr_repro.train.run import complete_setting, run
from sfr_repro.train.views import TwoViews, cached_backward

HARD = [name for name, spec in LOSSES.items() if spec.hard]

def references(loss, B, M):
    v, w = unit(B, 4, seed=5), unit(B+M, 4, seed=6)
    return {n: (v, w) for n in loss.needs}

def test_the_losses_that_compare_with_a_list_take_them():
    assert HARD == ['infonce', 'arccon', 'mpt', 'met', 'mat', 'simulated_gradient',
                    'softcse_weight', 'softcse_temperature']
    h = unit(4, 3)
    for name in set(LOSSES)-set(HARD):
        with pytest.raises(UserError, match=f'{name} was given h_neg'): make_loss(name)(h, h, h)

@pytest.mark.parametrize('name', HARD)
@pytest.mark.parametrize('B,M', [(5, 5), (4, 8), (1, 3)])
def test_value_gradient_and_components(name, B, M):
    loss = make_loss(name, normalize=True)
    views = 2*unit(B, 4, seed=1), unit(B, 4, seed=2), unit(M, 4, seed=3)/3
    given = references(loss, B, M)
    auto = autograd_gradient(lambda *x: loss(*x, **given), *views)
    hand = loss.grad(*views, **given)
    assert [g.shape for g in hand] == [v.shape for v in views]
    assert max(map(relative_error, hand, auto)) < 1e-9
    c = loss.components(*views, **given)
    assert c.weight.shape == (B, B+M) and not c.weight.diagonal().any()
    unit_loss = make_loss(name)
    units = [v/v.norm(dim=1, keepdim=True) for v in views]
    composed = c.gradient(units[0], units[1], units[2])
    assert relative_error(composed, unit_loss.grad(*units, **given)[0]) < 1e-9

def test_without_hard_negatives_nothing_changes():
    h, h_pos = unit(6, 4, seed=1), unit(6, 4, seed=2)
    for name in HARD:
        loss = make_loss(name)
        assert loss.constants.get('hard_negative_weight') is None
        assert len(loss.grad(h, h_pos, **references(loss, 6, 0))) == 2

def test_a_weight_for_the_own_one_is_a_constant():
    h, h_pos, h_neg = (unit(4, 3, seed=k) for k in range(3))
    one, real = (make_loss('infonce', hard_negative_weight=x) for x in (1, 1.))
    assert repr(one) == repr(real) == 'infonce(tau=0.05, hard_negative_weight=1)'
    assert one(h, h_pos, h_neg) > make_loss('infonce')(h, h_pos, h_neg)
    with pytest.raises(UserError, match='there is no h_neg to weigh'): one(h, h_pos)
    with pytest.raises(UserError, match='3 hard negatives for 4 anchors'): one(h, h_pos, h_neg[:3])
    with pytest.raises(UserError, match='it must be a finite number'):
        make_loss('infonce', hard_negative_weight='a')
    with pytest.raises(UserError, match="mpt has no constant 'hard_negative_weight'"):
        make_loss('mpt', hard_negative_weight=1)

B, T, WORDS, W = 8, 4, 30, 2

class Small:
    "In place of an encoder: words to vectors"
    device = torch.device('cpu')
    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.ModuleDict(dict(words=nn.Embedding(WORDS, 12), top=nn.Linear(12, 6)))
        self.model.double().config = SimpleNamespace(model_type='small')
    def forward(self, ids, mask):
        x = (self.model['words'](ids)*mask[..., None]).sum(1)/mask.sum(1, keepdim=True)
        return self.model['top'](x).tanh()

CASES = [('infonce', dict(hard_negative_weight=1.)), ('mat', {}), ('simulated_gradient', {}),
         ('softcse_temperature', {})]

def gradient(name, constants, chunk, tile=None, rank=None):
    "Of the words and the map, by the trainer's own module"
    ids = torch.randint(0, WORDS, (B, 3, T), generator=torch.Generator().manual_seed(1))
    if rank is not None: ids = ids[rank*B//W:(rank+1)*B//W]
    loss = make_loss(name, tile=tile, **constants)
    processes = None if rank is None else Processes(rank, W)
    online = self_teacher if loss.needs else None
    module = TwoViews(Small(), nn.Identity(), loss, online, processes=processes, packed=False)
    wrapped = module if rank is None else DDP(module)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    if chunk: cached_backward(module, batch, chunk, wrapped=wrapped)
    else: wrapped(**batch)['loss'].backward()
    return torch.cat([p.grad.flatten() for p in module.model.parameters()])

def gradients(rank):
    return {(k, chunk): gradient(*case, chunk, rank=rank)
            for k, case in enumerate(CASES) for chunk in (None, 3)}

def test_chunks_tiles_and_processes_have_the_gradient_of_the_whole_batch(tmp_path):
    found = found_by_processes(gradients, tmp_path, W)
    for k, case in enumerate(CASES):
        one = gradient(*case, None)
        for other in (gradient(*case, 3), gradient(*case, 3, tile=3), found[k, None], found[k, 3]):
            assert relative_error(other, one) < 1e-9, case
    assert relative_error(gradient('infonce', {}, None), gradient(*CASES[0], None)) > .01

TABLE = """preset = "smoke"
[data]
triples = "own.tsv"
[loss]
name = "infonce"
tau = 0.2
hard_negative_weight = 1
[train]
steps = 2
eval_every = 1
precision = "fp32"
"""

@pytest.fixture
def experiment(tmp_path):
    s = load_mini_corpus()[:60]
    triples = zip(s[::3], s[1::3], s[2::3], strict=True)
    rows = ['anchor\tpositive\tnegative', *map('\t'.join, triples)]
    (tmp_path/'own.tsv').write_text('\n'.join(rows)+'\n')
    (tmp_path/'supervised.toml').write_text(TABLE)
    return tmp_path/'supervised.toml'

def test_a_run_from_a_table(experiment, tmp_path):
    record = read_record(run(load_experiment(experiment)[0], tmp_path/'runs', progress=False))
    assert record.data[0].name == 'triples/own.tsv' and record.data[0].rows == 20
    assert record.config['data'] == {'corpus': [], 'source': 'embedded', 'triples': 'own.tsv'}
    assert record.config['loss']['constants'] == {'tau': .2, 'hard_negative_weight': 1.}
    assert len(record.trajectory) == 3 and 'dissipation' in record.trajectory[1].metrics

def test_what_triples_refuse(experiment):
    def refused(why, *overrides):
        with pytest.raises(UserError, match=why):
            for c in load_experiment(experiment, overrides): complete_setting(c)
    refused("loss.name is 'mhe' and data.triples is 'own.tsv'", 'loss.name=mhe')
    refused('there is no file', 'data.triples=none.tsv')
    refused('it must be a file that ends in .tsv or .csv', 'data.triples=own.txt')
    refused('data.triples is not set: there are no hard negatives', 'data.corpus=["mini"]')
    refused('with triples the teacher must be self', 'loss.name=softcse_weight',
            'teacher.name=ppmi')
    text = experiment.read_text().replace('[data]', '[data]\ncorpus = ["mini"]')
    experiment.write_text(text)
    refused('has corpus and triples: give one of them')
