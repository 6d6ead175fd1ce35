"""Classify with a linear probe that train_cls.py has trained.

The most probable class of each file in a folder:
    python inference_cls.py WEIGHTS INPUT_DIR
Also as JSON lines, with the five most probable classes of each file:
    python inference_cls.py WEIGHTS INPUT_DIR --json predictions.jsonl --top_k 5
Where file names begin with their class and an underscore (reel_0012.npy), accuracy, macro-F1, and precision and recall
of each class are printed too (with `pip install "clamp3[classify]"`). True classes can also come from folders or a CSV
file of lines "file,label", relative to INPUT_DIR:
    python inference_cls.py WEIGHTS INPUT_DIR --labels folder
    python inference_cls.py WEIGHTS INPUT_DIR --labels FILE.csv
INPUT_DIR holds features (.npy of the shape (1, 768)), which clamp3_embd.py makes with --get_global, or files of all
kinds that it takes; features must be made by the same model as those that the probe was trained on. The margin is how
far the runner-up is behind. Files that cannot be read are listed (exit code 1).
"""

from pathlib import Path

from clamp3.cli.options import FOLDER, answers_parser, feature_cache
from clamp3.cli.output import print_collection, print_weights, save_json
from clamp3.cli.predictions import add_label_option, add_shown_option, print_predictions, print_score, ranked


def main() -> int:
    parser = answers_parser(__doc__, "weights", "file that train_cls.py wrote", "input_dir", FOLDER)
    add_label_option(parser)
    add_shown_option(parser)
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.errors import UserError
    from clamp3.search.collection import load_collection, provenance
    from clamp3.tasks.labels import label_source, labels_of
    from clamp3.tasks.probe import Probe

    probe, source = Probe.load(args.weights), label_source(args.labels)
    load_embedder = embedder_loader(args, asked=[args.input_dir])
    inputs = load_collection(args.input_dir, load_embedder, feature_cache(args), progress=True)
    try:
        probabilities = probe.probabilities(inputs.features)
    except ValueError as error:
        raise UserError(f"{inputs.folder / inputs.files[0]} and {args.weights} do not fit: {error}") from None
    truth, issues = labels_of(source, inputs.files, probe.labels)
    records = ranked(inputs.files, truth, probe.labels, {"probability": probabilities}, args.top_k)
    print_predictions(records)
    print_score(records, probe.labels, issues)
    print_weights(origin := provenance(inputs))
    save_json(args.json, ({**record, **origin} for record in records))
    if probe.made_by and inputs.weights and Path(probe.made_by).name != inputs.weights.name:
        print(
            f"but {args.weights} was trained on features made by {probe.made_by}: if that is another model, it guesses"
        )
    print_collection(inputs)
    return 1 if inputs.failures else 0
