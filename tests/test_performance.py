"The bench: what it refuses, its records, its table; its parts on the project's own sentences"
import itertools
from dataclasses import replace
from pathlib import Path
import pytest
import bench as program
from conftest import ROOT
from sfr_repro.bench import harness, memory
from sfr_repro.bench.harness import (
    SMALL,
    Sizes,
    Spread,
    busy_share,
    check_neighbour,
    check_quiet,
    ratio,
    take_turns,
)
from sfr_repro.bench.memory import LossProcess, check_memory_marks, fits_in_memory
from sfr_repro.bench.parts import PARTS, bench
from sfr_repro.bench.passes import METHODS
from sfr_repro.bench.steps import (
    CAUSES,
    KINDS,
    kind_of,
    our_step,
    seconds_per_step,
    step_config,
    useful_flops,
)
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import read_record, read_records
from sfr_repro.losses.tiled import TILED
from sfr_repro.results.performance import (
    BARS,
    bench_results,
    bench_table,
    curve_figure,
    curve_points,
    profile_figure,
    profile_shares,
)
from sfr_repro.train.cost import encoder_shape

@pytest.mark.once
def test_turns_are_swapped_and_all_are_kept():
    seen = []
    found = take_turns({'a': lambda: seen.append('a') or 1., 'b': lambda: seen.append('b') or 3.},
                       3)
    assert seen == ['a', 'b', 'b', 'a', 'a', 'b']
    assert found == {'a': [1., 1., 1.], 'b': [3., 3., 3.]}
    assert ratio(found['b'], found['a']) == Spread(3., 3., 3.)
    assert ratio([2, 8, 6], [1, 2, 2]) == Spread(3., 2.5, 3.5)

@pytest.mark.once
def test_a_step_is_timed_from_call_to_call_without_the_first():
    assert seconds_per_step([0., 9., 10., 12., 13.]) == 1. and seconds_per_step([0., 9., 11.]) == 2.

@pytest.mark.once
def test_a_busy_machine_is_refused(monkeypatch):
    assert 0 <= busy_share(.05) <= 1
    monkeypatch.setattr(harness, 'busy_share', lambda: .4)
    with pytest.raises(UserError, match='other programs use 40 % of the processors'): check_quiet()
    with pytest.raises(UserError, match='other programs use 40 %'): bench(('start',))
    check_quiet(force=True)
    monkeypatch.setattr(harness, 'busy_share', lambda: float('nan'))
    check_quiet()

def fake(monkeypatch, metrics):
    monkeypatch.setattr(harness, 'busy_share', lambda: 0.)
    monkeypatch.setitem(PARTS, 'start', lambda sizes: (metrics, []))

@pytest.mark.once
def test_one_record_a_part_that_the_table_reads(monkeypatch, tmp_path):
    fake(monkeypatch, Spread(.7, .6, .9).metrics('start', 'import losses.registry',
        'share of the 0.2 s allowed beyond torch'))
    bench(('start',), out=tmp_path)
    path, = tmp_path.iterdir()
    assert path.name.startswith('bench-start-')
    record = read_record(path)
    assert record.kind == 'bench' and record.config['rounds'] == 5
    assert record.experiment.name == 'bench-start' and record.code.commit
    row = bench_results([record]).iloc[0]
    assert (row['median'], row.q1, row.q3, row.bar, row.verdict) == (.7, .6, .9, 'at most 1',
        'reached')
    assert '0.7 [0.6, 0.9] | at most 1 | reached' in bench_table([record])
    assert '2 threads of' in bench_table([record])
    bench(('start',), out=tmp_path/'forced', force=True); bench(('start',), SMALL, tmp_path/'small')
    assert list(tmp_path.iterdir()) == [path]

def bare(metrics, kind='bench'):
    "A record of which only kind and metrics are read"
    return type('R', (), {'kind': kind, 'metrics': metrics})

@pytest.mark.once
def test_verdicts():
    task, how, measure, bar, sense = BARS[0]
    def verdict(value):
        metrics = Spread(value, value, value).metrics(task, 'x', how, measure)
        return bench_results([bare(metrics)]).verdict[0]
    assert sense == 'at least' and verdict(bar) == 'reached' and verdict(bar-1e-9) == 'missed'
    assert bench_results([]).empty and bench_table([]).startswith('No bench record')
    assert bench_results([bare({'sts/STS12/test/all/spearman': .5}, 'train')]).empty

@pytest.mark.once
def test_mistakes(capsys, tmp_path):
    with pytest.raises(UserError, match="part is 'speed': it must be one of step, sts"):
        bench(('speed',))
    (tmp_path/'file').write_text('x')
    for given, said in ((['--only', 'speed'], "part is 'speed'"),
                        (['--rounds', '0'], '--rounds is 0: it must be at least 1'),
                        (['--batches', '64', '1'], '--batches is 1: it must be at least 2'),
                        (['--out', str(tmp_path/'file')], 'it must be a folder')):
        with pytest.raises(SystemExit) as e: program.main(given)
        assert e.value.code == 2 and said in capsys.readouterr().err

@pytest.mark.once
def test_profile():
    assert kind_of('aten::bernoulli_') == 'dropout'
    assert kind_of('aten::_foreach_mul_') == 'optimiser and clipping'
    assert kind_of('aten::mul') == 'everything else'
    metrics = {f'profile/toy b8/{p}/{k}/share': (.4 if k == 'matrix products' else .1)
               for p in ('fp32', 'bf16') for k in (*KINDS, 'everything else')}
    metrics['profile/toy b8/random batches/padding/share'] = .2
    shares = profile_shares([bare(metrics)])
    assert shares.shape == (2, len(KINDS)+1) and (shares.sum(axis=1)-1).abs().max() < 1e-9
    assert list(shares.index) == ['toy\nfp32', 'toy\nbf16']
    assert profile_shares([]).empty
    assert len(profile_figure(shares).axes[0].patches) == 2*(len(KINDS)+1)

@pytest.mark.once
def test_the_curve_is_read_from_records():
    metrics = {}
    for method, B in itertools.product(METHODS, (512, 4096)):
        where = f'curve/{method}/{B} pairs'
        metrics[f'{where}/median/time over tiled'] = 2.
        metrics[f'{where}/q3/time over tiled'] = 9.
        metrics[f'{where}/largest/MiB above the inputs'] = B/1024
    points = curve_points([bare(metrics), bare({'tiled/infonce/512 rows/median/ratio': 1.})])
    assert len(points) == 2*len(METHODS) and set(points.time) == {2.}
    assert points[points.method == 'cached'].memory.tolist() == [.5, 4.]
    time, memory = curve_figure(points).axes
    # below 1 MiB there is no point
    assert [len(x.get_xdata()) for x in time.lines] == [2]*4
    assert [x.get_xdata().tolist() for x in memory.lines] == [[4096]]*4
    assert curve_points([]).empty
    assert list(curve_points([]).columns) == ['method', 'pairs', 'time', 'memory']
    if Path('/proc/meminfo').exists():
        assert fits_in_memory('tiled', 10**6) and fits_in_memory('plain', 64)
        assert not fits_in_memory('plain', 10**6)

@pytest.mark.once
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(),
                    reason='reads the high-water mark from /proc')
def test_tiled_losses_and_their_memory():
    found = bench(('tiled',), replace(SMALL, losses=('infonce',), rounds=1))['tiled']
    assert found['tiled/infonce/64 rows/median/ratio'] > 0
    assert 0 <= found['tiled/infonce/800 rows/largest/MiB above the inputs'] < 60
    assert found['tiled/infonce/twice the batch/median/growth of memory'] > 0
    assert {f.__name__ for f in TILED} == set(Sizes().losses), 'all that have a tiled form'

@pytest.mark.once
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(),
                    reason='reads the high-water mark from /proc')
def test_four_programs_compute_one_loss():
    pytest.importorskip('sentence_transformers')
    found = bench(('tiled_curve',), replace(SMALL, rounds=1))['tiled_curve']
    assert found['tiled/infonce 600 pairs/four methods/largest/relative difference'] < 1e-5
    assert found['curve/tiled/600 pairs/median/time over tiled'] == 1
    assert {k.split('/')[1] for k in found if k.startswith('curve/')} == set(METHODS)
    rows = bench_results([bare(found)])
    # the curve is a figure, not a row
    assert rows.verdict.tolist() == ['reached'] and rows.what.tolist() == ['infonce 600 pairs']

@pytest.mark.once
def test_every_bar_has_a_row_that_can_miss_it():
    "What the parts are to measure, from made-up numbers on either side of each bar"
    for task, how, measure, bar, sense in BARS:
        key = f'{task}/x/{how}/median/{measure}'
        below, above = (bench_results([bare({key: x})]).verdict.tolist() for x in (bar*.9, bar*1.1))
        good, bad = (below, above) if sense == 'at most' else (above, below)
        assert (good, bad) == (['reached'], ['missed'])
    sizes = Sizes()
    assert {f'{B} rows' for B in (*sizes.rows[:-1], sizes.largest)} <= {how
        for task, how, *_ in BARS if task == 'tiled'}

@pytest.mark.once
def test_parts_say_what_they_miss(monkeypatch):
    monkeypatch.setattr(harness, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='sentence-transformers is not installed'): check_neighbour()
    monkeypatch.setattr(memory.Path, 'exists', lambda self: False)
    with pytest.raises(UserError, match='which only Linux has'): check_memory_marks()

@pytest.mark.once
def test_a_process_that_dies_in_a_pass_is_no_silence():
    with LossProcess('tiled', replace(SMALL, tile=0)) as process, pytest.raises(RuntimeError,
        match="process for 'tiled' ended in a pass over 64 pairs"):
        process(64)

@pytest.mark.once
def test_useful_work_counts_no_padding():
    whole = useful_flops('sfr-mini', [[0]*16]*4, 8)
    ragged = useful_flops('sfr-mini', [[0]*16, [0]*8]*2, 8)
    assert ragged < whole
    assert whole == pytest.approx(6*8*(16*2*encoder_shape('sfr-mini').linear*4
                                       + 4*4*16*16*256) + 3*2*8*8*256)

@pytest.mark.once
def test_geometry_of_sums_is_that_of_tables():
    found = bench(('geometry',), replace(SMALL, corpora=(120,)))['geometry']
    assert found['geometry/sfr-mini 120 sentences/fp32/largest/difference'] < 1e-6
    assert found['geometry/sfr-mini 120 sentences/fp32/median/ratio'] > 0

@pytest.mark.once
def test_a_step_and_the_evaluation_beside_sentence_transformers():
    "The whole path of both sides on the project's own sentences: same scores, positive ratios"
    pytest.importorskip('sentence_transformers')
    one = replace(SMALL, precisions=('fp32',), rounds=1)
    step, sts = bench(('step',), one)['step'], bench(('sts',), one)['sts']
    assert step['step/sfr-mini b8/fp32/median/ratio'] > 0
    assert 0 < step['step/sfr-mini b8/fp32/median/share of peak'] < 1
    assert sts['evaluation/sfr-mini STS/fp32/largest/score difference'] < 1e-4
    assert sts['evaluation/sfr-mini STS/fp32/median/ratio'] > 0

@pytest.mark.once
def test_parts_have_the_keys_of_their_bars():
    one = replace(SMALL, rounds=1, precisions=('fp32',))
    found = bench(('profile', 'causes', 'extras'), one)
    assert sum(v for k, v in found['profile'].items() if '/fp32/' in k) == pytest.approx(1)
    assert set(k.split('/')[2] for k in found['causes']) == set(CAUSES)
    assert all(v > 0 for v in found['causes'].values())
    bars = bench_results([bare(found['extras'])]).bar.tolist()
    assert bars == ['at most 1.05', 'at most 0.05']

@pytest.mark.once
def test_the_start_has_the_keys_of_its_bar():
    pytest.importorskip('sentence_transformers')
    rows = bench_results([bare(bench(('start',), replace(SMALL, rounds=1))['start'])])
    assert rows.bar.tolist().count('at most 1') == 1 and (rows['median'].drop(0) > 0).all()

@pytest.mark.once
def test_each_cause_is_left_out_alone(monkeypatch):
    from sfr_repro.data.mini_sts import load_mini_corpus
    from sfr_repro.encode.encoder import SentenceEncoder, tokenize
    from sfr_repro.train import views
    encoder = SentenceEncoder.from_pretrained('sfr-mini')
    ids = tokenize(encoder.tokenizer, load_mini_corpus()[:64], 16)
    config, packs, forward = step_config(replace(SMALL, steps=3), 8), [], views.forward_packed
    monkeypatch.setattr(views, 'forward_packed',
                        lambda *args: packs.append(1) or forward(*args))
    def seen(**how):
        packs.clear()
        kinds = set()
        def look(n): kinds.update(type(m).__name__ for m in encoder.model.modules())
        our_step(encoder, ids, config, watch=look, **how)
        return bool(packs), 'FastDropout' in kinds
    assert seen() == (True, True)
    assert seen(**CAUSES['padded batches']) == (False, True)
    assert seen(**CAUSES["torch's dropout"]) == (True, False)

def test_committed_bench_records_keep_the_rules():
    for r in read_records(ROOT/'nbs/records/runs', kind='bench'):
        assert r.config['part'] in PARTS and all(k.count('/') == 4 for k in r.metrics)
        assert r.experiment.name == f"bench-{r.config['part']}"
        assert not bench_results([r]).empty or r.config['part'] == 'profile'
    parts = [r.config['part'] for r in read_records(ROOT/'nbs/records/runs', kind='bench')]
    assert len(set(parts)) == len(parts), 'one record a part: supersede the older'

@pytest.mark.once
def test_the_page_is_made_of_records_only():
    "It imports labels of the bench, and nothing that opens a model, trains or times"
    import ast
    tree = ast.parse((ROOT/'sfr_repro/results/performance.py').read_text())
    names = {f'{n.module}' for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} | {a.name
        for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert names == {'collections.abc', 'pandas', 'seaborn', 'matplotlib.figure', 'bench.passes',
                     'bench.steps', 'core.records'}, names

@pytest.mark.once
def test_the_program_answers_line_by_line():
    with LossProcess('plain', SMALL) as one, LossProcess('tiled', SMALL) as other:
        if not Path('/proc/self/clear_refs').exists():
            pytest.skip('reads the high-water mark from /proc')
        (_, _, a), (_, _, b), (_, _, c) = one(64), other(64), one(64, 3)
    assert a == c and abs(a-b) < 1e-5
