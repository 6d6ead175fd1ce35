"""Turn weights into ONNX files, which onnxruntime runs without PyTorch; needs clamp3[onnx].

    python clamp3_export.py tiny OUT
    python clamp3_export.py saas OUT --int8
    python clamp3_export.py my_weights.pth OUT --towers text symbolic
    python clamp3_export.py saas OUT --mert m-a-p/MERT-v1-95M
Weights are saas or c2 (downloaded unless they are there), tiny, a checkpoint or a folder. OUT, which must be new, then
holds a file for each tower, one for MERT if it is part of the weights' folder or --mert names it, and parity.json and
parity.md: how near the features are to those of the weights, for inputs that come with the library.
Embedder.from_pretrained and --weights take OUT. With --int8, matrix products and the vocabulary are quantized, but for
those that lose too much. Where features are not near enough (cosine 0.9999, in int8 0.998; neighbours 0.95), nothing
is put in place, and the exit code is 1.
"""

from pathlib import Path

from clamp3.cli.options import script_parser
from clamp3.cli.output import print_line, print_table
from clamp3.modalities import MODALITIES


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("weights", help="saas, c2 or tiny; a checkpoint, or a folder of weights")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="the folder, new or empty")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="the one that there is")
    parser.add_argument("--int8", action="store_true", help="quantize: a quarter of the size")
    parser.add_argument("--towers", nargs="+", choices=[*MODALITIES], help="leave out the others; default: all")
    parser.add_argument("--mert", help="what listens to sound, to be exported too: a folder or a name on the hub")
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    import logging
    import warnings

    from clamp3.tasks.exporting import export_model, rows

    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's quantization and PyTorch's tracer say much
    warnings.simplefilter("ignore")
    parities = export_model(args.weights, args.output_dir, args.int8, args.towers, args.mert)
    print_table(*rows(parities))
    if bad := [one.tower for one in parities if not one.is_good]:
        print_line(f"not near enough to the weights: {', '.join(bad)}; {args.output_dir} was not written")
        return 1
    if "sound" not in [one.tower for one in parities] and "audio" in [one.tower for one in parities]:
        print_line(
            "without MERT, which sound needs: its own weights are taken for it, in PyTorch; --mert exports them"
        )
    print_line(f'{args.output_dir} is whole: Embedder.from_pretrained("{args.output_dir}")')
    return 0
