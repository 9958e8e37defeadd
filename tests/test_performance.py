"The bench: what it refuses, what its records say, how they become a table; its parts on the project's own sentences"
from dataclasses import replace
import pandas as pd, pytest

import bench as program
import sfr_repro.results.performance as perf
from conftest import ROOT
from sfr_repro.core.notation import UserError
from sfr_repro.core.records import read_record, read_records
from sfr_repro.results.performance import (BARS, KINDS, PARTS, SMALL, Sizes, Spread, bench, bench_results, bench_table, between, busy_share, check_quiet, kind_of,
                                           profile_figure, profile_shares, ratio, take_turns, useful_flops)

@pytest.mark.once
def test_turns_are_swapped_and_all_are_kept():
    seen = []
    found = take_turns({'a': lambda: seen.append('a') or 1., 'b': lambda: seen.append('b') or 3.}, 3)
    assert seen == ['a', 'b', 'b', 'a', 'a', 'b'] and found == {'a': [1., 1., 1.], 'b': [3., 3., 3.]}
    assert ratio(found['b'], found['a']) == Spread(3., 3., 3.) and ratio([2, 8, 6], [1, 2, 2]) == Spread(3., 2.5, 3.5)

@pytest.mark.once
def test_a_step_is_timed_from_call_to_call_without_the_first():
    assert between([0., 9., 10., 12., 13.]) == 1. and between([0., 9., 11.]) == 2.

@pytest.mark.once
def test_a_busy_machine_is_refused(monkeypatch):
    assert 0 <= busy_share(.05) <= 1
    monkeypatch.setattr(perf, 'busy_share', lambda: .4)
    with pytest.raises(UserError, match='other programs use 40 % of the processors'): check_quiet()
    with pytest.raises(UserError, match='other programs use 40 %'): bench(('start',))
    check_quiet(force=True)
    monkeypatch.setattr(perf, 'busy_share', lambda: float('nan'))
    check_quiet()

def fake(monkeypatch, metrics):
    monkeypatch.setattr(perf, 'busy_share', lambda: 0.)
    monkeypatch.setitem(PARTS, 'start', lambda sizes: (metrics, []))

@pytest.mark.once
def test_one_record_a_part_that_the_table_reads(monkeypatch, tmp_path):
    fake(monkeypatch, Spread(.7, .6, .9).metrics('start', 'import losses.registry', 'share of the 0.2 s allowed beyond torch'))
    bench(('start',), out=tmp_path)
    path, = tmp_path.iterdir()
    assert path.name.startswith('bench-start-')
    record = read_record(path)
    assert record.kind == 'bench' and record.config['rounds'] == 5 and record.experiment.name == 'bench-start' and record.code.commit
    row = bench_results([record]).iloc[0]
    assert (row['median'], row.q1, row.q3, row.bar, row.verdict) == (.7, .6, .9, 'at most 1', 'reached')
    assert '0.7 [0.6, 0.9] | at most 1 | reached' in bench_table([record]) and '2 threads of' in bench_table([record])
    bench(('start',), out=tmp_path/'forced', force=True); bench(('start',), SMALL, tmp_path/'small')
    assert list(tmp_path.iterdir()) == [path]

@pytest.mark.once
def test_verdicts():
    task, how, measure, bar, sense = BARS[0]
    def verdict(value): return bench_results([type('R', (), {'kind': 'bench', 'metrics': Spread(value, value, value).metrics(task, 'x', how, measure)})]).verdict[0]
    assert sense == 'at least' and verdict(bar) == 'reached' and verdict(bar-1e-9) == 'missed'
    assert bench_results([]).empty and bench_table([]).startswith('No bench record')
    assert bench_results([type('R', (), {'kind': 'train', 'metrics': {'sts/STS12/test/all/spearman': .5}})]).empty

@pytest.mark.once
def test_mistakes(capsys):
    with pytest.raises(UserError, match="part is 'speed': it must be one of step, sts"): bench(('speed',))
    with pytest.raises(SystemExit, match="bench: part is 'speed'"): program.main(['--only', 'speed'])

@pytest.mark.once
def test_profile():
    assert kind_of('aten::bernoulli_') == 'dropout' and kind_of('aten::_foreach_mul_') == 'optimiser and clipping' and kind_of('aten::mul') == 'everything else'
    metrics = {f'profile/toy b8/{p}/{k}/share': (.4 if k == 'matrix products' else .1) for p in ('fp32', 'bf16') for k in (*KINDS, 'everything else')}
    shares = profile_shares([type('R', (), {'kind': 'bench', 'metrics': metrics | {'profile/toy b8/random batches/padding/share': .2}})])
    assert shares.shape == (2, len(KINDS)+1) and (shares.sum(axis=1)-1).abs().max() < 1e-9 and list(shares.index) == ['toy\nfp32', 'toy\nbf16']
    assert profile_shares([]).empty and len(profile_figure(shares).axes[0].patches) == 2*(len(KINDS)+1)

@pytest.mark.once
def test_useful_work_counts_no_padding():
    whole, ragged = useful_flops('sfr-mini', [[0]*16]*4, 8), useful_flops('sfr-mini', [[0]*16, [0]*8]*2, 8)
    assert ragged < whole and whole == pytest.approx(6*8*(16*2*perf.encoder_shape('sfr-mini').linear*4 + 4*4*16*16*256) + 3*2*8*8*256)

@pytest.mark.once
def test_geometry_of_sums_is_that_of_tables():
    found = bench(('geometry',), replace(SMALL, corpus=120))['geometry']
    assert found['geometry/sfr-mini 120 sentences/fp32/largest/difference'] < 1e-6 and found['geometry/sfr-mini 120 sentences/fp32/median/ratio'] > 0

@pytest.mark.once
def test_a_step_and_the_evaluation_beside_sentence_transformers():
    "The whole path of both sides on the project's own sentences: same scores, positive ratios"
    pytest.importorskip('sentence_transformers')
    one = replace(SMALL, precisions=('fp32',), rounds=1)
    step, sts = bench(('step',), one)['step'], bench(('sts',), one)['sts']
    assert step['step/sfr-mini b8/fp32/median/ratio'] > 0 and 0 < step['step/sfr-mini b8/fp32/median/share of peak'] < 1
    assert sts['evaluation/sfr-mini STS/fp32/largest/score difference'] < 1e-4 and sts['evaluation/sfr-mini STS/fp32/median/ratio'] > 0

def test_committed_bench_records_keep_the_rules():
    for r in read_records(ROOT/'nbs/records/runs', kind='bench'):
        assert r.config['part'] in PARTS and all(k.count('/') == 4 for k in r.metrics) and r.experiment.name == f"bench-{r.config['part']}"
        assert not bench_results([r]).empty or r.config['part'] == 'profile'
