"A run that is killed goes on, and ends as if it had not been."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from sfr_repro.core.records import equal_records, read_record

CODE = '''
import sys
from sfr_repro.core.config import load_experiment
from sfr_repro.train.run import run
config, = load_experiment("smoke", ("train.steps=12", "train.eval_every=3"))
print(run(config, sys.argv[1], progress=False, minutes=0.))
'''

def start(out): return subprocess.Popen([sys.executable, '-c', CODE, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                        env={**os.environ, 'HF_HUB_OFFLINE': '1'})

def finish(out):
    path, _ = start(out).communicate()
    return read_record(path.strip())

def test_kill_9_in_the_middle(tmp_path):
    whole = finish(tmp_path/'whole')
    process, checkpoints = start(tmp_path/'killed'), []
    while not checkpoints:
        assert process.poll() is None, 'the run ended before it could be killed'
        time.sleep(.05)
        checkpoints = list((tmp_path/'killed').glob('*/checkpoint-*/complete'))
    process.send_signal(signal.SIGKILL); process.wait()
    assert not list((tmp_path/'killed').glob('*/record.json'))
    again = finish(tmp_path/'killed')
    assert equal_records(whole, again)
    left = {p.name for p in next(Path(tmp_path/'killed').glob('smoke-*')).iterdir()}
    assert left == {'.lock', 'inputs.json', 'model', 'record.json', 'tensorboard'}

def test_the_record_says_what_was_run(tmp_path):
    record = finish(tmp_path)
    assert [p.step for p in record.trajectory] == [0, 3, 6, 9, 12]
    assert {'pos_cos', 'neg_cos', 'alignment', 'uniformity', 'mean_norm', 'grad_norm'} <= set(record.trajectory[-1].metrics)
    assert record.selection.best_step in {p.step for p in record.trajectory}
    assert all(d.source == 'embedded' and d.rows > 1 and len(d.sha256) == 64 for d in record.data)
    best = max(p.metrics[record.selection.metric] for p in record.trajectory)
    assert next(p for p in record.trajectory if p.metrics[record.selection.metric] == best).step == record.selection.best_step
    assert json.loads(record.model_dump_json(by_alias=True))['schema'] == 1

def test_a_run_made_with_other_data_is_not_taken_for_this_one(tmp_path):
    finish(tmp_path)
    inputs = next(tmp_path.glob('*/inputs.json'))
    inputs.write_text(inputs.read_text().replace('"dev set": "', '"dev set": "0'))
    process = subprocess.run([sys.executable, '-c', CODE, str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    assert process.returncode and 'was made with another dev set' in process.stderr
