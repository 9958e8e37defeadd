"The programs of tests/gpu on the CPU with tiny sizes: they must run at the first try on a GPU."
import importlib.util
import json
import sys
from pathlib import Path
import pytest
import torch
from conftest import ROOT

GPU = ROOT/'tests/gpu'


@pytest.fixture
def program(monkeypatch):
    "Loads a file of tests/gpu as the module it is there"
    monkeypatch.syspath_prepend(str(GPU))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    def load(name):
        if name in sys.modules: return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, GPU/f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    before = set(sys.modules)
    yield load
    for name in {p.stem for p in GPU.glob('*.py')} - before: sys.modules.pop(name, None)


def call(module, folder, *more):
    "Exit code, and what the file says"
    code = module.main(['--device', 'cpu', '--tiny', '--out', str(folder), *more])
    return code, json.loads((folder/f'{module.__name__}.json').read_text())


def test_correct(program, tmp_path):
    correct = program('correct')
    code, found = call(correct, tmp_path, '--minutes', '30')
    items = {i['item']: i for i in found['items']}
    assert code == 0 and found['complete'] and {i['status'] for i in items.values()} == {'passed'}
    losses = [items[f'loss {name}'] for name in correct.LOSSES]
    tiled = [i for i in losses if i['without_tiled_form'] is None]
    assert len(losses) >= 18 and len(tiled) >= 8
    for i in losses: assert len(i['checks']) == (12 if i in tiled else 6)
    for i in items.values():
        for c in i['checks']: assert c['passed'] and 0 <= c['error'] <= c['bound']
    resumed = items['resume after a kill']
    assert resumed['bit_equal'] and resumed['checks'][1]['error'] == 0
    assert items['chunks with dropout']['control'] > .05
    assert {'form padded', 'form unpadded', 'form lean'} <= set(items)


def test_a_wrong_gradient_is_reported(program, tmp_path, capsys):
    "And the next item runs"
    from sfr_repro.losses.registry import LossSpec, make_loss

    class Wrong(torch.autograd.Function):
        "Twice its argument, with the gradient of its argument"
        @staticmethod
        def forward(ctx, x): return 2*x
        @staticmethod
        def backward(ctx, g): return g

    good = make_loss('infonce')
    def wrong_hand(h, h_pos): return 2*good(h, h_pos)
    def wrong_on_one_device(h, h_pos):                  # right in float64 only
        return 2*good(h, h_pos) if h.dtype == torch.float64 else Wrong.apply(good(h, h_pos))
    def twice(h, h_pos): return tuple(2*g for g in good.grad(h, h_pos))
    correct = program('correct')
    for f, grad in ((wrong_hand, good.grad), (wrong_on_one_device, twice)):
        correct.LOSSES[f.__name__] = LossSpec(f, grad, good.components)
    code, found = call(correct, tmp_path, '--only', 'loss wrong')
    hand, device = found['items']
    assert code == 1 and found['counts'] == {'passed': 0, 'failed': 2, 'left out': 0}
    assert hand['status'] == device['status'] == 'failed'
    wrong = {c['check'] for c in device['checks'] if not c['passed']}
    assert wrong == {'plain float32 autograd', 'plain bfloat16 autograd'}
    assert 'failed   loss wrong_hand' in capsys.readouterr().out


def test_an_error_and_the_clock(program, tmp_path):
    "An exception is recorded with its type; what starts after the budget is left out"
    report, arguments = program('report'), ['--device', 'cpu', '--out', str(tmp_path)]
    def broken(): raise FloatingPointError('as planned')
    one = report.Report('one', report.parse('', arguments, 1.))
    one.item('broken', broken)
    one.item('fine', lambda: {'line': 'fine'})
    one.item('not a number', lambda: report.checks([report.check('x', float('nan'), 1.)]))
    two = report.Report('two', report.parse('', [*arguments, '--minutes', '0'], 1.))
    two.item('late', broken)
    assert (one.end(), two.end()) == (1, 0)
    one, two = (json.loads((tmp_path/f'{n}.json').read_text())['items'] for n in ('one', 'two'))
    assert [i['status'] for i in one] == ['failed', 'passed', 'failed']
    assert one[0]['line'] == 'FloatingPointError: as planned' and two[0]['status'] == 'left out'


def test_speed(program, tmp_path):
    pytest.importorskip('sentence_transformers')
    code, found = call(program('speed'), tmp_path, '--minutes', '30')
    items = {i['item']: i for i in found['items']}
    assert code == 0 and {i['status'] for i in items.values()} == {'passed'}
    sides = items['step bf16 b16']['sides']
    assert {'theirs', 'padded', 'masked', 'buckets', 'unpadded', 'lean'} <= set(sides)
    for side in sides.values():
        for quantity in ('seconds', 'ratio', 'flops', 'share_of_peak'):
            s = side[quantity]
            assert 0 < s['q1'] <= s['median'] <= s['q3'] and s['turns'] == 2
    assert sides['theirs']['ratio']['median'] == 1
    assert items['peak bfloat16']['best'] > 0
    assert [s['value'] > 0 for s in items['tiled loss']['losses'].values()] == [True]*3
    assert items['trainer bf16 b128']['seconds']['median'] > 0


def test_the_work_is_that_of_the_plan(program):
    "Counted here, and by the package"
    steps, room = program('steps'), 'sfr_repro.train.'
    places = [room + name for name in ('cost', 'plan') if importlib.util.find_spec(room + name)]
    cost = importlib.import_module(places[0])
    shape = cost.Shape(12, 768, 3072, 12, 30522, 512)
    rows = steps.make_batches(1, 8, 120)[0]
    n = [len(r) for r in rows]
    model = steps.make_model(steps.BASE, device='meta')
    want = 6*cost.forward_flops(shape, sum(n), sum(x**2 for x in n)) + 6*8**2*768
    assert steps.work(model, rows) == pytest.approx(want, rel=1e-12)


def test_the_forms_have_one_list(program):
    names, forms = program('report').FORMS, program('steps').FORMS
    assert list(names) == list(forms)
    for name, (*_, gpu) in forms.items(): assert gpu == name.endswith(('graph', 'compiled'))


def test_packing(program):
    "Each token in its sentence, the filling in sentences of its own, and nothing left over"
    steps = program('steps')
    for step in (1, 16, 256):
        rows = steps.make_batches(1, 7, 120, seed=step)[0]
        p = steps.pack(rows, step)
        N, lengths = len(p['ids']), [len(r) for r in rows]*2
        assert N % step == 0 and p['ends'][0] == 0 and p['ends'][-1] == N
        assert p['ends'].diff()[:14].tolist() == lengths and p['ends'].diff().max() <= 32
        for i, (a, b) in enumerate(zip(p['ends'], p['ends'][1:14+1], strict=False)):
            assert p['ids'][a:b].tolist() == (rows*2)[i] and set(p['row'][a:b].tolist()) == {i}
            assert p['places'][a:b].tolist() == list(range(lengths[i]))
        assert set(p['row'][sum(lengths):].tolist()) <= {14}


def test_trainings_in_a_queue(program, tmp_path, capsys):
    "Two settings, one worker; a second call finds both again"
    train = program('train')
    call = ['paradigm_regime', '--tiny', '--limit', '2', '--processes', '1', '--out', str(tmp_path)]
    assert train.main(call) == 0
    assert '2 done, 0 refused, 0 failed, 0 left out' in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path/'records.jsonl').read_text().splitlines()]
    assert [r['config']['train']['steps'] for r in records] == [4, 4]
    assert len({r['id'] for r in records}) == 2
    for r in records:
        assert r['inputs']
        assert r['last_metrics']
        assert r['trajectory'][-1]['metrics']['dissipation'] >= 0


def test_rounds_go_on_to_what_their_records_decide(program, tmp_path, capsys):
    "From the committed records: the files that follow, in their order"
    from sfr_repro.train.queue import Outcome
    train = program('train')
    runs = sorted((ROOT/'nbs/records/runs').glob('paradigm_constants*.json'))
    done = [Outcome(p.stem, 'done', record=str(p)) for p in runs]
    first = [o for o in done if o.name.startswith('paradigm_constants-')]
    rounds = train.Rounds(tmp_path, ['paradigm_main,paradigm_common', 'paradigm_margin'])
    assert {c.experiment for c in rounds(first)} == {'paradigm_constants_edge'}
    assert {c.experiment for c in rounds(done)} == {'paradigm_constants_own'}
    after = rounds(done)
    assert [c.seed for c in after[:24]] == [0]*24 and len(after) == 120 + 27
    assert rounds(done) == ()
    for path in tmp_path.glob('*.toml'):
        assert path.read_text() == (ROOT/'nbs/experiments'/path.name).read_text(), path.name


def test_the_data_folder_for_a_gpu(program, tmp_path, data_folder, monkeypatch):
    "A sample that reads back as the sample it is; nothing while files differ from the commit"
    from sfr_repro.core.errors import UserError
    from sfr_repro.data.corpus import load_corpus
    data = program('data')
    monkeypatch.setattr(data, 'code_state',
                        lambda: {'version': '0', 'commit': 'c0ffee1', 'dirty': False})
    said = data.write_data(tmp_path/'gpu-data', sentences=300)
    here = load_corpus('wiki_2014', 300, seed=0, source=data_folder)
    there = load_corpus('wiki_2014', 300, seed=0, source=tmp_path/'gpu-data')
    assert here.sentences == there.sentences
    assert said['corpus']['sha256'] == there.describe()['sha256']
    assert len(list((tmp_path/'gpu-data/sts').glob('*.tsv'))) == 7
    monkeypatch.setattr(data, 'code_state',
                        lambda: {'version': '0', 'commit': 'c0ffee1', 'dirty': True})
    with pytest.raises(UserError, match='uncommitted changes'):
        data.write_data(tmp_path/'other', sentences=300)
    assert not (tmp_path/'other').exists()


@pytest.mark.once
def test_make_gpu_says_what_is_missing(program, monkeypatch, capsys, tmp_path):
    "Before anything starts; and what only the comparison needs costs only the comparison"
    every = program('all')
    monkeypatch.setattr(every, 'NEEDED', ('torch', 'no_such_package'))
    assert every.main(['--device', 'cpu', '--tiny', '--out', str(tmp_path)]) == 2
    assert 'lacks no_such_package' in capsys.readouterr().err
    monkeypatch.setattr(every, 'NEEDED', ('torch',))
    monkeypatch.setattr(every, 'LEAST', {'torch': (99, 0)})
    assert every.main(['--device', 'cpu', '--tiny', '--out', str(tmp_path)]) == 2
    assert 'torch of at least 99.0' in capsys.readouterr().err
    monkeypatch.setattr(every, 'LEAST', {})
    monkeypatch.setattr(every, 'ONLY_B', ('no_such_package',))
    asked = []
    done = type('Done', (), {'returncode': 0})
    monkeypatch.setattr(every.subprocess, 'run', lambda command, **_: asked.append(command) or done)
    assert every.main(['--device', 'cpu', '--tiny', '--out', str(tmp_path), '--runs',
                       str(tmp_path)]) == 0
    assert [Path(c[1]).stem for c in asked] == ['correct', 'train']
    assert 'comparison of part (b) is left out' in capsys.readouterr().out


@pytest.mark.once
def test_stale_statistics_are_left_out_once(program):
    "Of the commit that wrote them, and of no other"
    collect = program('collect')
    def record(commit):
        return {'code': {'commit': commit}, 'trajectory': [{'metrics': {'pos_cos': 1., 'dev': .5}}]}
    assert collect.without_stale(record('9573051aaa')) == ({'code': {'commit': '9573051aaa'},
                                                            'trajectory': [
                                                                {'metrics': {'dev': .5}}]}, True)
    assert collect.without_stale(record('1234567aaa')) == (record('1234567aaa'), False)


@pytest.mark.once
def test_only_records_of_the_corpus_that_their_setting_draws_are_collected(program, monkeypatch):
    "The sample follows sample_seed where the setting has one, else the run's seed"
    from sfr_repro.core.errors import UserError
    collect = program('collect')
    class Drawn(str):
        def describe(self): return {'sha256': str(self)}
    def drawn(names, sentences, *, seed): return Drawn(f'{names[0]} {sentences} {seed}')
    monkeypatch.setattr(collect, 'load_corpus', drawn)
    def check(found, **data):
        config = {'data': {'corpus': ['wiki'], **data}}
        there = [{'name': 'sts/dev', 'sha256': ''}, {'name': 'corpus/wiki', 'sha256': found}]
        collect.check_corpus({'id': 'x', 'seed': 3, 'config': config, 'data': there}, {})
    check('wiki 9 3', sentences=9)
    check('wiki 9 0', sentences=9, sample_seed=0)
    check('wiki None 3')                            # all of it
    for found, data in (('wiki 9 0', {}), ('wiki 9 3', {'sample_seed': 0})):
        with pytest.raises(UserError, match='x: its corpus is not the one'):
            check(found, sentences=9, **data)
