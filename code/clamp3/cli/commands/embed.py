"""Features of raw files of any kind: text, scores, MIDI, sound and MERT features, mixed in one folder tree.

Global features, one (1, 768) vector a file, for search, scoring and evaluation:
    python clamp3_embd.py INPUT_DIR OUTPUT_DIR --get_global
Hidden states (1, length, 768) instead:
    python clamp3_embd.py INPUT_DIR OUTPUT_DIR
With the small model that comes with the code, which needs no download:
    python clamp3_embd.py --variant tiny INPUT_DIR OUTPUT_DIR --get_global
On four GPUs, in bf16; and in two processes on CPUs:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 clamp3_embd.py INPUT_DIR OUTPUT_DIR
    torchrun --nproc_per_node 2 clamp3_embd.py INPUT_DIR OUTPUT_DIR --get_global
As rows of Parquet files, in place of millions of small files (docs/scaling.md):
    python clamp3_embd.py INPUT_DIR OUTPUT_DIR --get_global --to parquet
It takes .txt, .xml .musicxml .mxl, .abc (interleaved or not), .mid .midi .kar .rmi .mtf, .wav .mp3 .flac .ogg .opus …
and .npy of MERT features. Each input becomes OUTPUT_DIR/same/path.npy; outputs that are there already are skipped, so
an interrupted run is taken up by the same command; with --shard 3/16 it does a share. Inputs that cannot be read are
listed with the reason, also in OUTPUT_DIR/failures.jsonl, and the exit code is 1; damaged ones that can be read are,
and are listed in OUTPUT_DIR/warnings.jsonl. Weights and sizes are set in config.py; weights that are missing are
downloaded.
"""

from clamp3.cli.captions import add_pictures_option
from clamp3.cli.options import (
    add_cache_options,
    add_format_option,
    add_model_options,
    add_raw_options,
    add_shard_option,
    feature_cache,
    folders_parser,
)
from clamp3.cli.output import end_of_run


def main() -> int:
    parser = folders_parser(__doc__)
    add_model_options(parser, ("saas", "c2", "tiny"))
    add_raw_options(parser)
    add_cache_options(parser)
    add_shard_option(parser)
    add_format_option(parser)
    add_pictures_option(parser)
    parser.add_argument("--get_global", action="store_true", help="one vector a file: what retrieval needs")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.distributed import start
    from clamp3.features.cache import embed_files_once
    from clamp3.features.extraction import extract
    from clamp3.formats.registry import extensions

    state, cache = start(args.device, args.threads), feature_cache(args)
    load_embedder = embedder_loader(args, state.device, tell=state.is_main_process)  # from here on, pictures are read
    report = extract(
        load_embedder,
        args.input_dir,
        args.output_dir,
        extensions=extensions(),
        pooled=args.get_global,
        state=state,
        embed=lambda embedder, paths: (
            embed_files_once(embedder, paths, cache)
            if args.get_global
            else embedder.embed_items(embedder.read_raw(paths), pooled=False)
        ),
        progress=True,
        shard=args.shard,
        to=args.to,
    )
    return end_of_run(report, state)
