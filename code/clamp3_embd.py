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
--help tells the rest; the code is in clamp3/cli/commands/embed.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("embed")
