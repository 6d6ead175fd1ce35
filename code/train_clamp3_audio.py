"""Train CLaMP 3 on texts and audio features (.npy, by preprocessing/audio/extract_mert.py); settings: config.py.

On N GPUs of one machine; plain `python` trains on one, or on the CPU:
    python -m torch.distributed.launch --nproc_per_node=N --use_env train_clamp3_audio.py
    torchrun --nproc_per_node N train_clamp3_audio.py
    python train_clamp3_audio.py
On two machines, run on each (they share the folder of the weights):
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train_clamp3_audio.py
Check all data and train nothing; draw the curves of a run so far:
    python train_clamp3_audio.py --check
    python train_clamp3_audio.py --plot curves.png
--help tells the rest; the code is in clamp3/cli/commands/train_audio.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("train audio")
