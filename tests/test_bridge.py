"The probe of three lenses in a real training: nobody notices it, whoever shares the batch."
import sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from sfr_repro.analysis.bridge import BridgeProbe, OpenedLenses, open_lenses, read_push
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.folders import read_inputs
from sfr_repro.core.notation import unit_rows
from sfr_repro.core.records import read_record, record_fault
from sfr_repro.losses.registry import make_loss
from sfr_repro.train.run import run
from test_distributed import set_environment, start

STEPS = 'train.steps=4', 'train.eval_every=2'
LENSES = 'train.measure_every=2', 'train.lens_teacher=sfr-mini'
TAUGHT = 'loss.name=softcse_weight', 'teacher.name=sfr-mini'

def trained(out, *changes, lenses=open_lenses, **options):
    config, = load_experiment('smoke', STEPS+changes)
    path = run(config, out, progress=False, lenses=lenses, **options)
    return read_record(path), path.parent

def the_training(record):
    "All that the training itself decides"
    own = 'grad_norm', 'pos_cos', 'neg_cos', 'alignment', 'uniformity', 'mean_norm'
    points = [(p.step, p.loss, p.lr, {k: x for k, x in p.metrics.items()
                                      if k in own or k.startswith('sts/')})
              for p in record.trajectory]
    return points, record.metrics, record.last_metrics

def the_lenses(record):
    lenses = 'gradient/', 'negatives/', 'geometry/'
    return [{k: x for k, x in p.metrics.items() if k.startswith(lenses)}
            for p in record.trajectory]

def test_a_loss_with_a_teacher_is_seen_and_not_disturbed(tmp_path):
    seen, folder = trained(tmp_path/'seen', *LENSES, *TAUGHT)
    alone, other = trained(tmp_path/'alone', *TAUGHT)
    assert the_training(seen) == the_training(alone)
    assert not record_fault(seen) and all(the_lenses(seen)) and not any(the_lenses(alone))
    # the lens teacher belongs to what the run was made from
    lens = {k for k in read_inputs(folder) if k.startswith('lens teacher')}
    assert lens and not any(k.startswith('lens') for k in read_inputs(other))
    points = the_lenses(seen)
    assert [len(p) for p in points] == [len(points[0])]*3
    ratio = 'gradient/corpus/train:128/all/effective_ratio'
    assert [round(p[ratio], 9) for p in points] == [1., 1., 1.]
    # seen through its own teacher, W1 spares what the teacher finds similar
    top = 'negatives/corpus/train:128/decile:10/push'
    plain, _ = trained(tmp_path/'infonce', *LENSES, 'loss.tau=0.05')
    softer, _ = trained(tmp_path/'w1', *LENSES, *TAUGHT, 'loss.tau=0.05')
    assert the_lenses(softer)[0][top] < the_lenses(plain)[0][top]

def shared(rank, size, port, out):
    set_environment(rank, size, port)
    trained(Path(out)/'seen', *LENSES)
    trained(Path(out)/'alone')

@pytest.mark.once
def test_two_processes_are_not_disturbed_and_see_what_one_sees(tmp_path):
    processes = start(shared, 2, str(tmp_path))
    for p in processes: p.join(400)
    assert [p.exitcode for p in processes] == [0, 0]
    seen, alone = (read_record(next((tmp_path/k).glob('*/record.json'))) for k in ('seen', 'alone'))
    assert the_training(seen) == the_training(alone)
    one, _ = trained(tmp_path/'one', *LENSES)
    assert the_lenses(seen)[0] == the_lenses(one)[0]            # before the first step
    assert the_lenses(seen)[-1].keys() == the_lenses(one)[-1].keys()
    # the control: dropout differs between processes, so the trainings do
    assert the_lenses(seen)[-1] != the_lenses(one)[-1]

def test_a_run_that_goes_on_sees_what_it_would_have_seen(tmp_path):
    whole, _ = trained(tmp_path/'whole', *LENSES)
    class Fails(OpenedLenses):
        def watch(self, watched, geometry):
            probe = BridgeProbe(watched, self.teacher, geometry)
            class Ends:
                calls, data = 0, probe.data
                def __call__(self):
                    self.calls += 1
                    if self.calls > 2: raise KeyboardInterrupt
                    return probe()
            return Ends()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path/'cut', *LENSES, lenses=lambda name: Fails(open_lenses(name).teacher),
                minutes=0.)
    again, _ = trained(tmp_path/'cut', *LENSES, minutes=0.)
    assert the_training(again) == the_training(whole) and the_lenses(again) == the_lenses(whole)

def test_what_a_run_refuses(tmp_path):
    config, = load_experiment('smoke', STEPS+LENSES)
    with pytest.raises(UserError, match='write run.config, lenses=open_lenses.'):
        run(config, tmp_path, progress=False)
    large = replace(config, train=replace(config.train, batch=4097))
    with pytest.raises(UserError, match='it must be|cannot be larger|at most 4,096'):
        run(large, tmp_path, progress=False, lenses=open_lenses)
    assert not list(tmp_path.glob('*/record.json'))

@pytest.mark.parametrize('scale', [1., 1e-3])
def test_half_and_single_inputs_give_what_double_gives(scale):
    draw = torch.Generator().manual_seed(0)
    h, other = (torch.randn(12, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    h, h_pos = unit_rows(h), unit_rows(h+scale*other)
    for name in ('infonce', 'mhe_repaired', 'vicreg', 'barlow_twins'):
        wide = read_push(make_loss(name), h, h_pos)
        narrow = read_push(make_loss(name), h.float(), h_pos.float())
        size = wide.size.max()
        assert (narrow.size.double()-wide.size).abs().max() <= 1e-3*size, name

if __name__ == '__main__': sys.exit(pytest.main([__file__, '-q']))
