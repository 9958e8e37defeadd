"""Part (c) of `make gpu`: paper A's trainings, many processes on one card.

`python tests/gpu/train.py --minutes 8 --out FOLDER paradigm_main,paradigm_common paradigm_parts`
runs experiment files of nbs/experiments in that order; files joined by a comma share a queue that
goes seed by seed. Each finished record is a line of FOLDER/records.jsonl. The same command goes on
where it was cut off. `paradigm_constants` brings its own second and third round.
"""
import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ['HF_HUB_OFFLINE'] = '1'
DATA = ROOT/'gpu-data'
if DATA.is_dir():
    os.environ.setdefault('SFR_DATA', str(DATA))
    os.environ.setdefault('SFR_CODE', str(DATA/'code.json'))
from sfr_repro.core.config import load_experiment
from sfr_repro.core.notation import UserError
from sfr_repro.core.records import read_record
from sfr_repro.results import constants
from sfr_repro.train.queue import run_all

TINY = ('data.source="embedded"', 'data.corpus=["mini"]', 'data.sentences=64', 'train.batch=8', 'train.eval_every=2')
PART = 'paradigm_constants'


class Rounds:
    "What comes after the first round of constants; its files are written as they are made"
    def __init__(self, out): self.out, self.texts = out, [('edge', constants.edge_text), ('own', constants.own_text)]

    def __call__(self, outcomes):
        records = [read_record(o.record) for o in outcomes if o.record and PART in o.name]
        while self.texts:
            name, make = self.texts.pop(0)
            text = make(records)
            if text is None: continue
            path = self.out/f'{PART}_{name}.toml'
            path.write_text(text)
            print(f'{path.name}: {text.count("[[variant]]")} settings', flush=True)
            return load_experiment(path)
        best = [constants.best_record(records, loss) for loss in constants.LOSSES_OF_A]
        for r in best:
            c = r.config
            own = constants.OWN_CONSTANT[c['loss']['name']][0]
            print(f'{c["loss"]["name"]:22} lr {c["train"]["lr"]:g}  {own} {c["loss"]["constants"][own]:g}  '
                  f'dev {100*constants.dev_after(r):.2f}', flush=True)
        return ()


def read_settings(names, tiny, limit):
    "The runs of the named experiments, most important first"
    settings = []
    for group in names:
        runs = []
        for name in group.split(','):
            changes = TINY + (('train.steps=4',) if tiny else ())
            if tiny and name == PART: changes += ('train.stop=2',)
            runs += load_experiment(ROOT/f'nbs/experiments/{name}.toml', changes if tiny else ())
        settings += sorted(runs, key=lambda c: c.seed)
    return settings[:limit]


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('experiments', nargs='+')
    ask.add_argument('--processes', type=int, default=max(1, (os.cpu_count() or 2) - 2))
    ask.add_argument('--minutes', type=float, default=8.)
    ask.add_argument('--out', type=Path, default=Path('runs/gpu'))
    ask.add_argument('--runs', type=Path, help='where the runs go on; default: a folder beside --out')
    ask.add_argument('--limit', type=int, help='only the first runs')
    ask.add_argument('--tiny', action='store_true', help="four steps on the project's own sentences")
    o = ask.parse_args(argv)
    o.out.mkdir(parents=True, exist_ok=True)
    try:
        settings = read_settings(o.experiments, o.tiny, o.limit)
        follow = Rounds(o.out) if PART in o.experiments and not o.tiny else None
        outcomes = run_all(settings, o.runs or o.out/'runs', processes=o.processes, minutes=o.minutes, keep_models=False,
                           collect=o.out/'records.jsonl', follow=follow, say=lambda line: print(line, flush=True))
    except UserError as e:
        print(f'train: {e}', file=sys.stderr)
        return 2
    states = [o.state for o in outcomes]
    print(', '.join(f'{states.count(s)} {s}' for s in ('done', 'refused', 'failed', 'left out')), flush=True)
    return 1 if {'refused', 'failed'} & set(states) else 0


if __name__ == '__main__': sys.exit(main())
