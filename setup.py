"Everything this says comes from settings.ini and README.md"
import re
from configparser import ConfigParser
from pathlib import Path
import setuptools

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib, source = cfg['lib_path'], f'{cfg["git_url"]}/blob/{cfg["branch"]}/'
readme = here/'README.md'
statuses = {'1': 'Planning', '2': 'Pre-Alpha', '3': 'Alpha', '4': 'Beta', '5': 'Production/Stable'}

def long_description(text):
    "The README for a package index, where a link within the repository leads nowhere"
    def whole(m):
        if re.match(r'[a-z]+:|#', m[2]): return m[0]
        return f'{m[1]}({(source.replace("/blob/", "/raw/") if m[1][0] == "!" else source)}{m[2]})'
    return re.sub(r'(!?\[[^\]]*\])\(([^)\s]+)\)', whole, text)

setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(long_description(readme.read_text(encoding='utf-8')) if readme.exists()
                      else cfg['description']),
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'],
    url=cfg['git_url'], keywords=cfg['keywords'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
                  'Source': cfg['git_url'], 'Changelog': source + 'CHANGELOG.md',
                  'Issues': cfg['git_url'] + '/issues'},
    classifiers=[f'Development Status :: {cfg["status"]} - {statuses[cfg["status"]]}',
                 f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}',
                 'Operating System :: OS Independent',
                 'Programming Language :: Python :: 3 :: Only',
                 *(f'Programming Language :: Python :: {v}' for v in cfg['tested_python'].split()),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 'Topic :: Text Processing :: Linguistic'],
    license_expression={'apache2': 'Apache-2.0'}[cfg['license']], license_files=['LICENSE'],
    packages=setuptools.find_packages(include=[lib, f'{lib}.*']),
    # weights and own sentences; an editable install hides it when this is missing
    package_data={lib: ['assets/**/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split()
                    for k in ('dev', 'compare', 'mpnet', 'mteb', 'sentence_transformers')},
    python_requires=f">={cfg['min_python']}",
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False,
)
