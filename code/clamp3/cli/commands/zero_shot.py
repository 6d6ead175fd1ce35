"""Classify without training: find which of the labels in a text file is closest to each file of a folder.

With one label a line, such as "slip jig":
    python zero_shot.py INPUT_DIR LABELS.txt
Also as JSON lines, and with the small model that comes with the code and needs no download:
    python zero_shot.py INPUT_DIR LABELS.txt --json predictions.jsonl --variant tiny
Where the first or the last folder of a file's path names its class, ignoring letter case and underscores, accuracy,
macro-F1, and precision and recall of each class are printed too (with `pip install "clamp3[classify]"`). True classes
can also come from a CSV file of lines "file,label", relative to INPUT_DIR; a picture shows the confusion matrix:
    python zero_shot.py INPUT_DIR LABELS.txt --truth FILE.csv --picture confusion.png
A line of LABELS.txt is a label, or a label with its prompts, in any language:
    slip jig
    hornpipe: a hornpipe | Hornpipe | 角笛舞曲
A label without prompts is put into each template; your own templates replace the default ones:
    python zero_shot.py INPUT_DIR LABELS.txt --template "a {} from Ireland" --template "{}"
The features of a label's prompts are normalized and averaged, and the label with the highest cosine is chosen; the
margin is how far the runner-up is behind. The probability is a softmax at the scale at which the model was trained.
INPUT_DIR may hold files of all kinds that clamp3_embd.py takes, or features (.npy of the shape (1, 768)) that it made
with --get_global. Files that cannot be read are listed (exit code 1).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from clamp3.cli.options import FOLDER, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_weights, save_json
from clamp3.cli.predictions import add_shown_option, print_predictions, print_score, ranked
from clamp3.cli.settings import load_knobs

if TYPE_CHECKING:
    import numpy as np

    from clamp3.features.embedder import Embedder
    from clamp3.search.collection import Collection

TEMPLATES = ("{}", "{} music", "a piece of {}")


def main() -> int:
    parser = answers_parser(__doc__, "input_dir", FOLDER, "labels", "text file with one label a line")
    shown = ", ".join(f'"{template}"' for template in TEMPLATES)
    parser.add_argument(
        "--template",
        action="append",
        type=template,
        help=f"prompt for labels without prompts, {{}} stands for the label; default: {shown}",
    )
    parser.add_argument(
        "--truth",
        metavar="FILE.csv",
        default="folder",
        help='true labels: lines "file,label"; default: by folder',
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="draw the confusion matrix")
    add_shown_option(parser)
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.search.collection import check_comparable, load_collection, provenance
    from clamp3.tasks.figures import draw_confusion
    from clamp3.tasks.labels import label_source, labels_of, read_prompts
    from clamp3.tasks.zero_shot import zero_shot

    prompts = read_prompts(args.labels, args.template or TEMPLATES)
    labels, source = list(prompts), label_source(args.truth)
    load_embedder = embedder_loader(args, asked=[args.input_dir])
    inputs = load_collection(args.input_dir, load_embedder, feature_cache(args), progress=True)
    prompt_texts, prompt_features = embedded(prompts, load_embedder())
    check_comparable(prompt_texts, inputs)
    cosines, probabilities = zero_shot(inputs.features, prompt_features, load_knobs()["LOGIT_SCALE"])
    truth, issues = labels_of(source, inputs.files, labels)
    records = ranked(inputs.files, truth, labels, {"cosine": cosines, "probability": probabilities}, args.top_k)
    print_predictions(records)
    result = print_score(records, labels, issues)
    print_weights(origin := provenance(prompt_texts, inputs))
    save_json(args.json, ({**record, **origin} for record in records))
    if result and args.picture:
        draw_confusion(result, args.picture)
    print_collection(inputs)
    return 1 if inputs.failures or args.picture and not result else 0


def embedded(prompts: dict[str, list[str]], embedder: "Embedder") -> "tuple[Collection, list[np.ndarray]]":
    """All prompts with their features, and the features again as an array (prompts, hidden) for each label."""
    import numpy as np

    from clamp3.search.collection import Collection

    texts = [text for label_prompts in prompts.values() for text in label_prompts]
    collection = Collection(
        Path(), texts, embedder.embed_text(texts), weights=embedder.weights, fingerprint=embedder.fingerprint
    )
    lengths = [len(label_prompts) for label_prompts in prompts.values()]
    return collection, np.split(collection.features, np.cumsum(lengths)[:-1])


def template(text: str) -> str:
    """An argparse type: a text with {} in place of the label."""
    if "{}" not in text:
        raise argparse.ArgumentTypeError(f"a template needs {{}} where the label stands: {text!r}")
    return text
