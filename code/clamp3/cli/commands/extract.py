"""Extract CLaMP 3 features from text (.txt), sheet music (.abc), MIDI (.mtf) and audio features (.npy).

Global features, one (1, 768) vector a file, for retrieval and classification:
    accelerate launch extract_clamp3.py INPUT_DIR OUTPUT_DIR --get_global
Hidden states (1, length, 768) instead:
    accelerate launch extract_clamp3.py INPUT_DIR OUTPUT_DIR
With the weights of one training epoch:
    accelerate launch extract_clamp3.py --epoch 10 INPUT_DIR OUTPUT_DIR --get_global
With the small model that comes with the code, which needs no download:
    accelerate launch extract_clamp3.py --variant tiny INPUT_DIR OUTPUT_DIR --get_global
On four GPUs, in bf16; on two machines, run the second form on each:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 extract_clamp3.py INPUT_DIR OUTPUT_DIR
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_endpoint HOST:PORT extract_clamp3.py INPUT_DIR OUTPUT_DIR
On any number of machines that know nothing of each other, the third of 16 shares (docs/scaling.md):
    python extract_clamp3.py INPUT_DIR OUTPUT_DIR --get_global --shard 3/16
As rows of Parquet files, in place of millions of small files:
    python extract_clamp3.py INPUT_DIR OUTPUT_DIR --get_global --to parquet
ABC that is not interleaved is interleaved first; with --as_is it is taken as it stands.
Plain `python` works too. Each input becomes OUTPUT_DIR/same/path.npy; outputs that are there already are skipped, so
an interrupted run is taken up by the same command. Inputs that have no feature are listed with the reason, also in
OUTPUT_DIR/failures.jsonl, and the exit code is 1. Weights and sizes are set in config.py; weights that are missing
are downloaded.
"""

from clamp3.cli.options import extraction_parser
from clamp3.cli.output import end_of_run


def main() -> int:
    parser = extraction_parser(__doc__, ("saas", "c2", "tiny"))
    parser.add_argument("--get_global", action="store_true", help="one vector a file: what retrieval needs")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.distributed import start
    from clamp3.features.extraction import extract
    from clamp3.formats.registry import extensions, model_inputs

    state = start(args.device, args.threads)
    report = extract(
        embedder_loader(args, state.device, tell=state.is_main_process),
        args.input_dir,
        args.output_dir,
        extensions=extensions(model_inputs()),
        pooled=args.get_global,
        state=state,
        progress=True,
        shard=args.shard,
        to=args.to,
    )
    return end_of_run(report, state)
