"""What one would type to find a folk tune, in five languages: its kind, country, metre and key, from its metadata."""

import re
from collections.abc import Iterator

import numpy as np

from corpus import Tune

LANGUAGES = ("en", "de", "fr", "es", "zh")

# Kinds of tunes in English, German, French, Spanish and Chinese. A German or a Romance word's gender stands behind it.
KINDS = {
    "reel": ("reel", "Reel/m", "reel/m", "reel/m", "里尔舞曲"),
    "jig": ("jig", "Jig/f", "gigue/f", "giga/f", "吉格舞曲"),
    "slip jig": ("slip jig", "Slip Jig/f", "slip jig/f", "slip jig/f", "滑步吉格舞曲"),
    "hornpipe": ("hornpipe", "Hornpipe/f", "hornpipe/m", "hornpipe/m", "角笛舞曲"),
    "strathspey": ("strathspey", "Strathspey/m", "strathspey/m", "strathspey/m", "斯特拉斯佩舞曲"),
    "clog": ("clog", "Clog-Tanz/m", "danse des sabots/f", "danza de zuecos/f", "木屐舞曲"),
    "fling": ("highland fling", "Highland Fling/m", "highland fling/m", "highland fling/m", "高地舞曲"),
    "polka": ("polka", "Polka/f", "polka/f", "polca/f", "波尔卡舞曲"),
    "waltz": ("waltz", "Walzer/m", "valse/f", "vals/m", "圆舞曲"),
    "march": ("march", "Marsch/m", "marche/f", "marcha/f", "进行曲"),
    "minuet": ("minuet", "Menuett/n", "menuet/m", "minué/m", "小步舞曲"),
    "quickstep": ("quickstep", "Quickstep/m", "quickstep/m", "quickstep/m", "快步舞曲"),
    "slow air": ("slow air", "langsame Weise/f", "air lent/m", "aire lento/m", "慢板曲调"),
    "planxty": ("planxty", "Planxty/n", "planxty/m", "planxty/m", "普兰克斯蒂曲"),
    "lament": ("lament", "Klagelied/n", "complainte/f", "lamento/m", "哀歌"),
    "lullaby": ("lullaby", "Wiegenlied/n", "berceuse/f", "nana/f", "摇篮曲"),
    "xiaodiao": ("xiaodiao", "Xiaodiao/n", "xiaodiao/m", "xiaodiao/m", "小调"),
    "mountain song": ("mountain song", "Berglied/n", "chant de montagne/m", "canción de montaña/f", "山歌"),
    "work song": ("work song", "Arbeitslied/n", "chant de travail/m", "canción de trabajo/f", "劳动号子"),
    "ballad": ("ballad", "Ballade/f", "ballade/f", "balada/f", "叙事歌"),
    "religious song": ("religious song", "geistliches Lied/n", "chant religieux/m", "canto religioso/m", "宗教歌曲"),
    "Christmas song": ("Christmas song", "Weihnachtslied/n", "chant de Noël/m", "villancico/m", "圣诞歌"),
    "children's song": ("children's song", "Kinderlied/n", "chanson enfantine/f", "canción infantil/f", "儿歌"),
    "drinking song": ("drinking song", "Trinklied/n", "chanson à boire/f", "canción de taberna/f", "饮酒歌"),
    "soldiers' song": ("soldiers' song", "Soldatenlied/n", "chanson de soldats/f", "canción de soldados/f", "军歌"),
    "hunting song": ("hunting song", "Jägerlied/n", "chanson de chasse/f", "canción de caza/f", "猎歌"),
    "wedding song": ("wedding song", "Hochzeitslied/n", "chanson de noces/f", "canción de bodas/f", "婚礼歌"),
    "farewell song": ("farewell song", "Abschiedslied/n", "chanson d'adieu/f", "canción de despedida/f", "送别歌"),
    "dance song": ("dance song", "Tanzlied/n", "chanson à danser/f", "canción de baile/f", "舞歌"),
    "student song": ("student song", "Studentenlied/n", "chanson d'étudiants/f", "canción estudiantil/f", "学生歌"),
    "love song": ("love song", "Liebeslied/n", "chanson d'amour/f", "canción de amor/f", "情歌"),
    "humorous song": ("humorous song", "Scherzlied/n", "chanson comique/f", "canción humorística/f", "诙谐歌"),
    "folk song": ("folk song", "Volkslied/n", "chanson populaire/f", "canción popular/f", "民歌"),
    "tune": ("tune", "Melodie/f", "air/m", "melodía/f", "曲调"),
}
# The first that a tune's rhythm, or else its title, has in it. The rhythms of the Essen collection are in German.
DANCES = {
    r"slip ?jig": "slip jig",
    r"jig": "jig",
    r"reel": "reel",
    r"hornpipe": "hornpipe",
    r"strathspey": "strathspey",
    r"clog": "clog",
    r"fling": "fling",
    r"polka": "polka",
    r"waltz": "waltz",
    r"march": "march",
    r"min[ue]+t": "minuet",
    r"quick ?step": "quickstep",
    r"air": "slow air",
    r"planxty": "planxty",
    r"lament": "lament",
    r"lullaby": "lullaby",
}
SONGS = {
    r"xiao ?diao": "xiaodiao",
    r"shan.?ge": "mountain song",
    r"haozi": "work song",
    r"wiegen": "lullaby",
    r"weihnacht": "Christmas song",
    r"geistlich|religi": "religious song",
    r"kinder-?,|kinder-?lied|kinder-spiel": "children's song",
    r"trink|zech": "drinking song",
    r"soldat|krieg": "soldiers' song",
    r"jaeger|jäger|jagd": "hunting song",
    r"hochzeit": "wedding song",
    r"abschied": "farewell song",
    r"student": "student song",
    r"ballade|romanze|erzaehl|sage": "ballad",
    r"tanz": "dance song",
    r"liebe": "love song",
    r"scherz|spott": "humorous song",
}
COUNTRIES = {
    "Ireland": "Irland|Ireland",
    "China": "China",
    "Luxembourg": "Luxemburg",
    "Lorraine": "Lothringen",
    "Alsace": "Elsass",
    "Austria": "Oesterreich|Tirol|Steiermark",
    "Switzerland": "Schweiz",
    "the Netherlands": "Niederlande",
    "Sweden": "Schweden",
    "Denmark": "Daenemark",
    "Yugoslavia": "Jugoslawien",
    "Hungary": "Ungarn",
    "Czechia": "Tschech|Boehmen|Maehren",
    "Russia": "Russland|UdSSR",
    "Italy": "Italien",
    "Poland": "Polen(?!, Schlesien)",
    "Germany": "Deutschland|Rheinland|Schlesien",
    "France": "Frankreich",
}
# As above, with the feminine and the plain name behind the masculine in French and Spanish; German adds its endings.
NAMES = {
    "Ireland": ("Irish", "irisch/Irland", "irlandais/irlandaise/Irlande", "irlandés/irlandesa/Irlanda", "爱尔兰"),
    "China": ("Chinese", "chinesisch/China", "chinois/chinoise/Chine", "chino/china/China", "中国"),
    "Luxembourg": (
        *("Luxembourgish", "luxemburgisch/Luxemburg", "luxembourgeois/luxembourgeoise/Luxembourg"),
        *("luxemburgués/luxemburguesa/Luxemburgo", "卢森堡"),
    ),
    "Lorraine": ("Lorrain", "lothringisch/Lothringen", "lorrain/lorraine/Lorraine", "lorenés/lorenesa/Lorena", "洛林"),
    "Alsace": (
        "Alsatian",
        "elsässisch/Elsass",
        "alsacien/alsacienne/Alsace",
        "alsaciano/alsaciana/Alsacia",
        "阿尔萨斯",
    ),
    "Austria": ("Austrian", "österreichisch/Österreich", "autrichien/autrichienne/Autriche")
    + ("austriaco/austriaca/Austria", "奥地利"),
    "Switzerland": ("Swiss", "schweizerisch/der Schweiz", "suisse/suisse/Suisse", "suizo/suiza/Suiza", "瑞士"),
    "the Netherlands": ("Dutch", "niederländisch/den Niederlanden", "néerlandais/néerlandaise/Pays-Bas")
    + ("neerlandés/neerlandesa/Países Bajos", "荷兰"),
    "Sweden": ("Swedish", "schwedisch/Schweden", "suédois/suédoise/Suède", "sueco/sueca/Suecia", "瑞典"),
    "Denmark": ("Danish", "dänisch/Dänemark", "danois/danoise/Danemark", "danés/danesa/Dinamarca", "丹麦"),
    "Yugoslavia": ("Yugoslav", "jugoslawisch/Jugoslawien", "yougoslave/yougoslave/Yougoslavie")
    + ("yugoslavo/yugoslava/Yugoslavia", "南斯拉夫"),
    "Hungary": ("Hungarian", "ungarisch/Ungarn", "hongrois/hongroise/Hongrie", "húngaro/húngara/Hungría", "匈牙利"),
    "Czechia": ("Czech", "tschechisch/Tschechien", "tchèque/tchèque/Tchéquie", "checo/checa/Chequia", "捷克"),
    "Russia": ("Russian", "russisch/Russland", "russe/russe/Russie", "ruso/rusa/Rusia", "俄罗斯"),
    "Italy": ("Italian", "italienisch/Italien", "italien/italienne/Italie", "italiano/italiana/Italia", "意大利"),
    "Poland": ("Polish", "polnisch/Polen", "polonais/polonaise/Pologne", "polaco/polaca/Polonia", "波兰"),
    "Germany": ("German", "deutsch/Deutschland", "allemand/allemande/Allemagne", "alemán/alemana/Alemania", "德国"),
    "France": ("French", "französisch/Frankreich", "français/française/France", "francés/francesa/Francia", "法国"),
}
ENDINGS = {"m": "er", "f": "e", "n": "es"}  # of German adjectives
MODES = {
    "major": ("major", "Dur", "majeur", "mayor", "大调"),
    "minor": ("minor", "Moll", "mineur", "menor", "小调"),
    "Dorian": ("Dorian", "Dorisch", "dorien", "dórico", "多利亚调式"),
    "Phrygian": ("Phrygian", "Phrygisch", "phrygien", "frigio", "弗里几亚调式"),
    "Lydian": ("Lydian", "Lydisch", "lydien", "lidio", "利底亚调式"),
    "Mixolydian": ("Mixolydian", "Mixolydisch", "mixolydien", "mixolidio", "混合利底亚调式"),
}
SYLLABLES = {
    "fr": dict(zip("CDEFGAB", ("do", "ré", "mi", "fa", "sol", "la", "si"), strict=True)),
    "es": dict(zip("CDEFGAB", ("do", "re", "mi", "fa", "sol", "la", "si"), strict=True)),
}
SIGNS = {
    "#": {"fr": " dièse", "es": " sostenido"},
    "b": {"fr": " bémol", "es": " bemol"},
    "": {"fr": "", "es": ""},
}
# What a short description says beside the kind, and how often.
SHORT_FORMS = {
    (): 0.1,
    ("country",): 0.25,
    ("metre",): 0.15,
    ("key",): 0.1,
    ("country", "metre"): 0.2,
    ("country", "key"): 0.05,
    ("metre", "key"): 0.1,
    ("country", "metre", "key"): 0.05,
}


def kinds_of(tune: Tune) -> list[str]:
    """The kinds that a tune's rhythm names, or else its title; "folk song" or "tune" where none is named."""
    rhythm = tune.rhythm.lower()
    if tune.collection.startswith("Essen"):
        return [kind for pattern, kind in SONGS.items() if re.search(pattern, rhythm)] or ["folk song"]
    for text in (rhythm, tune.title.lower()):
        for pattern, kind in DANCES.items():
            if re.search(rf"\b{pattern}s?\b", text):
                return [kind]
    return ["tune"]


def country_of(tune: Tune) -> str:
    """The country, "" where the source tells none that we know."""
    return next((country for country, places in COUNTRIES.items() if re.search(places, tune.region)), "")


def metre_of(tune: Tune) -> str:
    """The metre in figures."""
    return {"C": "4/4", "C|": "2/2"}.get(tune.metre, tune.metre)


# ---------- phrases ----------


def in_language(word: tuple[str, ...], language: str) -> str:
    return word[LANGUAGES.index(language)]


def kind_phrase(kind: str, country: str, language: str) -> str:
    """Such as "Irish reel", "irischer Reel", "reel irlandais", "爱尔兰里尔舞曲"."""
    noun, _, gender = in_language(KINDS[kind], language).partition("/")
    if not country:
        return noun
    names = in_language(NAMES[country], language).split("/")
    if language == "en":
        return f"{names[0]} {noun}"
    if language == "de":
        return f"{names[0]}{ENDINGS[gender]} {noun}"
    return f"{noun} {names[gender == 'f']}" if language in ("fr", "es") else f"{names[0]}{noun}"


def from_phrase(kind: str, country: str, language: str) -> str:
    """Such as "reel from Ireland"."""
    noun = in_language(KINDS[kind], language).partition("/")[0]
    name = in_language(NAMES[country], language).split("/")[-1] if language != "en" else country
    if language == "zh":
        return f"{name}的{noun}"
    if language == "fr" and name[0] in "AEIY":
        return f"{noun} d'{name}"
    return f"{noun} {dict(en='from', de='aus', fr='de', es='de')[language]} {name}"


def metre_phrase(metre: str, language: str) -> str:
    """Such as "in 6/8"."""
    return {
        "en": f"in {metre}",
        "de": f"im {metre}-Takt",
        "fr": f"à {metre}",
        "es": f"en compás de {metre}",
        "zh": f"{metre}拍",
    }[language]


def key_phrase(key: str, language: str) -> str:
    """Such as "in D major"; "in D" where the mode is not known."""
    tonic, _, mode = key.partition(" ")
    mode = in_language(MODES[mode], language) if mode else ""
    if language in SYLLABLES:
        tonic = SYLLABLES[language][tonic[0]] + SIGNS[tonic[1:]][language]
    elif language == "de":
        plain = tonic[0] + {"#": "is", "b": "es"}.get(tonic[1:], "")
        tonic = {"B": "H", "Bb": "B", "Eb": "Es", "Ab": "As"}.get(tonic, plain)
        return f"in {tonic}-{mode}" if mode in ("Dur", "Moll") else f"in {tonic} {mode}".rstrip()
    elif language == "zh":
        return f"{tonic}{mode or '调'}"
    return f"{'in' if language == 'en' else 'en'} {tonic} {mode}".rstrip()


def phrase(tune: Tune, said: tuple[str, ...], kind: str, language: str, plain_name: bool = False) -> str:
    """A short description of a tune that says its kind, and of country, metre and key those that are to be `said`."""
    country = country_of(tune) if "country" in said else ""
    start = from_phrase(kind, country, language) if plain_name and country else kind_phrase(kind, country, language)
    words = [start]
    if "metre" in said and tune.metre:
        words.append(metre_phrase(metre_of(tune), language))
    if "key" in said and tune.key:
        words.append(key_phrase(tune.key, language))
    return " ".join(words)


def full_description(tune: Tune, language: str = "en") -> str:
    """All that is known of a tune in a line: title, kinds, country, metre, key, and the source's own words."""
    kinds = kinds_of(tune)
    others = [in_language(KINDS[kind], language).partition("/")[0] for kind in kinds[1:]]
    parts = [tune.title, phrase(tune, ("country", "metre", "key"), kinds[0], language), ", ".join(others)]
    if tune.collection.startswith("Essen"):
        parts += [tune.region, tune.rhythm]
    return ". ".join(filter(None, [*parts, tune.collection])) + "."


def short_descriptions(tune: Tune, language: str, rng: np.random.Generator) -> Iterator[str]:
    """Without end, short descriptions as people type them."""
    forms, weights = list(SHORT_FORMS), list(SHORT_FORMS.values())
    kinds = kinds_of(tune)
    if tune.collection.startswith("Essen"):
        kinds = [*kinds, "folk song"]  # it is one, whatever it is about
    elif kinds[0] != "tune":
        kinds = [kinds[0]] * 4 + ["tune"]
    while True:
        said = forms[rng.choice(len(forms), p=weights)]
        yield phrase(tune, said, kinds[rng.integers(len(kinds))], language, plain_name=rng.random() < 0.3)
