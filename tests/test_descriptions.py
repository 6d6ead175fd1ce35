"""Descriptions of tunes, in five languages."""

import pytest

from corpus import Tune
from descriptions import COUNTRIES, KINDS, LANGUAGES, NAMES, full_description, kinds_of, phrase

ESSEN, ONEILL = "Essen Folksong Collection", "O'Neill's Music of Ireland"
TUNE = Tune("", "", "The Silver Spear", "slipjig", "Ireland", ONEILL, "C|", "D Mixolydian")
SONG = Tune("", "", "Gute Nacht", "Liebes-Lied", "Europa, Mitteleuropa, Deutschland", ESSEN, "3/4", "Bb")
EVERYTHING = ("country", "metre", "key")


@pytest.mark.parametrize(
    ("language", "tune", "song"),
    [
        ("en", "Irish slip jig in 2/2 in D Mixolydian", "German love song in 3/4 in Bb"),
        ("de", "irische Slip Jig im 2/2-Takt in D Mixolydisch", "deutsches Liebeslied im 3/4-Takt in B"),
        ("fr", "slip jig irlandaise à 2/2 en ré mixolydien", "chanson d'amour allemande à 3/4 en si bémol"),
        (
            *("es", "slip jig irlandesa en compás de 2/2 en re mixolidio"),
            "canción de amor alemana en compás de 3/4 en si bemol",
        ),
        ("zh", "爱尔兰滑步吉格舞曲 2/2拍 D混合利底亚调式", "德国情歌 3/4拍 Bb调"),
    ],
)
def test_phrases(language, tune, song):
    assert phrase(TUNE, EVERYTHING, *kinds_of(TUNE), language) == tune
    assert phrase(SONG, EVERYTHING, *kinds_of(SONG), language) == song


def test_the_name_of_the_country():
    assert phrase(TUNE, ("country",), "reel", "fr", plain_name=True) == "reel d'Irlande"
    assert phrase(SONG, ("country",), "love song", "de", plain_name=True) == "Liebeslied aus Deutschland"


def test_a_full_description_says_it_all():
    text = full_description(SONG)
    assert all(part in text for part in (SONG.title, "German love song", "3/4", "Bb", SONG.region, SONG.rhythm, ESSEN))


def test_the_dictionaries_are_whole():
    assert all(len(words) == len(LANGUAGES) for words in (*KINDS.values(), *NAMES.values()))
    assert NAMES.keys() == COUNTRIES.keys()
    for words in KINDS.values():
        assert all(word[-2:] in ("/m", "/f", "/n") for word in words[1:4])


def test_every_tune_of_the_corpus_has_a_description_in_every_language(corpus_tunes):
    for tune in corpus_tunes[::50]:
        for language in LANGUAGES:
            assert tune.title in full_description(tune, language)
