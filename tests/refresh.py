"""Run notebooks again and store their outputs: `make refresh`, with `NB=nbs/...ipynb` only one.

Cells with a flag of settings.ini (`slow`, `gpu`) are not run and keep the outputs they have. Each
notebook has a process of its own, so none sees another's seeds, styles or imports, and the same
notebook gives the same bytes twice.
A notebook with a failing cell is left as it was, and the exit code is 1.
"""
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def refresh(fn):
    "Execute notebook `fn` in place; returns what went wrong, or None"
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.all import working_directory
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    os.chdir(ROOT)
    flags = set(get_config().tst_flags.split())
    parsed = NBProcessor(fn, process=True).nb.cells     # the directives of each cell, in a copy
    flagged = lambda cell: bool(flags & set(getattr(cell, 'directives_', None) or {}))
    skips = [c.cell_type != 'code' or flagged(c) for c in parsed]
    skip = iter(skips)
    # dpi as the cell says, not doubled
    nb, shell = read_nb(fn), CaptureShell(fn, mpl_format='png')
    for cell, skipped in zip(nb.cells, skips, strict=True):
        if not skipped: cell.outputs = []       # one that prints nothing keeps nothing of before
    try:
        with working_directory(fn.parent):
            shell.run_all(nb, exc_stop=True, preproc=lambda cell: next(skip))
    except Exception: return shell.prettytb(fname=fn)
    clean_nb(nb)
    tmp = fn.with_name(f'.{fn.name}.tmp')       # nothing half-written under the notebook's name
    write_nb(nb, tmp)
    os.replace(tmp, fn)

def main(args):
    names = [Path(o).resolve() for o in args] or sorted((ROOT/'nbs').rglob('[!_.]*.ipynb'))
    missing = [o for o in names if not o.is_file()]
    if missing: sys.exit(f'make: {missing[0]} is not a notebook')
    failed = 0
    spawn = multiprocessing.get_context('spawn')        # a notebook may start processes of its own
    with ProcessPoolExecutor(2, mp_context=spawn, max_tasks_per_child=1) as pool:
        for fn, wrong in zip(names, pool.map(refresh, names), strict=True):
            done = 'FAILED   ' if wrong else 'refreshed'
            print(f'{done} {os.path.relpath(fn, ROOT)}', flush=True)
            if wrong: failed += 1; print(wrong, file=sys.stderr)
    return min(failed, 1)

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
