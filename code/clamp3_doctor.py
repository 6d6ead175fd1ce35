"""Checks that everything CLaMP 3 needs is present and works, and says what to do where it does not.

All checks, with the weights that config.py names (or the small model's, if those are not on this machine):
    python clamp3_doctor.py
With other weights: those of a release, the small model, or a file of your own:
    python clamp3_doctor.py --variant saas
    python clamp3_doctor.py --weights my_weights.pth
Some of the checks; and whether the Hugging Face hub can be reached, which is checked only on request:
    python clamp3_doctor.py --only memory "shared memory" threads
    python clamp3_doctor.py --only hub --online
As JSON lines, to attach to a bug report:
    python clamp3_doctor.py --json -
--help tells the rest; the code is in clamp3/cli/commands/doctor.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("doctor")
