"""What make_docs.py changes in staged pages and in the built site, for Quarto and smalldocs alike.

signatures  as they are written: with `*`, without links in comments, `Annotated` and long defaults
reference   signatures come after the story, in a section of their own
printed     Markdown tables that a cell printed are set as tables
pages       style, script, icon, card, "open this notebook" and "report a fault"
"""
import ast
import html
import io
import json
import re
import shutil
import textwrap
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(__file__).with_name('site')
LONG = 40                   # characters of a default that is shown whole
COLUMNS = 96                # a signature's comment wraps here
DATA = 'dataclass', 'BaseModel', 'NamedTuple', 'TypedDict', 'Protocol', 'Enum', 'StrEnum'
PLACEHOLDER = r'https?://example\.github\.io/sfr_repro/'
SHOW_DOC = re.compile(r'^show_doc\((.+)\)\s*$', re.M)

# ---------------------------------------------------------------- signatures

def annotated(x):
    "Whether a node is `Annotated[...]`"
    if not isinstance(x, ast.Subscript): return False
    return getattr(x.value, 'id', getattr(x.value, 'attr', ''))=='Annotated'

def defaults_of(node):
    "The nodes of a definition's defaults"
    if isinstance(node, ast.ClassDef):
        return [x.value for x in node.body if isinstance(x, ast.AnnAssign) and x.value]
    return [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]

def edited(text):
    "A definition without `Annotated`, long defaults as names that `spelled` turns into their start"
    node, raw = ast.parse(text).body[0], text.encode()
    starts = [0]
    for line in text.splitlines(True): starts.append(starts[-1] + len(line.encode()))
    def place(x):
        return (starts[x.lineno-1] + x.col_offset, starts[x.end_lineno-1] + x.end_col_offset)
    changes, spelled = [], {}
    for x in filter(annotated, ast.walk(node)):
        inner = x.slice.elts[0] if isinstance(x.slice, ast.Tuple) else x.slice
        changes.append((*place(x), raw[slice(*place(inner))]))
    inits = [x for x in ast.walk(node) if isinstance(x, ast.FunctionDef) and x.name=='__init__']
    for d in [o for x in [node, *inits] for o in defaults_of(x)]:
        a, b = place(d)
        flat = ' '.join(raw[a:b].decode().split())
        if len(flat) <= LONG: continue
        name = f'LONG_DEFAULT_{len(spelled)}_'
        spelled[name] = flat[:LONG-1].rstrip() + '…'
        changes.append((a, b, name.encode()))
    for a, b, new in sorted(changes, reverse=True): raw = raw[:a] + new + raw[b:]
    return raw.decode(), spelled

def head_of(text):
    "A definition up to the colon before its body, with the comment behind that colon"
    depth, lines = 0, text.splitlines(True)
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        if t.type==tokenize.OP:
            depth += (t.string in '([{') - (t.string in ')]}')
            if t.string==':' and not depth:
                row, col = t.end
                rest = lines[row-1][col:].strip()
                said = ' ' + rest if rest.startswith('#') else ''
                return ''.join(lines[:row-1]) + lines[row-1][:col] + said
    return text

def wrapped(signature):
    "Comments that reach beyond the column go on in the next lines"
    out = []
    for line in signature.splitlines():
        m = re.match(r'(?P<code>.*?\S)\s+# (?P<said>.*)$', line)
        if len(line) <= COLUMNS or not m: out.append(line); continue
        indent = len(line) - len(line.lstrip())
        column = len(m['code']) + 1
        if column > COLUMNS//2:
            out.append(m['code'])
            column = indent + 4
        lines = textwrap.wrap(m['said'], max(COLUMNS-column-2, 30), break_long_words=False)
        lines = [' '*column + '# ' + o for o in lines]
        if column != indent + 4 or out[-1] != m['code']:
            lines[0] = m['code'] + lines[0][len(m['code']):]
        out += lines
    return '\n'.join(out)

def fields_of(node, lines):
    "The fields of a data class as they are written, each with its comment"
    rows = [r for x in node.body if isinstance(x, ast.AnnAssign)
            for r in range(x.lineno, x.end_lineno+1)]
    return [lines[r-1].rstrip('\n') for r in rows]

def called(text, is_data):
    "The call that a definition allows: a function's head, a class's fields or its `__init__`"
    node, lines = ast.parse(text).body[0], text.splitlines(True)
    head = head_of(text).rstrip()
    if not isinstance(node, ast.ClassDef): return head
    fields = fields_of(node, lines)
    if is_data and fields: return '\n'.join([head, *fields])
    init = next((x for x in node.body if getattr(x, 'name', '')=='__init__'), None)
    if not init: return head
    made = head_of(textwrap.dedent(''.join(lines[init.lineno-1:init.end_lineno])))
    made = re.sub(r'^def __init__\(\s*self\s*,?[ \t]*', f'{node.name}(', made)
    return re.sub(r'\)(\s*->\s*None)?:(\s*#.*)?$', r')\2', made)

class Sources:
    "The package's definitions, as text"
    def __init__(self, package):
        self.text = {p: p.read_text(encoding='utf-8') for p in package.rglob('*.py')}
        self.trees = {p: ast.parse(t) for p, t in self.text.items()}

    def find(self, name, file=None):
        "`(file, node, owner)` of `f`, `C` or `C.f`; None where it is no definition"
        files = [file] if file in self.trees else list(self.trees)
        outer, _, inner = name.partition('.')
        kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
        for p in files:
            for node in self.trees[p].body:
                if not (isinstance(node, kinds) and node.name==outer): continue
                if not inner: return p, node
                for x in node.body:
                    if isinstance(x, kinds) and x.name==inner: return p, x
        return None

    def signature(self, name, file=None):
        "How a name is called, as it is written; None where it is no definition of the package"
        found = self.find(name, file)
        if not found: return None
        p, node = found
        own = self.text[p].splitlines(True)[node.lineno-1:node.end_lineno]
        text, spelled = edited(textwrap.dedent(''.join(own)))
        marks = [ast.unparse(x) for x in (*getattr(node, 'bases', ()), *node.decorator_list)]
        shown = called(text, any(re.search(rf'\b{k}\b', o) for k in DATA for o in marks))
        for name, start in spelled.items(): shown = shown.replace(name, start)
        return wrapped(shown)

def cleaned(block):
    "What nbdev wrote of a name that is no definition: without links, defaults shortened"
    block = re.sub(r'\[(`[^`]*`)\]\([^)]*\)', r'\1', block)
    def shorter(m):
        return m[1] + (m[2] if len(m[2]) <= LONG else m[2][:LONG-1].rstrip() + '…') + m[3]
    return wrapped(re.sub(r'(?m)^(    \w+(?::[^=]*)?=)(.*?)(,(?:\s+#.*)?)$', shorter, block))

# ---------------------------------------------------------------- staged notebooks

def markdown(text, key): return {'cell_type': 'markdown', 'id': key, 'metadata': {}, 'source': text}

def shown_name(cell):
    "The name that a cell of nbdev's documents; None for every other cell"
    text = ''.join(cell['source'])
    if cell['cell_type']!='code' or not cell.get('outputs'): return None
    m = SHOW_DOC.search(text)
    return m and m[1].split(',')[0].strip()

def reference_entry(cell, name, sources):
    "The cell of a name with its signature as written; and its first sentence"
    data = cell['outputs'][0]['data']
    text = ''.join(data.get('text/markdown', ''))
    m = re.match(r'---\n\n(?P<source>\[source\].*?\n\n)?(?P<title>#+ .*?\n\n)'
                 r'(?:```python\n(?P<code>.*?)\n```)?(?P<rest>.*)$', text, re.S)
    if not m: return cell, ''
    file = re.search(r'/(sfr_repro/[\w/]+\.py)', m['source'] or '')
    code = sources.signature(name, ROOT/file[1] if file else None) or cleaned(m['code'] or '')
    where = f'`{file[1]}`\n\n' if file else ''
    data['text/markdown'] = f'{m["title"]}{where}```python\n{code}\n```{m["rest"]}'
    data.pop('text/plain', None)
    first = re.search(r'\*(.+?)\*\s*(\n|$)', m['rest'].strip(), re.S)
    return cell, ' '.join(first[1].split()) if first else ''

def reference_last(cells, sources):
    "The story first: signatures go to the end; where no source is shown, a line links to them"
    story, entries = [], []
    for i, cell in enumerate(cells):
        name = shown_name(cell)
        if not name: story.append(cell); continue
        entry, said = reference_entry(cell, name, sources)
        entries.append(entry)
        following = ''.join(cells[i+1]['source']) if i+1 < len(cells) else ''
        if 'Exported source' in following: continue
        anchor = re.sub(r'[^\w.-]', '', name.lower())
        line = f'[`{name}`](#{anchor}){": " + said if said else ""}'
        if story and story[-1].get('is_list'): story[-1]['source'] += f'\n- {line}'
        else: story.append(markdown(f'- {line}', f'names{i}') | {'is_list': True})
    for cell in story: cell.pop('is_list', None)
    if not entries: return story
    title = '## Reference\n\nEach name of this page, and how it is called.'
    return [*story, markdown(title, 'reference'), *entries]

def table_parts(text):
    "A printed text as `(is a table, lines)` pieces"
    parts = []
    for line in text.splitlines():
        is_table = bool(re.match(r'\s*\|.*\|\s*$', line))
        if parts and parts[-1][0]==is_table: parts[-1][1].append(line)
        else: parts.append((is_table, [line]))
    # a table has a rule below its head; anything else with bars stays as it is printed
    return [(t and len(o) > 1 and bool(re.match(r'\s*\|[\s:|-]+\|\s*$', o[1])), o)
            for t, o in parts]

def set_tables(output):
    "The outputs that show a printed text with its Markdown tables set"
    if output['output_type']!='stream': return [output]
    parts = table_parts(''.join(output['text']))
    if not any(t for t, _ in parts): return [output]
    made = []
    for is_table, lines in parts:
        text = '\n'.join(lines).strip('\n')
        if not text: continue
        if is_table: made.append({'output_type': 'display_data', 'metadata': {},
                                  'data': {'text/markdown': text.strip()}})
        else: made.append({**output, 'text': text + '\n'})
    return made

def only_imports(text):
    "Whether a cell holds nothing but imports"
    try: body = ast.parse(text).body
    except SyntaxError: return False
    return bool(body) and all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in body)

def dress_notebook(nb, sources):
    "Signatures, reference and printed tables of a staged notebook; imports are folded"
    for cell in nb['cells']:
        if cell['cell_type']=='code':
            text = ''.join(cell['source'])
            if only_imports(text) and '#|' not in text:
                cell['source'] = f'#| code-fold: true\n#| code-summary: "Imports"\n{text}'
            cell['outputs'] = [o for output in cell.get('outputs', []) for o in set_tables(output)]
    nb['cells'] = reference_last(nb['cells'], sources)
    return nb

def dress_stage(proc):
    "All staged notebooks"
    sources = Sources(ROOT/'sfr_repro')
    for page in proc.rglob('*.ipynb'):
        nb = dress_notebook(json.loads(page.read_text(encoding='utf-8')), sources)
        page.write_text(json.dumps(nb), encoding='utf-8')

# ---------------------------------------------------------------- the built site

def has_address(setting):
    "Whether settings.ini names a real address, not the placeholder"
    both = setting('doc_host') + ' ' + setting('git_url')
    return not re.search(r'//(www\.)?example\.|/example(/|$)', both)

def page_of(notebook):
    "The page of a notebook, by its path in nbs/"
    return re.sub(r'(^|/)\d+[a-z0-9]*_', r'\1', notebook.with_suffix('.html').as_posix().lower())

def tools(up, name, notebook, setting):
    "Open this notebook, report a fault"
    said = [f'<a href="{up}notebooks/{notebook}" download>Open this notebook</a>']
    data = f'data-page="{html.escape(name)}" data-version="{setting("version")}"'
    if has_address(setting):
        git, branch = setting('git_url'), setting('branch')
        at = git.partition('github.com/')[2]
        colab = f'https://colab.research.google.com/github/{at}/blob/{branch}/nbs/{notebook}'
        said += [f'<a href="{colab}">Open in Colab</a>',
                 f'<a href="{git}/issues/new?title=Fault on {name}">Report a fault</a>']
    else:
        said.append(f'<button type="button" class="report-fault" {data}>Report a fault</button>'
                    '<span role="status"></span>')
    return f'<div class="page-tools">{"".join(said)}</div>'

def card(up, title, about, name, setting):
    "What a link to the page shows elsewhere"
    home = setting('doc_host') + setting('doc_baseurl') + '/' if has_address(setting) else up
    metas = {'og:title': title, 'og:description': about, 'og:type': 'article',
             'og:site_name': setting('title'), 'og:image': f'{home}site_libs/sfr/card.png'}
    if has_address(setting): metas['og:url'] = home + name
    return ''.join(f'<meta property="{k}" content="{html.escape(v)}">' for k, v in metas.items())

def dress_page(text, name, notebook, setting):
    "Style, script, icon, card and tools of one page"
    up = '../'*name.count('/')
    title = html.unescape(re.search(r'<title>(.*?)</title>', text, re.S)[1])
    about = re.search(r'<meta name="description" content="([^"]*)"', text)
    about = html.unescape(about[1]) if about else setting('description')
    head = (f'<link rel="icon" href="{up}site_libs/sfr/favicon.svg" type="image/svg+xml">'
            f'<link rel="stylesheet" href="{up}site_libs/sfr/page.css">'
            + card(up, title, about, name, setting)
            + f'<script src="{up}site_libs/sfr/page.js" defer></script>')
    text = text.replace('</head>', head + '</head>', 1)
    if notebook:
        links = tools(up, name, notebook, setting)
        text = re.sub(r'(<header id="title-block-header".*?)(</header>)',
                      lambda m: m[1] + links + m[2], text, count=1, flags=re.S)
    if not has_address(setting):
        text = re.sub(r'<(?:link|meta)\b[^>]*https?://example\.github\.io[^>]*>', '', text)
        nowhere = r'https?://(?:example\.github\.io|github\.com/example)'
        text = re.sub(rf'<a\b[^>]*href="{nowhere}[^"]*"[^>]*>(.*?)</a>', r'\1', text, flags=re.S)
        text = re.sub(PLACEHOLDER, '', text)
    return text

def dress_site(site, setting):
    "All pages of the built site, with what they load and the notebooks they were made from"
    own = site/'site_libs/sfr'
    own.mkdir(parents=True, exist_ok=True)
    for f in ASSETS.iterdir(): shutil.copy(f, own)
    shutil.copy(ROOT/'nbs/records/index.png', own/'card.png')
    notebooks = {}
    for nb in (ROOT/'nbs').rglob('[!_.]*.ipynb'):
        at = nb.relative_to(ROOT/'nbs')
        notebooks[page_of(at)] = at.as_posix()
        to = site/'notebooks'/at
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(nb, to)
    for page in site.rglob('*.html'):
        name = page.relative_to(site).as_posix()
        text = dress_page(page.read_text(encoding='utf-8'), name, notebooks.get(name), setting)
        page.write_text(text, encoding='utf-8')
    if not has_address(setting): (site/'sitemap.xml').unlink(missing_ok=True)
    index = site/'search.json'
    if index.exists():
        text = re.sub(PLACEHOLDER, '', index.read_text(encoding='utf-8'))
        index.write_text(text, encoding='utf-8')
