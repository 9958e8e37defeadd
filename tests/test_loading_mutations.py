"Broken model folders, made at random: equal to sentence_transformers, or refused in one sentence"
import os
import shutil
import numpy as np
import pytest
from model_folders import TEXTS, bases, mutated, reference
from sfr_repro.core.errors import UserError
from sfr_repro.encode.encoder import SentenceEncoder

pytestmark = pytest.mark.once

COUNT = 300 if os.environ.get('SFR_LARGE') else 20

def outcome(path, must_refuse, whole):
    "'refused', 'equal', or a fault: 'wrong number', 'traceback'"
    try: x = SentenceEncoder.from_pretrained(path, precision='fp32').encode(TEXTS, progress=False)
    except UserError as e: return 'refused' if '\n' not in str(e) else 'traceback', str(e)
    except BaseException as e: return 'traceback', f'{type(e).__name__}: {e}'
    if must_refuse: return 'wrong number', 'a part is missing or foreign, and it is opened'
    try: y = reference(path)
    except Exception: y = whole                     # refused there: then nothing may have changed
    same = x.shape == y.shape and np.abs(x-y).max() <= 1e-5*max(1, np.abs(y).max())
    return ('equal', '') if same else ('wrong number', f'{x.shape} {y.shape}')

def tried(root, count, first=0):
    "Outcome, what was done and what was said, of each broken folder"
    marker, found = root/'marker', []
    for p in (whole := bases(root/'whole')): assert outcome(p, False, None)[0] == 'equal', p
    right = {p: SentenceEncoder.from_pretrained(p, precision='fp32').encode(TEXTS, progress=False)
             for p in whole}
    for seed in range(first, first+count):
        base = whole[seed % len(whole)]
        path, what, must = mutated(root, base, seed, marker)
        found.append((*outcome(path, must, right[base]), what, path.name))
        if marker.exists(): found[-1] = ('code executed', '', what, path.name)
        marker.unlink(missing_ok=True)
        shutil.rmtree(path)
    return found

@pytest.mark.filterwarnings('ignore')
def test_broken_folders_are_followed_or_refused(tmp_path):
    (tmp_path/'whole').mkdir()
    found = tried(tmp_path, COUNT)
    counts = {k: sum(f[0] == k for f in found) for k in
              ('refused', 'equal', 'wrong number', 'traceback', 'code executed')}
    print(counts)
    faults = [f for f in found if f[0] not in ('refused', 'equal')]
    assert not faults, faults
    assert counts['refused'] > COUNT//4 and counts['equal'] > COUNT//20       # the test sees both

def test_the_judge_sees_faults(tmp_path):
    "The control: a lost normalisation, an invented vocabulary and a plain exception are told"
    from model_folders import listed_folder, normalize, pooling, write_modules
    p = listed_folder(tmp_path/'m', pooling('mean'), normalize())
    whole = reference(p)
    assert outcome(p, False, whole)[0] == 'equal' and outcome(p, True, whole)[0] == 'wrong number'
    encode = SentenceEncoder.encode
    with pytest.MonkeyPatch.context() as m:
        m.setattr(SentenceEncoder, 'encode', lambda *a, **k: 2*encode(*a, **k))
        assert outcome(p, False, whole)[0] == 'wrong number'
        m.setattr(SentenceEncoder, 'encode', lambda *a, **k: 1/0)
        assert outcome(p, False, whole)[0] == 'traceback'
    write_modules(p, [('', 'Transformer'), ('1_Pooling', 'WordWeights')])
    assert outcome(p, False, whole)[0] == 'refused'
