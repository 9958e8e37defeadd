"""Part (c) of `make gpu`: paper A's trainings, many processes on one card.

`python tests/gpu/train.py --minutes 8 --out FOLDER paradigm_main,paradigm_common paradigm_parts`
runs experiment files of nbs/experiments in that order; files joined by a comma share a queue that
goes seed by seed. Each finished record is a line of FOLDER/records.jsonl. The same command goes on
where it was cut off. `bridge bridge_matched` are measured along the way through three lenses. Where
`paradigm_constants` comes first, it brings its own second and third round, and the files that it
decides are made from its records before they are run.
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
from sfr_repro.analysis.bridge import open_lenses
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.provenance import stamped_code
from sfr_repro.core.records import read_record
from sfr_repro.encode.encoder import best_device
from sfr_repro.results import constants
from sfr_repro.train.queue import run_all

TINY = ('data.source="embedded"', 'data.corpus=["mini"]', 'data.sentences=64', 'train.batch=8',
        'train.eval_every=2')
PART = 'paradigm_constants'


class Rounds:
    "What comes after the first round of constants; each file is written as it is made"
    def __init__(self, out, then):
        self.out, self.then, self.texts = (out, then, [('edge', constants.edge_text),
                                                       ('own', constants.own_text)])

    def write(self, name, text):
        path = self.out/name
        path.write_text(text)
        print(f'{name}: {text.count("[[variant]]")} settings', flush=True)
        return load_experiment(path)

    def __call__(self, outcomes):
        # constants are chosen from all tries or from none
        if any(o.state != 'done' for o in outcomes): return ()
        records = [read_record(o.record) for o in outcomes if o.name.startswith(PART)]
        while self.texts:
            name, make = self.texts.pop(0)
            if text := make(records): return self.write(f'{PART}_{name}.toml', text)
        if self.then is None: return ()
        then, self.then = self.then, None
        return self.main(records, then)

    def main(self, records, then):
        "The experiments whose settings the tries decide, and the others after them"
        for loss in constants.LOSSES_OF_A:
            best = constants.best_record(records, loss)
            made, own = best.config['loss']['constants'], constants.OWN_CONSTANT[loss][0]
            print(f'{loss:22} lr {best.config["train"]["lr"]:g}  {own} {made[own]:g}  '
                  f'dev {100*constants.dev_after(best):.2f}', flush=True)
        texts = constants.main_texts(records) | constants.later_texts(records)
        texts['paradigm_parts.toml'] = constants.parts_text(records)
        made = {name.removesuffix('.toml'): self.write(name, text) for name, text in texts.items()}
        return read_settings(then, made)


def read_settings(names, made=None, tiny=False):
    "The runs of the named experiments, most important first"
    settings = []
    for group in names:
        runs = []
        for name in group.split(','):
            changes = TINY + ('train.steps=4',) if tiny else ()
            if tiny and name == PART: changes += ('train.stop=2',)
            runs += ((made or {}).get(name)
                     or load_experiment(ROOT/f'nbs/experiments/{name}.toml', changes))
        settings += sorted(runs, key=lambda c: c.seed)
    return settings


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('experiments', nargs='+')
    ask.add_argument('--processes', type=int, default=max(1, (os.cpu_count() or 2) - 2))
    ask.add_argument('--minutes', type=float, default=8.)
    ask.add_argument('--out', type=Path, default=Path('runs/gpu'))
    ask.add_argument('--runs', type=Path,
                     help='where the runs go on; default: a folder beside --out')
    ask.add_argument('--limit', type=int, help='only the first runs')
    ask.add_argument('--device', choices=('cuda', 'cpu'), help='refuse to start on another one')
    ask.add_argument('--tiny', action='store_true',
                     help="four steps on the project's own sentences")
    o = ask.parse_args(argv)
    o.out.mkdir(parents=True, exist_ok=True)
    try:
        if o.device and o.device != best_device():
            raise UserError(f'--device is {o.device}: the trainings would run on {best_device()}')
        if not o.tiny and (stamp := os.environ.get(
                               'SFR_CODE')) and stamped_code(stamp, ROOT)['dirty']:
            raise UserError(f'the code is not that of {stamp}, so no record would be kept: run '
                            'make gpu-data again')
        rounds = o.experiments[0] == PART and not o.tiny
        settings = read_settings(o.experiments[:1] if rounds else o.experiments,
                                 tiny=o.tiny)[:o.limit]
        follow = Rounds(o.out, o.experiments[1:]) if rounds else None
        outcomes = run_all(settings, o.runs or o.out/'runs', processes=o.processes,
                           minutes=o.minutes, keep_models=False, collect=o.out/'records.jsonl',
                           follow=follow, say=lambda line: print(line, flush=True),
                           lenses=open_lenses)
    except UserError as e:
        print(f'train: {e}', file=sys.stderr)
        return 2
    states = [o.state for o in outcomes]
    print(', '.join(f'{states.count(s)} {s}' for s in ('done', 'refused', 'failed', 'left out')),
          flush=True)
    return 1 if {'refused', 'failed'} & set(states) else 0


if __name__ == '__main__': sys.exit(main())
