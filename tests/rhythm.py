"""How the house reads, in numbers: `python tests/rhythm.py [FOLDER]`, for this tree or another.

Rhythm: the share of a notebook's exported cells that are followed by another export before any
other code cell. A cell that only displays a name or a repr is no other cell, and exported cells
that only import are not counted. Lines are those of the package, without the generated index.
"""
import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

# ---------------------------------------------------------------- notebooks

def parsed(source):
    "The statements of a cell, without magics; none where it is no Python"
    try: return ast.parse(re.sub(r'^\s*[%!].*', '', source, flags=re.M)).body
    except SyntaxError: return []

def only_imports(statements):
    return bool(statements) and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in statements)

def only_displays(statements):
    "Whether a cell does no more than display a name, an attribute, a constant or the repr of one"
    def plain(e):
        if isinstance(e, ast.Attribute): return plain(e.value)
        if isinstance(e, ast.Tuple): return all(map(plain, e.elts))
        if isinstance(e, ast.Call):
            shows = getattr(e.func, 'id', '') in ('print', 'display', 'repr', 'show_doc')
            return shows and all(map(plain, e.args))
        return isinstance(e, (ast.Name, ast.Constant))
    return all(isinstance(o, ast.Expr) and plain(o.value) for o in statements)

@dataclass
class Rhythm:
    exports: int = 0
    followed: int = 0           # by another export, before anything is shown

    def __str__(self):
        return f'{self.followed:4} of {self.exports:4} {self.followed/max(1, self.exports):5.0%}'

def kinds(sources):
    "'export' or 'other' for each code cell that counts"
    for source in sources:
        statements = parsed(source)
        exported = re.search(r'^#\| *exports?\b(?! *:)', source, re.M)
        if exported and not only_imports(statements): yield 'export'
        if not exported and not only_displays(statements): yield 'other'

def rhythm(sources):
    "Of the code cells of one notebook"
    order = list(kinds(sources))
    followed = [a for a, b in zip(order, order[1:], strict=False) if a == b == 'export']
    return Rhythm(order.count('export'), len(followed))

def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']

def rhythms(folder):
    "Path -> rhythm, for each notebook that exports"
    found = {}
    for notebook in sorted((folder/'nbs').rglob('[!_.]*.ipynb')):
        r = rhythm(code_cells(notebook))
        if r.exports: found[notebook.relative_to(folder/'nbs').as_posix()] = r
    return found

# ---------------------------------------------------------------- package

def parameters(function):
    a = function.args
    return [p.arg for p in [*a.posonlyargs, *a.args, *a.kwonlyargs] if p.arg not in ('self', 'cls')]

def nested_comprehensions(tree):
    "How many comprehensions stand inside another one"
    inside = set()
    for outer in ast.walk(tree):
        if not isinstance(outer, COMPREHENSION): continue
        inside |= {id(n) for n in ast.walk(outer) if isinstance(n, COMPREHENSION)} - {id(outer)}
    return len(inside)

def comprehensions_of_two(tree):
    "How many comprehensions have more than one `for`"
    return sum(isinstance(n, COMPREHENSION) and len(n.generators) > 1 for n in ast.walk(tree))

def signature_and_body(tree, lines):
    "Lines of signatures and of bodies of all functions, blank lines and docstrings left out"
    signature = body = 0
    for f in ast.walk(tree):
        if not isinstance(f, FUNCTION): continue
        first = f.body[1:2] if ast.get_docstring(f, clean=False) else f.body[:1]
        # it ends where the docstring or the first statement begins, on a line of its own or not
        signature += max(1, f.body[0].lineno - f.lineno)
        if first: body += sum(1 for o in lines[first[0].lineno-1:f.end_lineno] if o.strip())
    return signature, body

def package(folder):
    "The counts of HOUSE.md over the package"
    counts = {'lines': 0, 'above 100': 0, 'above 120': 0, 'above 140': 0, 'longest': 0,
              'functions with more than nine parameters': 0, 'functions with nine or more': 0,
              'nested comprehensions': 0, 'comprehensions with two `for`': 0,
              'signature lines in losses': 0, 'body lines in losses': 0, 'longest file': 0}
    for module in sorted((folder/'sfr_repro').rglob('*.py')):
        if module.name == '_modidx.py': continue
        text = module.read_text(encoding='utf-8')
        tree, lines = ast.parse(text), text.splitlines()
        counts['lines'] += sum(1 for o in lines if o.strip())
        for n in (100, 120, 140): counts[f'above {n}'] += sum(1 for o in lines if len(o) > n)
        counts['longest'] = max([counts['longest'], *map(len, lines)])
        counts['longest file'] = max(counts['longest file'], len(lines))
        taken = [len(parameters(f)) for f in ast.walk(tree) if isinstance(f, FUNCTION)]
        counts['functions with more than nine parameters'] += sum(n > 9 for n in taken)
        counts['functions with nine or more'] += sum(n >= 9 for n in taken)
        counts['nested comprehensions'] += nested_comprehensions(tree)
        counts['comprehensions with two `for`'] += comprehensions_of_two(tree)
        if module.parent.name == 'losses':
            signature, body = signature_and_body(tree, lines)
            counts['signature lines in losses'] += signature
            counts['body lines in losses'] += body
    return counts

def table(folder):
    "All of it, as text"
    found = rhythms(folder)
    total = Rhythm(sum(r.exports for r in found.values()), sum(r.followed for r in found.values()))
    width = max(map(len, [*found, 'package']))
    rows = [f'{name:{width}} {r}' for name, r in [*found.items(), ('package', total)]]
    return '\n'.join([*rows, '', *(f'{n:6} {name}' for name, n in package(folder).items())])

if __name__ == '__main__': print(table(Path(sys.argv[1]) if sys.argv[1:] else ROOT))
