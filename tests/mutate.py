"""Seeded generators of bad input: each draws one small mutation of something that is right."""
import copy
import json
import random

# values that a file may hold in any place
ODD = (None, True, -1, 0, 1, 3.5, 1e999, -1e308, float('nan'), 10**20, 2**31, '', ' ', '\n', 'x',
       '0', '../../x', '/etc/x', 'a/b', 'ü', '\ud800', '\x00', 'x'*5000, [],
       {}, [[]], {'a': 1}, ['x'])

def places(x, path=()):
    "Every path into nested dicts and lists"
    if path: yield path
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for k, v in items: yield from places(v, (*path, k))

def parent_of(x, path):
    for k in path[:-1]: x = x[k]
    return x

def mutate_data(x, draw):
    "One value changed, taken out, added, or put elsewhere"
    x = copy.deepcopy(x)
    every = list(places(x))
    # short paths as often as long ones, of which a record has thousands
    depth = draw.choice(sorted({len(p) for p in every}))
    path = draw.choice([p for p in every if len(p) == depth])
    parent, key = parent_of(x, path), path[-1]
    how = draw.choice(('value', 'value', 'value', 'gone', 'new', 'key', 'scaled'))
    if how == 'value': parent[key] = draw.choice(ODD)
    elif how == 'gone': del parent[key]
    elif how == 'scaled':
        number = isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool)
        parent[key] = parent[key]*draw.choice((-1, 1e3, 1e12)) if number else draw.choice(ODD)
    elif isinstance(parent, dict) and how == 'new': parent[str(draw.choice(ODD))] = draw.choice(ODD)
    elif isinstance(parent, dict): parent[str(draw.choice(ODD))] = parent.pop(key)
    else: parent.insert(0, draw.choice(ODD))
    return x

def mutate_bytes(raw, draw):
    "One piece cut, doubled, flipped or replaced"
    a = draw.randrange(len(raw)+1)
    b = min(len(raw), a+draw.choice((1, 1, 3, 20, 500)))
    how = draw.choice(('cut', 'end', 'twice', 'bits', 'other'))
    if how == 'cut': return raw[:a]+raw[b:]
    if how == 'end': return raw[:a]
    if how == 'twice': return raw[:b]+raw[a:]
    if how == 'bits': return raw[:a]+bytes(x ^ 1 << draw.randrange(8) for x in raw[a:b])+raw[b:]
    other = (b'\xff', b'\x00', b'\t', b'\n', b'\r\n', b'"', b'{', b'9'*6000, b'['*3000, b'NaN',
             '\ufeff'.encode(), b'\xed\xa0\x80')
    return raw[:a]+draw.choice(other)+raw[b:]

def mutated_records(record, n, seed=0):
    "`n` files that were a record"
    draw = random.Random(seed)
    for _ in range(n):
        if draw.random() < .3: yield mutate_bytes(json.dumps(record).encode(), draw)
        else:
            x = record
            for _ in range(draw.choice((1, 1, 2))): x = mutate_data(x, draw) if x else x
            yield json.dumps(x).encode()
