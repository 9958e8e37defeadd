"The text of pages, docstrings, comments and experiment files, as STYLE.md wants it"
import words

def test_a_planted_phrase_is_seen():
    planted = 'The number is at hand. It stands in `at hand`.'
    assert sorted(found for found, _ in words.tics_of(planted)) == ['at hand', 'stands in']
    assert not words.tics_of('The number is available.')
    sentences = words.sentences_of('# Title\n\nOne `code` two. Three $x$ four five!\n\n| a | b |')
    assert list(map(len, sentences)) == [3, 4]

def test_no_phrase_with_a_private_meaning_is_left():
    texts = [*words.pages(), *words.comments()]
    assert len(texts) > 5000, 'this test sees nothing'
    found = [(place, phrase, f'write {instead!r}') for _, place, text in texts
             for phrase, instead in words.tics_of(text)]
    assert not found, found[:10]
