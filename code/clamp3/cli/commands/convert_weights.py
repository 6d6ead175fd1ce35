"""Turn weights into a folder with a file for each tower, which a program can load, or download, one by one.

    clamp3 convert weights saas OUT
    clamp3 convert weights saas OUT --precision bf16
    clamp3 convert weights my_weights.pth OUT --towers text symbolic
The release (saas, c2 or m3) is downloaded unless it is there; any other checkpoint or folder will do as well. OUT then
holds text.safetensors, symbolic.safetensors, audio.safetensors, config.json, the tokenizer and a model card, and is
what Embedder.from_pretrained takes. State of an optimizer is left out. Each file is read again and all tensors are
compared with those that were to be written; in fp32 these are the checkpoint's, bit for bit.
"""

from pathlib import Path

from clamp3.cli.options import script_parser
from clamp3.modalities import MODALITIES


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("weights", help="saas, c2, m3 or tiny; a checkpoint, or a folder of this kind")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="the folder, new or empty")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the weights; default: %(default)s"
    )
    parser.add_argument("--towers", nargs="+", choices=[*MODALITIES], help="leave out the others; default: all")
    args = parser.parse_args()

    from clamp3.models.saving import convert_weights

    saved = convert_weights(args.weights, args.output_dir, args.precision, args.towers)
    for tower in saved:
        rounding = f", rounded by {tower.largest_error:.2g} at most" if tower.largest_error else ""
        print(f"{tower.file}: {tower.tensors} tensors as they were written, {tower.size / 1e6:,.1f} MB{rounding}")
    print(f'{args.output_dir} is whole: Embedder.from_pretrained("{args.output_dir}")')
    return 0
