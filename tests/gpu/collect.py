"""Take the records that came back from a GPU, one a line, into nbs/records/runs.

`python tests/gpu/collect.py FILE.jsonl` checks each record as `sfr-repro records add` does. Beside
that, the corpus must be the one that the experiment names, drawn from the data folder here.

Records of commit 9573051 have seven numbers at each point of the trajectory that describe the
first batch and not the last one (the pass that checked a replayed step had left its views in
place). Scores, losses, learning rates and gradient norms are right. These numbers are left out
here, before the records are kept; nbs/records/amended.csv names each record.
"""
import argparse
import csv
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import Record, add_record, write_whole
from sfr_repro.data.corpus import load_corpus

STALE = '9573051'
FIELDS = ('pos_cos', 'neg_cos', 'alignment', 'uniformity', 'mean_norm', 'dissipation',
          'active_share')
WHY = 'statistics of the last batch were those of the first one'


def without_stale(record):
    "The record without the numbers that are wrong in it, and whether there were any"
    if not record['code']['commit'].startswith(STALE): return record, False
    found = False
    for point in record['trajectory']:
        for name in FIELDS: found |= point['metrics'].pop(name, None) is not None
    return record, found


def check_corpus(record, known):
    "The corpus of the record must be what its setting draws here"
    data = record['config']['data']
    key = tuple(data['corpus']), data.get('sentences'), data.get('sample_seed', record['seed'])
    if key not in known: known[key] = load_corpus(key[0], key[1], seed=key[2]).describe()['sha256']
    there = next(d['sha256'] for d in record['data'] if d['name'].startswith('corpus/'))
    if there != known[key]:
        raise UserError(f'{record["id"]}: its corpus is not the one that its setting draws here')


def read_lines(paths):
    "All records of all files, or the first thing that is wrong with them"
    for path in paths:
        try: lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f'{path}: cannot be read ({e})') from None
        for number, line in enumerate(lines, 1):
            try: record = Record.model_validate(json.loads(line))
            except ValueError as e:
                first = str(e).splitlines()[0]
                raise UserError(f'{path}, line {number}: no whole record ({first})') from None
            if not record.code.commit: raise UserError(f'{path}, line {number}: it names no commit')
            yield json.loads(line)


def check_file(record, folder):
    "The experiment file that is committed must be the one that the record was made from"
    path = folder/f'{record["experiment"]["name"]}.toml'
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    if found != record['experiment']['sha256']:
        raise UserError(f'{record["id"]}: it was made from another {path.name} than the one here')


def write_amended(path, rows):
    "The list of records without some numbers, with what it held before"
    before = list(csv.DictReader(path.open())) if path.exists() else []
    every = {r['record']: r for r in [*before, *rows]}
    out = io.StringIO()
    writer = csv.DictWriter(out, ['record', 'commit', 'left out', 'why'], lineterminator='\n')
    writer.writeheader()
    writer.writerows(every[k] for k in sorted(every))
    write_whole(path, out.getvalue().encode())


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('files', nargs='+', type=Path)
    ask.add_argument('--to', type=Path, default=ROOT/'nbs/records/runs')
    ask.add_argument('--experiments', type=Path, default=ROOT/'nbs/experiments')
    o = ask.parse_args(argv)
    known, kept, amended = {}, [], []
    try:
        for record in read_lines(o.files):                      # all of them, before any is kept
            record, changed = without_stale(record)
            check_file(record, o.experiments)
            check_corpus(record, known)
            kept.append(record)
            name = f'{record["experiment"]["name"]}-{record["id"]}-s{record["seed"]}.json'
            if changed: amended.append({'record': name, 'commit': record['code']['commit'][:7],
                                        'left out': ' '.join(FIELDS), 'why': WHY})
        if amended: write_amended(o.to.parent/'amended.csv', amended)
        for record in kept:
            with tempfile.TemporaryDirectory() as folder:
                one = Path(folder)/'record.json'
                one.write_text(json.dumps(record))
                add_record(one, o.to)
    except UserError as e:
        print(f'collect: {e}', file=sys.stderr)
        return 2
    print(f'{len(kept)} records kept, {len(amended)} of them without {len(FIELDS)} statistics of '
          'each point')
    return 0


if __name__ == '__main__': sys.exit(main())
