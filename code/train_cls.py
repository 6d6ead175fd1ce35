"""Train a linear probe, a classifier of features, and score it on files that it has not seen.

With labels in file names (reel_0012.npy, jig_7.npy), and a fifth of each class held out for the figures:
    python train_cls.py FEATURE_DIR WEIGHTS
With labels by folder (reel/0012.npy) or by a CSV file of lines "file,label", relative to FEATURE_DIR:
    python train_cls.py FEATURE_DIR WEIGHTS --labels folder
    python train_cls.py FEATURE_DIR WEIGHTS --labels FILE.csv
Figures by five-fold cross-validation, or on the files of another folder:
    python train_cls.py FEATURE_DIR WEIGHTS --folds 5 --json figures.jsonl
    python train_cls.py FEATURE_DIR WEIGHTS --eval_dir OTHER_DIR
With classes weighted to count alike, whatever their sizes:
    python train_cls.py FEATURE_DIR WEIGHTS --balanced
--help tells the rest; the code is in clamp3/cli/commands/train_classifier.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("train classifier")
