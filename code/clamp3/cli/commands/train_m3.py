"""Train M3, the encoder of symbolic music, on folders of .abc and .mtf files; settings: config.py.

On N GPUs of one machine; plain `python` trains on one, or on the CPU:
    python -m torch.distributed.launch --nproc_per_node=N --use_env train_m3.py
    torchrun --nproc_per_node N train_m3.py
    python train_m3.py
On two machines, run on each (they share the folder of the weights):
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train_m3.py
Check all data and train nothing; draw the curves of a run so far:
    python train_m3.py --check
    python train_m3.py --plot curves.png
M3_TRAIN_FOLDERS names the data. The best weights go to M3_WEIGHTS_PATH, and the full state to ..._last.pth: a run that
is killed is taken up by the same command.
"""

from clamp3.cli.settings import load_knobs
from clamp3.cli.training import train_m3, training_parser


def main() -> int:
    return train_m3(load_knobs(), training_parser(__doc__).parse_args())
