"""Count words, the length of sentences, and phrases that STYLE.md rules out: python tests/words.py

What is counted: Markdown cells without code, formulas, tables and headings; docstrings and comments
of the package; help texts and comments of the experiment files. One row a room.
"""
import ast
import json
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Phrases with a private meaning, and what to write in their place
TICS = {
    r'stands? (?:in|on|at|for (?:it|this)|there|above|below|beside|here)\b': 'is',
    r'\bat hand\b': 'available',
    r'\bfor ever\b': 'permanently',
    r'\bthe door\b': 'command line',
    r'\blets? go\b': 'releases',
    r'\bto the bit\b': 'bit-identical',
    r'\bto the last digit\b': 'exactly',
    r'\bto the letter\b': 'exactly',
    r'\bby hand and\b': 'and',
    r'\bword for word\b': 'exactly',
    r'\bnot un\w+': 'a plain adjective',
    r'\bnothing but\b': 'only',
    r'\bno \w+ but\b': 'only',
    r'\bwhere there is none\b': 'without one',
    r'\bso that it is so\b': '',
    r'\bis no (?:decoration|accident|mistake|matter)\b': 'matters',
    r'\bhas its (?:say|price|way)\b': '',
    r'\bwhatever (?:the|it|they)\b': 'with any',
    r'\bof its own accord\b': 'itself',
    r'\bthe one and the other\b': 'both',
    r'\bnobody has\b': 'no one has',
    r'\bshall\b': 'should',
    r'\bhold(?:s)? its tongue\b': '',
    r'\bas it were\b': '',
    r'\bin sight\b': 'visible',
    r'\bcomes? to pass\b': 'happens',
    r'\buntrained encoder\b': 'pre-trained encoder',
    r'\bthe start(?:s)? (?:that|which|of record)\b': 'initial encoder',
}

def sentences_of(text):
    "The sentences of some prose, as lists of words"
    text = re.sub(r'```.*?```|~~~.*?~~~', ' ', text, flags=re.S)
    text = re.sub(r'\$\$.*?\$\$', ' ', text, flags=re.S)
    lines = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith(('|', '#', '<', '![', ':::')): bare = ''
        # an item of a list is a sentence of its own
        lines.append(re.sub(r'^([-*>]|\d+\.)\s+', '\n\n', bare))
    text = '\n'.join(lines)
    text = re.sub(r'`[^`]*`|\$[^$]*\$', ' X ', text)
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', text)
    found = []
    for block in re.split(r'\n\s*\n', text):
        for sentence in re.split(r'(?<=[.!?:;])\s+', block):
            words = re.findall(r"[A-Za-z][A-Za-z'-]*|\d[\d.,]*", sentence)
            if words: found.append(words)
    return found

def tics_of(text):
    "(phrase, what to write) for each phrase of `TICS` that occurs outside code and formulas"
    text = re.sub(r'```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$', ' ', text, flags=re.S)
    text = re.sub(r'\s+', ' ', text)
    return [(m[0], instead) for tic, instead in TICS.items()
            for m in re.finditer(tic, text, re.I)]

def pages():
    "(room, place, text) of each Markdown cell"
    for path in sorted((ROOT/'nbs').rglob('[!_.]*.ipynb')):
        place = path.relative_to(ROOT/'nbs')
        room = place.parts[0] if len(place.parts) > 1 else 'index and cli'
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] == 'markdown': yield room, str(place), ''.join(cell['source'])

def docstrings(path):
    "(line, text) of each docstring and comment of a module"
    source = path.read_text(encoding='utf-8')
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if text := ast.get_docstring(node): yield getattr(node, 'lineno', 1), text
    with open(path, 'rb') as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and not re.match(r'# (%%|AUTO)', token.string):
                yield token.start[0], token.string.lstrip('# ')

def comments():
    "(room, place, text) of the package's docstrings and comments, and of the experiment files'"
    for path in sorted((ROOT/'sfr_repro').rglob('*.py')):
        if path.name.startswith('_'): continue
        for line, text in docstrings(path):
            yield 'docstrings', f'{path.relative_to(ROOT)}:{line}', text
    for path in sorted((ROOT/'nbs/experiments').rglob('*.toml')):
        lines = path.read_text(encoding='utf-8').splitlines()
        text = '\n'.join(line.lstrip('# ') for line in lines if line.startswith('#'))
        yield 'experiments', str(path.relative_to(ROOT)), text

def main():
    only = sys.argv[1:]
    rooms, found = {}, []
    for room, place, text in [*pages(), *comments()]:
        if only and not any(o in place for o in only): continue
        rooms.setdefault(room, []).extend(map(len, sentences_of(text)))
        found += [(room, place, *tic) for tic in tics_of(text)]
    print(f'{"room":15s} {"words":>7s} {"sentences":>9s} {"median":>6s} {"95th":>5s} {"tics":>5s}')
    for room, lengths in rooms.items():
        if len(lengths) < 2: continue
        high = statistics.quantiles(lengths, n=20)[-1]
        tics = sum(f[0] == room for f in found)
        print(f'{room:15s} {sum(lengths):7d} {len(lengths):9d} {statistics.median(lengths):6.0f} '
              f'{high:5.0f} {tics:5d}')
    if only or '--tics' in sys.argv:
        for _, place, phrase, instead in found: print(f'{place}: "{phrase}": write {instead!r}')

if __name__ == '__main__': main()
