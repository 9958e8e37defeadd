"The built site in _docs/: complete, at home, readable. `make docs` first, else these are skipped."
import html.parser
import json
import re
import shutil
import subprocess
from urllib.parse import unquote, urlsplit
import pytest
import make_docs
from conftest import ROOT

DOCS = ROOT/make_docs.setting('doc_path')
NBS = sorted((ROOT/'nbs').rglob('[!_.]*.ipynb'))
pytestmark = [pytest.mark.once, pytest.mark.skipif(not (DOCS/'index.html').exists(),
    reason='make docs first')]
LOADS = {('script', 'src'), ('img', 'src'), ('iframe', 'src'), ('embed', 'src'), ('source', 'src'),
         ('audio', 'src'), ('video', 'src'),
         ('video', 'poster'), ('track', 'src'), ('input', 'src'), ('object', 'data'),
         ('image', 'href'), ('use', 'href')}
LINK_RELS = {'stylesheet', 'icon', 'preload', 'prefetch', 'modulepreload', 'preconnect',
             'dns-prefetch', 'manifest', 'shortcut'}
CSS_URL = r'url\(\s*["\']?([^"\')]+)|@import\s+["\']([^"\']+)'
JS_URL = r'\b(?:import|from|importScripts\(|fetch\()\s*["\'`]([^"\'`]+)'

def css_urls(text):
    return [a or b for a, b in re.findall(CSS_URL, re.sub(r'/\*.*?\*/', '', text, flags=re.S))]

def page_of(notebook):
    "nbdev's links name the pages: 00_infonce.ipynb is infonce.html"
    return DOCS/re.sub(r'(^|/)\d+[a-z0-9]*_', r'\1',
                       notebook.relative_to(ROOT/'nbs').with_suffix('.html').as_posix().lower())

class Reader(html.parser.HTMLParser):
    "What a page loads, where it links to, its anchors and its formulas"
    def __init__(self, text):
        super().__init__()
        self.loads = []
        self.links = []
        self.ids = set()
        self.maths = []
        self._in = None
        self._span = None
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = {k: v or '' for k, v in attrs}
        self.loads += [v for k, v in a.items() if (tag, k) in LOADS]
        if tag == 'link' and LINK_RELS & set(a.get('rel', '').lower().split()):
            self.loads.append(a.get('href', ''))
        if 'srcset' in a: self.loads += [o.split()[0] for o in a['srcset'].split(',') if o.strip()]
        if 'style' in a: self.loads += css_urls(a['style'])
        if tag == 'a' and 'href' in a: self.links.append(a['href'])
        self.ids |= {a[k] for k in ('id', 'name') if k in a}
        if tag in ('style', 'script'): self._in = tag
        if tag == 'span' and 'math' in a.get('class', '').split(): self._span = [a['class'], '']
    handle_startendtag = handle_starttag
    def handle_endtag(self, tag):
        if tag == self._in: self._in = None
        if tag == 'span' and self._span: self.maths.append(tuple(self._span)); self._span = None
    def handle_data(self, data):
        if self._in == 'style': self.loads += css_urls(data)
        if self._in == 'script': self.loads += re.findall(JS_URL, data)
        if self._span: self._span[1] += data

@pytest.fixture(scope='module')
def pages(): return {p: Reader(p.read_text(encoding='utf-8')) for p in sorted(DOCS.rglob('*.html'))}

def far(address): return bool(re.match(r'\s*(https?:)?//|\s*(ftp|wss?):', address, re.I))

def test_one_page_a_notebook(pages):
    assert NBS and set(pages) == set(map(page_of, NBS))

@pytest.mark.parametrize('text', ['<script src="https://x.y/z.js"></script>',
    '<link rel="stylesheet" href="//x.y/z.css">', '<img src="http://x.y/z.png">',
    '<style>@import url(https://x.y);</style>', '<p style="background: url(\'https://x.y\')">',
    '<script type="module">import a from "https://x.y"</script>'])
def test_foreign_addresses_are_seen(text): assert any(map(far, Reader(text).loads))

def test_pages_load_nothing_from_elsewhere(pages):
    for p, page in pages.items():
        assert page.loads, f'{p.name} loads nothing at all: this test sees nothing'
        assert not list(filter(far, page.loads)), p
    sheets = list(DOCS.rglob('*.css'))
    assert sheets
    for p in sheets: assert not list(filter(far, css_urls(p.read_text(encoding='utf-8')))), p

def test_pages_link_to_each_other_here(pages):
    "A reader offline, or of a draft, stays in this copy of the site"
    home = make_docs.setting('doc_host') + make_docs.setting('doc_baseurl')
    for p, page in pages.items(): assert not [o for o in page.links if o.startswith(home)], p

def here(address, page):
    "The file of the site that a local address on a page means; None for another site or scheme"
    parts = urlsplit(address)
    if parts.scheme or parts.netloc: return None
    path = unquote(parts.path)
    target = page if not path else (DOCS/path.lstrip('/') if path.startswith('/')
                                    else page.parent/path).resolve()
    return target/'index.html' if target.is_dir() else target

def test_what_pages_load_and_link_to_exists(pages):
    lost = []
    for p, page in pages.items():
        for address in page.loads + page.links:
            target, anchor = here(address, p), unquote(urlsplit(address).fragment)
            if target and (not target.is_file() or anchor and target in pages
                           and anchor not in pages[target].ids):
                lost.append(f'{p.relative_to(DOCS)}: {address}')
    assert not lost, '\n'.join(sorted(set(lost)))

def plain(text): return ' '.join(re.findall(r'[A-Za-z]+', text))

def test_pages_hold_the_prose_of_their_notebooks():
    "The words before each paragraph's first mark-up; nbdev once dropped what followed the subtitle"
    for nb in NBS:
        text = plain(html.unescape(re.sub(r'<[^>]*>', ' ',
            page_of(nb).read_text(encoding='utf-8'))))
        for cell in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'markdown': continue
            for paragraph in re.split(r'\n\s*\n', ''.join(cell['source'])):
                start = re.match(r'(?:#+ |> )?([A-Za-z ,.:]+)', paragraph)
                if start:
                    assert plain(start[1].rpartition(' ')[0]) in text, \
                        f'{nb.name}: "{start[0]}" is not on its page'

def test_pages_are_finished(pages):
    "Nothing of the machinery shows: no directive, no fence, no error"
    for p in pages:
        text = re.sub(r'<(script|style)\b.*?</\1>', '', p.read_text(encoding='utf-8'), flags=re.S)
        bad = re.search(
            r'^#\| |^:::|Traceback \(most recent call last\)|\{#(eq|fig|tbl)-|@(eq|fig|tbl)-\w',
            text, re.M)
        assert not bad, f'{p.relative_to(DOCS)} shows {bad[0]!r}'

def test_katex_is_in_the_site(pages):
    with_maths = [p for p, page in pages.items() if page.maths]
    if not make_docs.katex_home(make_docs.setting('katex')).is_dir():
        pytest.skip('built without KaTeX: formulas show as TeX')
    assert with_maths
    for p in with_maths:
        loaded = {here(o, p) for o in pages[p].loads}
        assert {DOCS/'site_libs/katex'/o for o in ('katex.min.js', 'katex.min.css',
            'contrib/auto-render.min.js')} <= loaded, p

SET = '''const katex = require(process.argv[1]); let bad = [];
for (const [tex, displayMode] of JSON.parse(require("fs").readFileSync(0))) {
  try { katex.renderToString(tex, {displayMode, throwOnError: true, strict: "ignore"}) }
  catch (e) { bad.push([tex, e.message]) } }
console.log(JSON.stringify(bad))'''

def unset(formulas):
    "The formulas that KaTeX cannot set, with what it says"
    katex = make_docs.katex_home(make_docs.setting('katex'))/'katex.min.js'
    if not katex.exists() or not shutil.which('node'): pytest.skip('needs KaTeX and node')
    done = subprocess.run(['node', '-e', SET, str(katex)], input=json.dumps(formulas),
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

def test_formulas_render(pages):
    # control
    assert [tex for tex, _ in unset([(r'a^2', False), (r'\frac{1', True),
                                     (r'x\tag{A}', True)])] == [r'\frac{1']
    for p, page in pages.items():
        formulas = [(re.sub(r'^\\[(\[]|\\[)\]]$', '', tex.strip()), 'display' in kind)
                    for kind, tex in page.maths]
        assert not unset(formulas), p.relative_to(DOCS)
