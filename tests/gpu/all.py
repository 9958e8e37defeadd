"""`make gpu`: everything that a GPU is needed for, in one command and one budget of minutes.

Part (a) checks that losses, encoder, steps and resuming are right on the card (correct.py).
Part (b) measures a training step against sentence-transformers (speed.py). Part (c) trains paper
A's settings (train.py). What comes first is worth most. The same command goes on with what the
time leaves out.
No network is used. `make gpu-data`, run where the data is, writes the folder that part (c) reads.
"""
import argparse
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NEEDED = ('torch', 'transformers', 'accelerate', 'safetensors', 'pydantic', 'numpy', 'scipy',
          'pandas', 'tensorboard')
ONLY_B = ('sentence_transformers',)
LEAST = {'torch': (2, 11), 'transformers': (5, 17)}
# of all minutes; the trainings have the rest
SHARE = {'correct': .15, 'speed': .25}
TRAININGS = ('paradigm_constants', 'paradigm_main,paradigm_common', 'paradigm_parts',
             'paradigm_regime', 'paradigm_margin', 'paradigm_tau', 'paradigm_ratio',
             'paradigm_long', 'paradigm_transfer')


def missing():
    "What cannot be imported or is too old: `(for all parts, for part (b) alone)`"
    def lacks(name):
        if find_spec(name) is None: return name
        try: found = version(name)
        except PackageNotFoundError: return None
        least = LEAST.get(name, (0,))
        numbers = tuple(int(re.match(r'\d*', x)[0] or 0) for x in found.split('.')[:2])
        if numbers < least:
            return f'{name} of at least {".".join(map(str, least))} (it is {found})'
        return None
    return [x for x in map(lacks, NEEDED) if x], [x for x in map(lacks, ONLY_B) if x]


def commands(o, without_b):
    "Name and arguments of each part, with its minutes"
    common = ['--out', str(o.out)]
    device = ['--device', o.device, *(['--tiny'] if o.tiny else [])]
    parts = {'correct': [*device, *common], 'speed': [*device, *common]}
    if without_b: del parts['speed']
    trainings = (['paradigm_regime', '--tiny', '--limit', '2', '--processes', '1'] if o.tiny
                 else list(TRAININGS))
    parts['train'] = [*trainings, *common, '--runs', str(o.runs), '--device', o.device]
    return {name: arguments for name, arguments in parts.items() if name in o.parts}


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('--minutes', type=float, default=9., help='for all parts together')
    ask.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    ask.add_argument('--tiny', action='store_true', help='the smallest sizes, for the tests')
    ask.add_argument('--out', type=Path, default=Path('runs/gpu'), help='results, few files')
    ask.add_argument('--runs', type=Path, default=Path('runs/gpu-runs'),
                     help='where trainings go on')
    ask.add_argument('--parts', nargs='+', default=('correct', 'speed', 'train'),
                     choices=('correct', 'speed', 'train'))
    o = ask.parse_args(argv)
    print('imports:', ', '.join(NEEDED), '; for the comparison:', *ONLY_B, flush=True)
    lacking, without_b = missing()
    if lacking:
        print(f'gpu: this Python lacks {", ".join(lacking)}: install it, or name another Python '
              '(make gpu GPU=...)', file=sys.stderr)
        return 2
    if without_b:
        print(f'{", ".join(without_b)} is not there: the comparison of part (b) is left out',
              flush=True)
    if not o.tiny and 'train' in o.parts and not (ROOT/'gpu-data').is_dir():
        print('gpu: there is no folder gpu-data: run make gpu-data where the data folder is, and '
              'bring it along', file=sys.stderr)
        return 2
    if o.device == 'cuda':
        import torch
        if not torch.cuda.is_available():
            print('gpu: torch sees no CUDA device here: --device cpu --tiny shows that the '
                  'programs run', file=sys.stderr)
            return 2
    begin, codes = monotonic(), {}
    for name, arguments in commands(o, without_b).items():
        left = o.minutes - (monotonic() - begin)/60
        minutes = min(left, o.minutes*SHARE.get(name, 1.))
        if minutes <= 0:
            print(f"{name}: left out, the time is over", flush=True)
            continue
        print(f'== {name}, at most {minutes:.1f} minutes', flush=True)
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        done = subprocess.run([sys.executable, str(HERE/f'{name}.py'), *arguments, '--minutes',
                               f'{minutes:.3f}'],
                              env=os.environ | {'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'})
        codes[name] = done.returncode
    print(', '.join(f'{name}: {"right" if not code else f"exit code {code}"}'
                    for name, code in codes.items()), f'; {o.out}', flush=True)
    return 1 if any(codes.values()) else 0


if __name__ == '__main__': sys.exit(main())
