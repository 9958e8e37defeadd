"What a project carries for those who install, cite and carry it on: each part says what is so."
import re
import subprocess
import sys
import pytest
import yaml
import make_pins
import make_readme
import release_check
from conftest import ROOT

pytestmark = pytest.mark.once
WORKFLOWS = sorted((ROOT/'.github/workflows').glob('*.yml'))

def read(name): return (ROOT/name).read_text(encoding='utf-8')

def targets():
    "The targets of the Makefile that are no files"
    phony = re.search(r'^\.PHONY: (.*?[^\\])\n', read('Makefile'), re.M | re.S)[1]
    return set(phony.replace('\\', ' ').split())

def unknown_targets(text):
    "Words after `make` in a line of shell or in `code` that are no target"
    lines = re.findall(r'(?:^|`|&& |run: )make ([a-z][a-z-]*)', text, re.M)
    return sorted(set(lines) - targets())

# ---------------------------------------------------------------- workflows

def steps(workflow):
    "Every step of every job"
    return [step for job in workflow['jobs'].values() for step in job['steps']]

def test_each_step_that_runs_something_is_one_make_command():
    assert {p.stem for p in WORKFLOWS} == {'test', 'docs', 'release'}
    called = {}
    for p in WORKFLOWS:
        lines = [s['run'] for s in steps(yaml.safe_load(p.read_text(encoding='utf-8')))
                 if 'run' in s]
        for line in lines: assert re.fullmatch(r'make [a-z-]+', line), f'{p.name}: {line}'
        called[p.stem] = [line.split()[1] for line in lines]
    assert set(sum(called.values(), [])) <= targets()
    assert called['docs'] == ['check-docs'] and called['release'] == ['release-check']
    assert called['test'][0] == read('.ci/run').split()[-1] == 'test'

def test_workflows_test_the_pythons_of_settings(settings):
    workflow = yaml.safe_load(read('.github/workflows/test.yml'))
    pythons = workflow['jobs']['linux']['strategy']['matrix']['python']
    assert pythons[0] == settings['min_python']
    assert set(settings['tested_python'].split()) <= set(pythons)
    for p in WORKFLOWS:
        for step in steps(yaml.safe_load(p.read_text(encoding='utf-8'))):
            if 'setup-python' not in step.get('uses', ''): continue
            assert step['with']['cache-dependency-path'] == 'constraints.txt'
            said = step['with']['python-version']
            assert said in (settings['min_python'], '${{ matrix.python }}'), f'{p.name}: {said}'

def test_workflows_may_no_more_than_they_need():
    for p in WORKFLOWS:
        workflow = yaml.safe_load(p.read_text(encoding='utf-8'))
        assert workflow['permissions'] == {'contents': 'read'}, p.name
        for name, job in workflow['jobs'].items():
            assert 'permissions' not in job or name == 'publish', f'{p.name}: {name}'
            for step in job['steps']: assert '${{' not in step.get('run', ''), f'{p.name}: {step}'

# ---------------------------------------------------------------- version, citation, changelog

def test_one_version_everywhere(settings):
    given = settings['version'], read('CHANGELOG.md'), read('CITATION.cff')
    assert release_check.version_faults(*given) == []

def test_a_version_that_differs_is_said():
    "The control"
    log, cff = '# C\n\n## 1.0.0, 2030-01-02\n\n## 0.9.0, 2029-01-01\n', 'type: x\nversion: 1.0.0\n'
    faults = release_check.version_faults
    assert faults('1.0.0', log, cff) == faults('1.0.0', log, cff, 'v1.0.0') == []
    assert len(faults('1.0.1', log, cff)) == 2 and len(faults('1.0.0', '', '')) == 2
    assert faults('1.0.0', log, cff, 'v1.0') == ['the tag is v1.0, settings.ini says 1.0.0']
    undated = log.replace('2030-01-02', 'not yet released')
    assert faults('1.0.0', undated, cff) == []
    assert faults('1.0.0', undated, cff, 'v1.0.0') == ['CHANGELOG.md has no day for 1.0.0']

def test_citation_says_what_the_readme_says(settings):
    cited = yaml.safe_load(read('CITATION.cff'))
    entries = re.findall(r'^@\w+\{.*?^\}', read('README.md'), re.M | re.S)
    plain = [re.sub(r'\s+', ' ', o) for o in entries]
    assert len(entries) == 1 + len(cited['references']) == 4
    for work, entry in zip([*cited['references'], cited], plain, strict=True):
        assert work['title'] in entry, work['title']
        for key in ('doi', 'url', 'year'):
            if key in work and work is not cited: assert str(work[key]) in entry
        if 'start' in work: assert f'{work["start"]}--{work["end"]}' in entry
        for a in work['authors']:
            name = f'{a["family-names"]}, {a["given-names"]}' if 'family-names' in a else a['name']
            assert name in entry, name
    assert cited['repository-code'] == settings['git_url'] and cited['license'] == 'Apache-2.0'
    assert cited['url'] == settings['doc_host'] + settings['doc_baseurl']

# ---------------------------------------------------------------- pages and containers

@pytest.mark.parametrize('name', ['CONTRIBUTING.md', 'CHANGELOG.md', 'README.md', 'Dockerfile',
                                  '.github/pull_request_template.md'])
def test_pages_name_commands_that_exist(name):
    assert unknown_targets(read(name)) == []

def test_an_unknown_command_is_seen():
    "The control"
    said = 'make reproduce\n`make fly`\nrun: make swim\nwe make it'
    assert unknown_targets(said) == ['fly', 'swim']

def test_contributing_is_one_page_whose_files_exist():
    text = read('CONTRIBUTING.md')
    assert len(text.split()) < 700
    files = re.findall(r'\b(?:nbs|tests)/[\w/]+\.\w+', text)
    assert len(files) > 5
    for name in files:
        assert name == 'nbs/experiments/mine.toml' or (ROOT/name).exists(), name

def test_commands_of_contributing_are_understood():
    "Each `sfr-repro` line has options that the command has"
    from typer.testing import CliRunner
    from sfr_repro.cli import app
    lines = re.findall(r'sfr-repro ([a-z][a-z ]*[a-z])(.*)', read('CONTRIBUTING.md'))
    assert len(lines) > 4
    for words, rest in lines:
        words = [w for w in words.split() if w in {'run', 'records', 'list', 'add', 'supersede'}]
        shown = CliRunner().invoke(app, [*words, '--help'], env={'COLUMNS': '200'})
        assert not shown.exit_code, words
        for option in re.findall(r'(--[a-z]+)', rest.partition('#')[0].partition('`')[0]):
            assert option in shown.output, (words, option)

def test_the_container_does_what_the_readme_says(settings):
    text = read('Dockerfile')
    assert f'FROM python:{settings["min_python"]}' in text
    assert 'ENTRYPOINT ["make"]' in text and 'CMD ["reproduce"]' in text
    assert read('.binder/runtime.txt').strip() == f'python-{settings["min_python"]}'
    for line in ('docker build -t sfr_repro .', 'docker run --rm sfr_repro',
                 'docker run --rm -p 8888:8888 sfr_repro lab'):
        assert line in text and f'`{line}`' in read('README.md')

def test_binder_and_colab_are_named_where_there_is_an_address():
    assert make_readme.elsewhere('https://github.com/example/sfr_repro', 'main') == ''
    assert make_readme.elsewhere('https://forge.example.org/a/b', 'main') == ''
    line = make_readme.elsewhere('https://github.com/someone/sfr_repro', 'trunk')
    for part in ('gh/someone/sfr_repro/trunk?', 'github/someone/sfr_repro/blob/trunk/nbs/losses',
                 'git+https://github.com/someone/sfr_repro`'): assert part in line

# ---------------------------------------------------------------- pins

def test_pins_say_what_they_change():
    before, after = '# made\na==1\nb==2\n', '# made\na==1\nb==3\nc==1\n'
    assert make_pins.changes(before, after) == ['b: 2 -> 3', 'c: none -> 1']
    assert make_pins.changes(after, after) == []
    assert make_pins.versions(read('constraints.txt'))['torch']

def test_a_release_from_a_changed_folder_is_refused(tmp_path):
    "In a clone with a file that no commit has"
    clone = tmp_path/'clone'
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(clone)], check=True, capture_output=True)
    (clone/'tests').mkdir(exist_ok=True)
    (clone/'tests/release_check.py').write_text(read('tests/release_check.py'), encoding='utf-8')
    (clone/'left-over').write_text('x', encoding='utf-8')
    done = subprocess.run([sys.executable, clone/'tests/release_check.py'], capture_output=True,
                          text=True)
    assert done.returncode == 1 and 'left-over' in done.stderr, done.stderr
    assert not (clone/'dist').exists()
