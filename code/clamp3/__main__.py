"""`python -m clamp3` is the command `clamp3`, also for launchers: `torchrun --nproc_per_node 2 -m clamp3 embed …`."""

from clamp3.cli.console import main

if __name__ == "__main__":
    main()
