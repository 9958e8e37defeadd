"""Take the records that came back from a GPU, one a line, into nbs/records/runs.

`python tests/gpu/collect.py FILE.jsonl` checks each record as `sfr-repro records add` does, and
beside that: the corpus must be the one that the experiment names, drawn from the data folder here.

Records of commit 9573051 have seven numbers at each point of the trajectory that describe the first
batch and not the last one (the pass that checked a replayed step had left its views in place).
Scores, losses, learning rates and gradient norms are right. These numbers are left out here, before
the records are kept; nbs/records/amended.csv names each record.
"""
import argparse
import csv
import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import add_record, write_whole
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
    key = tuple(data['corpus']), data['sentences'], data.get('sample_seed', record['seed'])
    if key not in known: known[key] = load_corpus(key[0], key[1], seed=key[2]).describe()['sha256']
    there = next(d['sha256'] for d in record['data'] if d['name'].startswith('corpus/'))
    if there != known[key]:
        raise UserError(f'{record["id"]}: its corpus is not the one that its setting draws here')


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('files', nargs='+', type=Path)
    ask.add_argument('--to', type=Path, default=ROOT/'nbs/records/runs')
    o = ask.parse_args(argv)
    known, kept, amended = {}, 0, []
    try:
        for path in o.files:
            for line in path.read_text().splitlines():
                record, changed = without_stale(json.loads(line))
                check_corpus(record, known)
                with tempfile.TemporaryDirectory() as folder:
                    one = Path(folder)/'record.json'
                    one.write_text(json.dumps(record))
                    name = add_record(one, o.to).name
                kept += 1
                if not changed: continue
                commit = record['code']['commit'][:7]
                amended.append({'record': name, 'commit': commit, 'left out': ' '.join(FIELDS),
                                'why': WHY})
        if amended:
            out = io.StringIO()
            writer = csv.DictWriter(out, list(amended[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows(sorted(amended, key=lambda r: r['record']))
            write_whole(o.to.parent/'amended.csv', out.getvalue().encode())
    except UserError as e:
        print(f'collect: {e}', file=sys.stderr)
        return 2
    print(f'{kept} records kept, {len(amended)} of them without {len(FIELDS)} statistics of '
          'each point')
    return 0


if __name__ == '__main__': sys.exit(main())
