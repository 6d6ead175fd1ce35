"""How good a model is on folk tunes that it has not seen: pairs find each other, short queries find their kind."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clamp3.features.embedder import Embedder
from clamp3.search.metrics import metrics
from clamp3.search.ranking import normalized, ranks_of_pairs
from corpus import Tune
from descriptions import country_of, full_description, kinds_of, metre_of
from notes import read_melody, to_mtf

TOP = 10


@dataclass(frozen=True)
class Query:
    """A short query in several languages (English first), and which tunes are right by their metadata."""

    texts: tuple[str, ...]
    is_right: Callable[[Tune], bool]


def wanted(kind: str = "", country: str = "", metre: str = "", key: str = "", song: bool = False):
    """Which tunes are of that kind, country, metre and key; `song`: are of the collection of songs."""

    def is_right(tune: Tune) -> bool:
        return (
            (not kind or kind in kinds_of(tune))
            and (not country or country_of(tune) == country)
            and (not metre or metre_of(tune) == metre)
            and (not key or tune.key == key)
            and (not song or tune.collection.startswith("Essen"))
        )

    return is_right


QUERIES = (
    Query(("Irish reel", "irischer Reel", "reel irlandais", "爱尔兰里尔舞曲"), wanted("reel", "Ireland")),
    Query(("Irish jig", "irische Jig", "gigue irlandaise", "爱尔兰吉格舞曲"), wanted("jig", "Ireland")),
    Query(("reel", "Reel", "reel", "里尔舞曲"), wanted("reel")),
    Query(("jig", "Jig", "gigue", "吉格舞曲"), wanted("jig")),
    Query(("slip jig", "Slip Jig", "slip jig", "滑步吉格舞曲"), wanted("slip jig")),
    Query(("hornpipe", "Hornpipe", "hornpipe", "角笛舞曲"), wanted("hornpipe")),
    Query(("strathspey", "Strathspey", "strathspey", "斯特拉斯佩舞曲"), wanted("strathspey")),
    Query(("march", "Marsch", "marche", "进行曲"), wanted("march")),
    Query(("slow air", "langsame Weise", "air lent", "慢板曲调"), wanted("slow air")),
    Query(("reel in D major", "Reel in D-Dur", "reel en ré majeur", "里尔舞曲 D大调"), wanted("reel", key="D major")),
    Query(("jig in G major", "Jig in G-Dur", "gigue en sol majeur", "吉格舞曲 G大调"), wanted("jig", key="G major")),
    Query(
        ("Chinese folk song", "chinesisches Volkslied", "chanson populaire chinoise", "中国民歌"),
        wanted(country="China", song=True),
    ),
    Query(
        ("Chinese folk song in 2/4", "chinesisches Volkslied im 2/4-Takt", "chanson populaire chinoise à 2/4")
        + ("中国民歌 2/4拍",),
        wanted(country="China", metre="2/4", song=True),
    ),
    Query(
        ("German folk song", "deutsches Volkslied", "chanson populaire allemande", "德国民歌"),
        wanted(country="Germany", song=True),
    ),
    Query(
        ("German love song in 3/4", "deutsches Liebeslied im 3/4-Takt", "chanson d'amour allemande à 3/4")
        + ("德国情歌 3/4拍",),
        wanted("love song", "Germany", "3/4"),
    ),
    Query(
        ("folk song from Luxembourg", "Volkslied aus Luxemburg", "chanson populaire du Luxembourg", "卢森堡民歌"),
        wanted(country="Luxembourg", song=True),
    ),
    Query(("children's song", "Kinderlied", "chanson enfantine", "儿歌"), wanted("children's song")),
    Query(("ballad in 6/8", "Ballade im 6/8-Takt", "ballade à 6/8", "叙事歌 6/8拍"), wanted("ballad", metre="6/8")),
)


def pair_figures(embedder: Embedder, tunes: list[Tune], audio: list[np.ndarray] | None) -> dict[str, dict[str, float]]:
    """MRR and Hit@k of finding the one right tune: by its full description, and by its other forms."""
    features = {
        "text": embedder.embed_text([full_description(tune) for tune in tunes]),
        "ABC": embedder.embed_symbolic([tune.abc for tune in tunes]),
        "MTF": embedder.embed_symbolic([to_mtf(read_melody(tune.abc)) for tune in tunes]),
    }
    if audio is not None:
        features["audio"] = embedder.embed_audio_features(audio)
    pairs = [("text", "ABC"), ("ABC", "text"), ("text", "MTF"), ("ABC", "MTF"), ("MTF", "ABC")]
    pairs += [("text", "audio"), ("audio", "text"), ("ABC", "audio")] if audio is not None else []
    return {f"{a} to {b}": metrics(ranks_of_pairs(features[a], features[b])) for a, b in pairs}


def query_figures(embedder: Embedder, tunes: list[Tune]) -> list[dict]:
    """For each short query, over the ABC: precision among the best ten, and what other languages share of them."""
    music = normalized(embedder.embed_symbolic([tune.abc for tune in tunes]))
    figures = []
    for query in QUERIES:
        right = np.array([query.is_right(tune) for tune in tunes])
        scores = normalized(embedder.embed_text(list(query.texts))) @ music.T  # (languages, tunes)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        figures.append(
            {
                "query": query.texts[0],
                "right tunes": int(right.sum()),
                "precision@10": float(right[best[0]].mean()),
                "in other languages": {
                    text: {
                        "precision@10": float(right[row].mean()),
                        "overlap of the best ten": len(set(row) & set(best[0])) / TOP,
                    }
                    for text, row in zip(query.texts[1:], best[1:], strict=True)
                },
            }
        )
    return figures


# ---------- as tables ----------


def pair_rows(figures: dict[str, dict[str, float]]) -> str:
    """Rows of a Markdown table."""
    return "\n".join(
        f"| {pair} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |"
        for pair, found in figures.items()
    )


def query_rows(figures: list[dict]) -> str:
    """Rows of a Markdown table."""
    rows = []
    for entry in figures:
        others = (
            f"{text}: {found['precision@10']:.1f}, {found['overlap of the best ten']:.1f}"
            for text, found in entry["in other languages"].items()
        )
        cells = (entry["query"], str(entry["right tunes"]), f"{entry['precision@10']:.1f}", *others)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def mean_overlaps(figures: list[dict]) -> dict[str, float]:
    """By language, how much of the best ten its queries share with their English twins."""
    overlaps = [
        [found["overlap of the best ten"] for found in entry["in other languages"].values()] for entry in figures
    ]
    return dict(zip(("German", "French", "Chinese"), np.mean(overlaps, axis=0).tolist(), strict=True))
